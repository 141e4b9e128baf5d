"""The spool, the supervisor's sink thread, back-off, lists of cameras, and the status file."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import SourceNotFound, StoreFull, UsageError
from ingest.live.camera import backoff_seconds
from ingest.live.config import CameraList, LiveSettings, cameras_of, read_cameras
from ingest.live.spool import Spool, SpooledSegment
from ingest.live.status import CameraState, CameraTotals, StatusRegistry, read_status
from ingest.live.supervisor import STATUS_FILE, run_live
from ingest.segments.names import parse_name, segment_name


def spool_file(folder: Path, start: int, size: int = 100, stream: str = "gate") -> SpooledSegment:
    """Write a file into the spool's folder without queueing it."""
    name = segment_name(stream, start * 1_000_000, 1.0, "video/mp4")
    path = folder / "spool" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    segment = parse_name(name)
    assert segment is not None
    return SpooledSegment(segment, path, size, 10)


def test_segments_are_ordered_and_recovered(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10_000)
    for start in (1, 2, 3):
        one = spool_file(tmp_path, start)
        spool.put(one.segment, one.size, one.frames)
    found = spool.get(2, timeout=1)
    assert [one.segment.start for one in found] == [1_000_000, 2_000_000]
    assert len(spool) == 3
    spool.remove(found[:1])
    assert (len(spool), spool.bytes) == (2, 200)
    (tmp_path / "spool" / "gate" / "half.mp4.0123abcd.part").write_bytes(b"x")
    (tmp_path / "cameras.json.0123abcd.part").write_bytes(b"x")
    spool.close()
    again = Spool(
        tmp_path, max_bytes=10_000
    )  # as after a crash: what was not removed is there, temporary files are not
    assert [one.segment.start for one in again.get(9, timeout=0)] == [2_000_000, 3_000_000]
    assert again.get(9, timeout=0) == []
    assert not list(tmp_path.rglob("*.part"))
    again.close()


def test_a_full_spool_drops_the_oldest_and_reports_it(tmp_path: Path) -> None:
    dropped: list[SpooledSegment] = []
    spool = Spool(tmp_path, max_bytes=250, on_drop=dropped.append)
    for start in range(1, 6):
        one = spool_file(tmp_path, start)
        spool.put(one.segment, one.size, one.frames)
    assert [one.segment.start for one in dropped] == [1_000_000, 2_000_000, 3_000_000]
    assert not any(one.path.exists() for one in dropped)
    assert [one.segment.start for one in spool.get(9, timeout=0)] == [4_000_000, 5_000_000]
    spool.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=250)
    with pytest.raises(UsageError, match="another watch or record"):
        Spool(tmp_path, max_bytes=250, lock_seconds=0.2)
    spool.close()
    Spool(tmp_path, max_bytes=250).close()


class FailingSink:
    """Raises the given errors first, then accepts segments."""

    gather_seconds, max_segments = 0.0, 10

    def __init__(self, errors: list[Exception]) -> None:
        self.errors, self.written = errors, list[int]()
        self.done = threading.Event()

    def write(self, segments: object) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.written += [one.segment.start for one in segments]  # type: ignore[attr-defined]
        self.done.set()


def test_a_failed_write_is_retried(tmp_path: Path) -> None:
    spool_file(tmp_path, 1)
    spool_file(tmp_path, 2)
    sink, stop = FailingSink([StoreFull("full"), OSError("net")]), threading.Event()
    settings = LiveSettings(folder=tmp_path)
    run = threading.Thread(
        target=run_live, args=(CameraList(), settings, sink), kwargs={"command": "watch", "stop": stop}
    )
    run.start()
    assert sink.done.wait(300)
    stop.set()
    run.join(300)
    assert sink.written == [1_000_000, 2_000_000]
    assert not list(tmp_path.rglob("*.mp4"))
    assert read_status(tmp_path / STATUS_FILE).waiting_segments == 0


def test_an_error_that_a_retry_does_not_cure_ends_the_supervisor(tmp_path: Path) -> None:
    spool_file(tmp_path, 1)
    with pytest.raises(UsageError, match="never"):
        run_live(
            CameraList(),
            LiveSettings(folder=tmp_path),
            FailingSink([UsageError("never")]),
            command="watch",
            stop=threading.Event(),
        )
    assert list(tmp_path.rglob("*.mp4"))  # it is kept for the next start


