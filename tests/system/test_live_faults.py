"""Cameras and networks that fail: each failure is seen, said and survived, and the camera beside it notices nothing.

LIVE_CUT_SECONDS is how long the network is cut; 30 for the long trial.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from ingest.live.status import read_status
from ingest.live.supervisor import STATUS_FILE
from tests.support.live import (
    Live,
    Proxy,
    RtspServer,
    convert,
    emitted,
    footage,
    kept,
    live,
    long_footage,
    rtsp,
    seconds_kept,
    seconds_stored,
)

__all__ = ["footage", "long_footage", "rtsp"]
pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]
CUT = float(os.environ.get("LIVE_CUT_SECONDS", "4"))
QUICK = {"SIGHTLINE_LIVE_STALL_SECONDS": "8", "SIGHTLINE_LIVE_CONNECT_SECONDS": "8"}
"""For tests of a camera that sends nothing: soon, and longer than a busy machine keeps the camera beside it waiting."""


@pytest.fixture
def proxy(rtsp: RtspServer) -> Iterator[Proxy]:
    between = Proxy(rtsp.port)
    try:
        yield between
    finally:
        between.close()


def child_of(running: Live, url: str) -> int:
    """The process that reads a camera: the one whose connection goes there is found by its parent and age."""
    children = Path(f"/proc/{running.process.pid}/task").glob("*/children")
    found = sorted({int(pid) for path in children for pid in path.read_text().split()})
    return next(pid for pid in found if _connected(pid, int(url.rpartition(":")[2].partition("/")[0])))


def _connected(pid: int, port: int) -> bool:
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[9] in sockets and int(row[2].rpartition(":")[2], 16) == port for row in rows)


def undisturbed(tape: Path, stream: str) -> None:
    """Every frame of the camera beside is there: its segments touch."""
    segments = kept(tape, stream)
    assert len(segments) >= 3
    assert all(abs(b.start - a.end) < 1000 for a, b in pairwise(segments))


def test_a_camera_that_stalls_and_comes_back(
    tmp_path: Path, rtsp: RtspServer, proxy: Proxy, long_footage: Path
) -> None:
    """Packets stop while the connection stays. What had come is kept; the rest begins with the next connection."""
    rtsp.order("mount", "/far", "h264", long_footage)
    urls = [rtsp.url("far", proxy.port), f"near=loop:{long_footage}"]
    with live(tmp_path, "record", *urls, "--to", tmp_path / "tape", "--seconds", 2, **QUICK) as running:
        running.until_segments("far", 2)
        frames = running.until_state("far", "live").frames
        proxy.holding.set()
        stalled = running.until_state("far", "stalled")
        assert "sends nothing" in str(stalled.why) or "does not answer" in str(stalled.why)
        assert stalled.frames >= frames
        running.until_state("near", "live")
        proxy.mend()
        running.until_state("far", "live")
        running.until_segments("far", stalled.segments + 2)
        back = running.camera("far")
        assert back is not None
        assert back.reconnects >= 1
        running.stop()
    undisturbed(tmp_path / "tape", "near")
    segments = kept(tmp_path / "tape", "far")
    gaps = [(b.start - a.end) / 1e6 for a, b in pairwise(segments)]
    assert all(gap > -0.001 for gap in gaps)
    assert len([gap for gap in gaps if gap > 0.5]) >= 1
    held = sum(segment.duration for segment in segments[: next(i for i, gap in enumerate(gaps) if gap > 0.5) + 1])
    assert held * 10 >= frames - 3  # what had come before the stall was not lost with it


def test_a_camera_that_accepts_and_says_nothing(tmp_path: Path, long_footage: Path) -> None:
    """From the first moment: the connection is open and no byte ever comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mute=rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        arguments = ("record", url, f"near=loop:{long_footage}", "--to", tmp_path / "tape", "--seconds", 2)
        with live(tmp_path, *arguments, **QUICK) as running:
            stalled = running.until_state("mute", "stalled")
            assert "sends nothing" in str(stalled.why)
            running.until_segments("near", 3)
            running.stop()
    undisturbed(tmp_path / "tape", "near")


def test_a_network_that_is_cut(
    tmp_path: Path, rtsp: RtspServer, proxy: Proxy, long_footage: Path, profile: str
) -> None:
    """What is recorded before and after has every second once, and the gap is no longer than the cut."""
    rtsp.order("mount", "/far", "h264", long_footage)
    urls = [rtsp.url("far", proxy.port), f"near=loop:{long_footage}"]
    with live(tmp_path, "record", *urls, "--to", tmp_path / "tape", "--seconds", 2) as running:
        running.until_segments("far", 2)
        began = time.time()
        proxy.cut()
        newest = proxy.newest
        failed = running.until_state("far", "failed")
        assert failed.why
        refused = proxy.accepted
        running.until("the cut is over", lambda: time.time() - began > CUT, CUT + 300)
        running.until("it kept trying", lambda: proxy.accepted > refused)
        ends = time.time()
        proxy.mend()
        running.until_state("far", "live")
        running.until_segments("far", failed.segments + 2)
        running.stop()
    undisturbed(tmp_path / "tape", "near")
    segments = kept(tmp_path / "tape", "far")
    assert all(b.start >= a.end - 1000 for a, b in pairwise(segments))
    far = seconds_kept(tmp_path / "tape", segments)
    jumps = [(a, b) for a, b in pairwise(far) if b - a != 1]
    assert len(jumps) == 1
    ((before, after),) = jumps
    assert before >= int(newest) - 3  # what a group of pictures had begun with may wait for its next key frame
    assert after <= ends + 120


