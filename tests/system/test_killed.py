"""`sightline ingest` killed in the middle and finished by running it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.demo.render import render
from tests.support import gated_command
from tests.support.gate import Gate
from tests.support.processes import Process, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
SECONDS = 180
SEGMENT = "10"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three minutes of rendered footage."""
    folder = tmp_path_factory.mktemp("footage")
    render(5, SECONDS / 60, 1, folder)
    return folder / "camera-1.mp4"


def _stored(store: Path) -> int:
    """Segments that are committed, by the transaction log's own files."""
    return max(0, len(list((store / "segments" / "_delta_log").glob("*.json"))) - 1)


def test_an_ingest_killed_twice_is_finished_by_running_it_again(
    video: Path, profile: str, tmp_path: Path, sightline: Process
) -> None:
    broken = tmp_path / "broken"
    encoders = load_encoders(load_profile(profile), "cpu")
    first = Store.create(tmp_path / "whole", encoders.pair)
    ingest_sources([video], store=first, encoders=encoders)
    # It does not store the last segment, so that the kill comes in the middle however late it comes.
    command = gated_command.command("before-the-last-segment", Gate(tmp_path / "gate"))
    command += ["ingest", str(video), "--store", str(broken), "--profile", profile]
    for at_least in (2, 6):
        child = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path, SIGHTLINE_SEGMENT_SECONDS=SEGMENT))
        deadline = time.monotonic() + 600
        while _stored(broken) < at_least and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert child.poll() is None  # alive, with others to come
        assert _stored(broken) >= at_least
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        frames = sum(s.frames for s in Store.open(broken).streams())
        assert 0 < frames < SECONDS  # it was in the middle of its work
        assert not any(s.final for s in Store.open(broken).segments())
    done = sightline(
        "ingest", video, "--store", broken, "--profile", profile, "--json", SIGHTLINE_SEGMENT_SECONDS=SEGMENT
    )
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["frames"] < SECONDS  # only what was missing
    second = Store.open(broken)
    expected, found = first.window(), second.window()
    assert found.captured_at.tolist() == expected.captured_at.tolist()  # no frame lost, none doubled
    assert len(found) == SECONDS
    assert second.pictures(found) == first.pictures(expected)
    np.testing.assert_allclose(second.patches(found), first.patches(expected), atol=2e-3)
    assert second.verify() == []
    assert sum(segment.frames for segment in second.segments()) == SECONDS