def test_the_end_says_what_the_full_spool_dropped_and_what_waits(tmp_path: Path) -> None:
    """Of an earlier run, whose cameras are not in the list any more."""
    for start in range(4):
        spool_file(tmp_path, start, size=400_000)
    spool_file(tmp_path, 9, size=100, stream="yard")
    dropped: list[str] = []
    stop = threading.Event()
    stop.set()
    report = run_live(
        CameraList(),
        LiveSettings(folder=tmp_path, spool_bytes=2**20),
        FailingSink([StoreFull("full")] * 9),
        command="record",
        stop=stop,
        on_drop=lambda spooled: dropped.append(spooled.segment.stream),
    )
    assert dropped == ["gate", "gate"]
    assert report.cameras == {"gate": CameraTotals()}  # how many frames they had is not known any more
    assert (report.waiting_segments, report.waiting_bytes) == (3, 800_100)
    assert str(report) == "3 segments, 0.8 MB, wait for the next start"


def test_the_totals_of_a_stream_outlive_its_camera(tmp_path: Path) -> None:
    registry = StatusRegistry(tmp_path / "cameras.json", "watch")
    registry.add(CameraState(stream="gate", url="rtsp://h/x"))
    registry.count("gate", frames=70, dropped=20, segments=7)
    registry.remove("gate")
    registry.count("gate", dropped=10)  # of a segment that had waited
    registry.add(CameraState(stream="gate", url="rtsp://h/y"))
    registry.add(CameraState(stream="yard", url="rtsp://h/z"))
    registry.count("gate", frames=30, reconnects=1)
    assert registry.report().cameras == {
        "gate": CameraTotals(frames=100, dropped=30, segments=7, reconnects=1),
        "yard": CameraTotals(),
    }
    assert [camera.frames for camera in registry.snapshot().cameras] == [30, 0]
    assert str(registry.report()) == "gate: 30 of 100 frames were received and dropped"


@given(attempt=st.integers(1, 10_000), first=st.floats(0.01, 10), more=st.floats(1, 100), jitter=st.floats(0, 0.999))
def test_the_pause_doubles_up_to_the_longest(attempt: int, first: float, more: float, jitter: float) -> None:
    largest = first * more
    pause = backoff_seconds(attempt, first, largest, jitter=jitter)
    whole = min(largest, first * 2.0 ** min(attempt - 1, 30))
    assert whole / 2 <= pause <= whole <= largest


def test_cameras_are_named_by_their_urls_or_explicitly(tmp_path: Path) -> None:
    listed = cameras_of(["rtsp://u:p@h/live/front", "back=rtmp://h/app/x", "udp://:5000", "loop:/a/b.mp4"])
    assert [camera.stream for camera in listed.cameras] == ["front", "back", "udp-5000", "b"]
    assert listed.cameras[0].shown == "rtsp://***@h/live/front"
    file = tmp_path / "cameras.toml"
    for text, message in (
        ("cameras = 7", "cameras"),
        ('[[cameras]]\nstream = "a"\nurl = "rtsp://u:hunter2@h/"\nport = 7', "port"),
        ('[[cameras]]\nstream = "a b"\nurl = "rtsp://u:hunter2@h/"', "stream"),
        ('[[cameras]]\nstream = "a"\nurl = "gopher://u:hunter2@h/"', "not a live source"),
        ('[[cameras]]\nstream = "a"\nurl = "rtsp://u:hunter2@h/"\ntransport = "quic"', "transport"),
        ("[[cameras", "not a list of cameras"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=message) as caught:
            read_cameras(file)
        assert "hunter2" not in str(caught.value)


def test_the_status_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    registry = StatusRegistry(tmp_path / "cameras.json", "watch")
    registry.add(CameraState(stream="gate", url="rtsp://h/x"))
    registry.change("gate", state="live", newest=datetime(2026, 1, 1, tzinfo=UTC), codec="h264")
    registry.count("gate", frames=7, dropped=1)
    registry.count("gate", frames=7)
    registry.change("gone", state="live")
    registry.write()
    state = read_status(tmp_path / "cameras.json")
    assert state.running
    (camera,) = state.cameras
    assert (camera.state, camera.frames, camera.dropped, camera.codec) == ("live", 14, 1, "h264")
    old = state.model_copy(update={"updated": datetime.now(UTC) - timedelta(minutes=1)})
    assert not old.running
    registry.stop()
    registry.write()
    stopped = read_status(tmp_path / "cameras.json")
    assert not stopped.running
    assert [(camera.state, camera.frames) for camera in stopped.cameras] == [("stopped", 14)]
    (tmp_path / "cameras.json").write_text("{")
    with pytest.raises(SourceNotFound):
        read_status(tmp_path / "cameras.json")
