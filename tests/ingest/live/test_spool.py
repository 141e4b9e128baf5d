"""What waits between cameras and store: bounded, found again, one owner; pauses; lists of cameras; state."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import SourceNotFound, StoreFull, UsageError
from ingest.live.camera import pause_before
from ingest.live.config import CameraList, LiveSettings, cameras_of, read_cameras
from ingest.live.spool import Spool, SpooledSegment
from ingest.live.status import CameraState, StateBoard, read_state
from ingest.live.supervisor import STATE_FILE, run_live
from ingest.segments.names import parse_name, segment_name


def lay(folder: Path, start: int, size: int = 100, stream: str = "gate") -> SpooledSegment:
    """A file in the spool, not yet put."""
    name = segment_name(stream, start * 1_000_000, 1.0, "video/mp4")
    path = folder / "spool" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    segment = parse_name(name)
    assert segment is not None
    return SpooledSegment(segment, path, size, 10)


def test_segments_wait_in_order_and_are_found_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10_000)
    for start in (1, 2, 3):
        one = lay(tmp_path, start)
        spool.put(one.segment, one.size, one.frames)
    taken = spool.take(2, timeout=1)
    assert [one.segment.start for one in taken] == [1_000_000, 2_000_000]
    assert len(spool) == 3
    spool.done(taken[:1])
    assert (len(spool), spool.bytes) == (2, 200)
    (tmp_path / "spool" / "gate" / "half.mp4.part").write_bytes(b"x")
    spool.close()
    again = Spool(tmp_path, max_bytes=10_000)  # as after a crash: what was not done is there, what was half is not
    assert [one.segment.start for one in again.take(9, timeout=0)] == [2_000_000, 3_000_000]
    assert again.take(9, timeout=0) == []
    assert not list(tmp_path.rglob("*.part"))
    again.close()


def test_a_full_spool_drops_the_oldest_and_says_so(tmp_path: Path) -> None:
    dropped: list[SpooledSegment] = []
    spool = Spool(tmp_path, max_bytes=250, on_drop=dropped.append)
    for start in range(1, 6):
        one = lay(tmp_path, start)
        spool.put(one.segment, one.size, one.frames)
    assert [one.segment.start for one in dropped] == [1_000_000, 2_000_000, 3_000_000]
    assert not any(one.path.exists() for one in dropped)
    assert [one.segment.start for one in spool.take(9, timeout=0)] == [4_000_000, 5_000_000]
    spool.close()


def test_a_folder_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.live.spool._PATIENCE", 0.2)
    spool = Spool(tmp_path, max_bytes=250)
    with pytest.raises(UsageError, match="another watch or record"):
        Spool(tmp_path, max_bytes=250)
    spool.close()
    Spool(tmp_path, max_bytes=250).close()


class Taker:
    """Refuses the first few times."""

    gather_seconds, max_segments = 0.0, 10

    def __init__(self, errors: list[Exception]) -> None:
        self.errors, self.taken = errors, list[int]()
        self.done = threading.Event()

    def write(self, segments: object) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.taken += [one.segment.start for one in segments]  # type: ignore[attr-defined]
        self.done.set()


def test_what_the_taker_refuses_for_now_is_tried_again(tmp_path: Path) -> None:
    lay(tmp_path, 1)
    lay(tmp_path, 2)
    taker, stop = Taker([StoreFull("full"), OSError("net")]), threading.Event()
    settings = LiveSettings(folder=tmp_path)
    run = threading.Thread(
        target=run_live, args=(CameraList(), settings, taker), kwargs={"command": "watch", "stop": stop}
    )
    run.start()
    assert taker.done.wait(30)
    stop.set()
    run.join(30)
    assert taker.taken == [1_000_000, 2_000_000]
    assert not list(tmp_path.rglob("*.mp4"))
    assert read_state(tmp_path / STATE_FILE).waiting_segments == 0


def test_what_waiting_does_not_cure_ends_the_command(tmp_path: Path) -> None:
    lay(tmp_path, 1)
    with pytest.raises(UsageError, match="never"):
        run_live(
            CameraList(),
            LiveSettings(folder=tmp_path),
            Taker([UsageError("never")]),
            command="watch",
            stop=threading.Event(),
        )
    assert list(tmp_path.rglob("*.mp4"))  # it is still there for the next


@given(attempt=st.integers(1, 10_000), first=st.floats(0.01, 10), more=st.floats(1, 100), chance=st.floats(0, 0.999))
def test_pauses_double_up_to_the_longest_with_jitter(attempt: int, first: float, more: float, chance: float) -> None:
    most = first * more
    pause = pause_before(attempt, first, most, chance=chance)
    whole = min(most, first * 2.0 ** min(attempt - 1, 30))
    assert whole / 2 <= pause <= whole <= most


def test_cameras_are_named_by_their_urls_or_outright(tmp_path: Path) -> None:
    listed = cameras_of(["rtsp://u:p@h/live/front", "back=rtmp://h/app/x", "udp://:5000", "loop:/a/b.mp4"])
    assert [camera.stream for camera in listed.cameras] == ["front", "back", "udp-5000", "b"]
    assert listed.cameras[0].shown == "rtsp://***@h/live/front"
    file = tmp_path / "cameras.toml"
    for text, said in (
        ("cameras = 7", "cameras"),
        ('[[cameras]]\nstream = "a"\nurl = "rtsp://u:hunter2@h/"\nport = 7', "port"),
        ('[[cameras]]\nstream = "a b"\nurl = "rtsp://u:hunter2@h/"', "stream"),
        ('[[cameras]]\nstream = "a"\nurl = "gopher://u:hunter2@h/"', "not a live source"),
        ('[[cameras]]\nstream = "a"\nurl = "rtsp://u:hunter2@h/"\ntransport = "quic"', "transport"),
        ("[[cameras", "not a list of cameras"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=said) as caught:
            read_cameras(file)
        assert "hunter2" not in str(caught.value)


def test_the_state_is_read_by_another_as_it_was_written(tmp_path: Path) -> None:
    board = StateBoard(tmp_path / "state.json", "watch")
    board.add(CameraState(stream="gate", url="rtsp://h/x"))
    board.change("gate", state="live", newest=datetime(2026, 1, 1, tzinfo=UTC), codec="h264")
    board.count("gate", frames=7, dropped=1)
    board.count("gate", frames=7)
    board.change("gone", state="live")
    board.write()
    state = read_state(tmp_path / "state.json")
    assert state.running
    (camera,) = state.cameras
    assert (camera.state, camera.frames, camera.dropped, camera.codec) == ("live", 14, 1, "h264")
    old = state.model_copy(update={"updated": datetime.now(UTC) - timedelta(minutes=1)})
    assert not old.running
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(SourceNotFound):
        read_state(tmp_path / "state.json")
