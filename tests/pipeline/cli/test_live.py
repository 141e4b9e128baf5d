"""`sightline cameras` and `sightline clip` from a terminal, without cameras."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from index.files import write_atomically
from ingest.live.status import CameraState, LiveStatus, StatusRegistry
from ingest.live.supervisor import STATUS_FILE
from tests.support.command import Command


@pytest.mark.parametrize("killed", [False, True])
def test_cameras_after_a_stop(sightline: Command, tmp_path: Path, killed: bool) -> None:
    gate = CameraState(stream="gate", url="rtsp://h/x", state="live")
    if killed:  # it could not write that it stopped
        old = LiveStatus(command="watch", pid=1, updated=datetime.now(UTC) - timedelta(minutes=1), cameras=[gate])
        write_atomically(tmp_path / STATUS_FILE, old.model_dump_json())
    else:
        registry = StatusRegistry(tmp_path / STATUS_FILE, "watch")
        registry.add(gate)
        registry.stop()
        registry.write()
    result = sightline("cameras", "--folder", tmp_path)
    assert result.code == 0
    assert "stopped" in result.out
    assert "live" not in result.out
    assert "note: watch is not running" in result.err
    shown = sightline("cameras", "--folder", tmp_path, "--json").data
    assert (shown["running"], shown["cameras"][0]["state"]) == (False, "stopped")


def test_a_clip_replaces_no_file(sightline: Command, tmp_path: Path) -> None:
    out = tmp_path / "evidence.mp4"
    out.write_bytes(b"kept")
    times = ("--from", "2024-03-01T08:00:00Z", "--to", "2024-03-01T08:01:00Z")
    where = ("--stream", "gate", "--recording", tmp_path / "tape", *times)
    refused = sightline("clip", out, *where)
    assert (refused.code, refused.out) == (2, "")
    assert "evidence.mp4: the file exists; choose another name, or pass --force to replace it" in refused.err
    forced = sightline("clip", out, *where, "--force")
    assert "nothing is recorded" in forced.err
    assert out.read_bytes() == b"kept"
