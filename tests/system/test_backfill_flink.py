"""A backfill on a real Flink cluster, with a task manager killed in the middle of it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import pytest

from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from tests.support.flink_cluster import Cluster, alive, children, cluster, until
from tests.support.footage import make_video
from tests.support.gate import Gate
from tests.support.processes import environment
from tests.support.stores import assert_same

__all__ = ["cluster"]
pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
AT = datetime(2024, 3, 1, 8, tzinfo=UTC)
SEGMENT = 5  # seconds


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cameras: two files fit one piece, four are cut into pieces."""
    folder = tmp_path_factory.mktemp("archive")
    for number, seconds in enumerate((90, 12, 75, 61.5, 18, 80)):
        rate = Fraction(30_000, 1001) if number % 2 else Fraction(10)
        make_video(folder / f"cam{number}_{AT:%Y%m%dT%H%M%SZ}.mp4", seconds=seconds, rate=rate, gop=25 + 10 * number)
    return folder


def commits(store: Path) -> int:
    return max(0, len(list((store / "segments" / "_delta_log").glob("*.json"))) - 1)


def staged(store: Path) -> int:
    """Pieces of long files that are finished and wait to be stored; there are 18 in all."""
    return len(list(store.glob("staging/*/*/*.json")))


def test_a_task_manager_is_killed_and_the_store_is_what_ingest_writes(
    archive: Path, profile: str, cluster: Cluster, tmp_path: Path
) -> None:
    encoders = load_encoders(load_profile(profile), "cpu")
    expected = Store.create(tmp_path / "expected", encoders.pair)
    ingest_sources([archive], store=expected, encoders=encoders, segment_seconds=SEGMENT)
    store, log, out, gate = tmp_path / "store", tmp_path / "log", tmp_path / "out", Gate(tmp_path / "gate")
    victim = "task-manager-1"
    command = [sys.executable, "-m", "pipeline.cli", "backfill", "--manifest", str(archive), "--store", str(store)]
    command += ["--profile", profile, "--threads", "1", "--piece-minutes", "0.35", "--runner", "FlinkRunner", "--json"]
    settings = environment(tmp_path, SIGHTLINE_SEGMENT_SECONDS=str(SEGMENT), SIGHTLINE_DEVICE="cpu")
    with log.open("wb") as told, out.open("wb") as said:
        job = subprocess.Popen([*command, "--", *cluster.beam(gate, victim)], env=settings, stdout=said, stderr=told)
    try:
        until(lambda: gate.held or job.poll() is not None, "the victim is in the middle of a piece")
        assert job.poll() is None, log.read_text()[-3000:]
        [name] = [found["jid"] for found in cluster.ask("/jobs/overview")["jobs"] if found["state"] == "RUNNING"]
        assert victim in cluster.running(name)
        workers = children(cluster.pid(victim), "beam_worker")
        assert workers
        pid = cluster.kill(victim)
        assert not alive(pid)
        assert 0 < staged(store) < 18  # the other one has finished pieces, and those of the victim are unfinished
        gate.open()  # its worker does not know yet that nobody waits for the piece
        cluster.add("spare")
        until(lambda: cluster.managers() == {"task-manager-2", "spare"}, "the spare is there, the dead one is not")
        assert job.wait(timeout=1200) == 0, log.read_text()[-3000:]
    finally:
        gate.open()
        job.kill()
        job.wait()
    until(lambda: not any(map(alive, workers)), "the dead task manager's Python workers end")
    report = json.loads(out.read_text())
    assert report["runner"] == "FlinkRunner"
    assert (report["files"], report["stored"], report["frames"]) == (6, 6, expected.window().captured_at.size)
    assert cluster.ask(f"/jobs/{name}")["state"] == "FINISHED"  # the same job, tried again by Flink
    assert cluster.ask(f"/jobs/{name}/exceptions")["exceptionHistory"]["entries"]  # of what it died once
    assert_same(Store.open(store), expected)
    before = commits(store)
    again = ingest_sources([archive], store=Store.open(store), encoders=encoders, segment_seconds=SEGMENT)
    assert all(file.skipped for file in again.files)
    assert commits(store) == before
