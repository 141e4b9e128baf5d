"""A backfill on Spark: the store is what `ingest` writes, and a second job changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from tests.support.flink_cluster import ROOT, portable, until
from tests.support.footage import make_video
from tests.support.kafka_server import free_ports
from tests.support.large_stores import files_of
from tests.support.processes import environment
from tests.support.stores import assert_same
from tests.support.tools import need

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
AT = datetime(2024, 3, 1, 8, tzinfo=UTC)
SEGMENT = 5  # seconds


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[int]:
    """The port of Beam's job server, with a Spark of two tasks at a time inside."""
    need("java", "mvn")
    (port,) = free_ports(1)
    log = tmp_path / "spark.log"
    with log.open("wb") as told:
        script = [str(ROOT / "infra" / "spark" / "server.sh"), "start", str(port), str(tmp_path / "spark")]
        server = subprocess.Popen(script, stdout=told, stderr=told, start_new_session=True)

    def listens() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        with socket.socket() as tried:
            return tried.connect_ex(("localhost", port)) == 0

    try:
        until(listens, "the job server listens")
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_store_is_what_ingest_writes_whoever_runs_it_how_often(
    profile: str, job_server: int, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for number, seconds in enumerate((40, 12, 33)):  # two are cut into pieces
        make_video(archive / f"cam{number}_{AT:%Y%m%dT%H%M%SZ}.mp4", seconds=seconds, gop=25 + 10 * number)
    (archive / "broken_20240301T080000Z.mp4").write_bytes(b"no video" * 1000)
    encoders = load_encoders(load_profile(profile), "cpu")
    expected = Store.create(tmp_path / "expected", encoders.pair)
    ingest_sources(sorted(archive.glob("cam*")), store=expected, encoders=encoders, segment_seconds=SEGMENT)
    store = tmp_path / "store"
    command = [sys.executable, "-m", "pipeline.cli", "backfill", "--manifest", str(archive), "--store", str(store)]
    command += ["--profile", profile, "--threads", "1", "--piece-minutes", "0.35", "--runner", "SparkRunner", "--json"]
    command += ["--max-lost", "0.5", "--", *portable(job_server)]
    settings = environment(tmp_path, SIGHTLINE_SEGMENT_SECONDS=str(SEGMENT), SIGHTLINE_DEVICE="cpu")
    for stored, before in ((3, 0), (0, 3)):
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads(done.stdout)
        assert report["runner"] == "SparkRunner"
        assert (report["files"], report["stored"], report["skipped"], report["lost"]) == (4, stored, before, 1)
        assert_same(Store.open(store), expected)
    command = [sys.executable, "-m", "pipeline.cli", "index", "build", "--store", str(store), "--json"]
    command += ["--runner", "SparkRunner", "--shard-frames", "20", "--", *portable(job_server)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    built = json.loads(done.stdout)
    frames = expected.window().captured_at.size
    assert (built["rows"], built["trained"], built["shards"] > 1) == (frames, True, True)
    shutil.copytree(store, tmp_path / "local")
    local = Store.open(tmp_path / "local").vectors.large
    local.catalog.drop()
    local.build(shard_rows=20)
    assert files_of(store / "ann") == files_of(tmp_path / "local" / "ann"), "the shards are those of one process"