def test_a_camera_that_comes_back_with_another_codec_and_size(
    tmp_path: Path, rtsp: RtspServer, footage: Path, long_footage: Path, profile: str
) -> None:
    """H.264 of 320 × 240 before it reboots, MPEG-4 of 160 × 120 after: one stream in the store, each second once."""
    other = convert(
        footage, tmp_path / "other.mp4", "-c:v", "mpeg4", "-g", "10", "-vf", "scale=160:120", "-q:v", "5", loops=2
    )
    rtsp.order("mount", "/cam", "h264", long_footage)
    arguments = ("watch", rtsp.url("cam"), "--store", tmp_path / "store", "--profile", profile, "--seconds", 2)
    with live(tmp_path, *arguments) as running:
        running.until_segments("cam", 2)
        before = running.until_state("cam", "live")
        assert (before.codec, before.width, before.height) == ("h264", 320, 240)
        rtsp.order("unmount", "/cam")
        running.until("it is not live", lambda: (c := running.camera("cam")) and c.state != "live")
        rtsp.order("mount", "/cam", "mpeg4", other)
        running.until("the new one is live", lambda: (c := running.camera("cam")) and c.codec == "mpeg4")
        after = running.until_state("cam", "live")
        assert (after.width, after.height) == (160, 120)
        running.until_segments("cam", before.segments + 3)
        running.stop()
    seconds = seconds_stored(tmp_path / "store", "cam")
    assert all(b > a for a, b in pairwise(seconds))
    assert len([1 for a, b in pairwise(seconds) if b - a > 1]) <= 1


def test_a_process_that_crashes_is_that_cameras_alone(tmp_path: Path, rtsp: RtspServer, long_footage: Path) -> None:
    """kill -9 of a camera's process in the middle of a segment: it is started again, the other never stops."""
    rtsp.order("mount", "/far", "h264", long_footage)
    urls = [rtsp.url("far"), f"near=loop:{long_footage}"]
    with live(tmp_path, "record", *urls, "--to", tmp_path / "tape", "--seconds", 2) as running:
        running.until_segments("far", 1)
        before = running.until_state("far", "live")
        os.kill(child_of(running, rtsp.url("far")), signal.SIGKILL)
        # The status shows it until the camera is live again, which may be soon.
        running.until("it failed", lambda: "exit code -9" in running.log.read_text())
        running.until("it reconnected", lambda: (c := running.camera("far")) and c.reconnects > before.reconnects)
        running.until_state("far", "live")
        running.until_segments("far", before.segments + 2)
        running.until_segments("near", 3)
        running.stop()
    undisturbed(tmp_path / "tape", "near")


def test_the_end_says_what_the_full_spool_dropped(tmp_path: Path, footage: Path) -> None:
    """A tape that cannot be written to and a spool of 1 MiB: each second is dropped or waits, and is counted."""
    noise = ("-vf", "noise=alls=100:allf=t", "-c:v", "libx264", "-preset", "ultrafast", "-g", "10")
    noisy = convert(footage, tmp_path / "noisy.mp4", *noise)
    (tmp_path / "tape").write_text("a file in the place of the folder")
    arguments = ("record", f"cam=loop:{noisy}", "--to", tmp_path / "tape", "--seconds", 1, "--json")
    with live(tmp_path, *arguments, **QUICK, SIGHTLINE_LIVE_SPOOL_BYTES=str(2**20)) as running:
        running.until("three segments are dropped", lambda: (c := running.camera("cam")) and c.dropped > 20)
        report = emitted(running.stop())
    (camera,) = read_status(running.folder / STATUS_FILE).cameras
    total, dropped = report["cameras"]["cam"], report["footage"]["dropped"]
    assert (report["kept"], report["sent"], report["footage"]["stored"]["segments"]) == (0, 0, 0)
    assert dropped["segments"] >= 3
    assert total == {name: getattr(camera, name) for name in total}
    assert total["segments"] == dropped["segments"] + report["waiting_segments"]
    assert report["waiting_segments"] == len(kept(running.folder / "spool", "cam")) > 0
    assert total["dropped"] == pytest.approx(10 * dropped["seconds"], abs=dropped["segments"])


def test_what_waited_when_it_was_killed_is_stored_by_the_next(tmp_path: Path, long_footage: Path, profile: str) -> None:
    """kill -9 of the whole command with segments in the spool: none lost, none twice."""
    arguments = (
        "watch",
        f"cam=loop:{long_footage}",
        "--store",
        tmp_path / "store",
        "--profile",
        profile,
        "--seconds",
        1,
    )
    slow = {"SIGHTLINE_CONSUME_COMMIT_SECONDS": "600", "SIGHTLINE_CONSUME_COMMIT_SEGMENTS": "10000"}
    with live(tmp_path, *arguments, **slow) as running:
        running.until_segments("cam", 2)
        running.until("segments wait", lambda: kept(running.folder / "spool", "cam"))
        running.process.kill()
        assert running.process.wait() == -signal.SIGKILL
    with (tmp_path / "live" / "lock").open() as lock:  # free once the camera's process has closed what it had
        fcntl.flock(lock, fcntl.LOCK_EX)
    left = kept(tmp_path / "live" / "spool", "cam")
    assert left
    spooled = seconds_kept(tmp_path / "live" / "spool", left)
    with live(tmp_path, *arguments) as running:
        running.until_segments("cam", 1)
        running.stop()
    seconds = seconds_stored(tmp_path / "store", "cam")
    assert all(b > a for a, b in pairwise(seconds))
    assert set(spooled) <= set(seconds)
