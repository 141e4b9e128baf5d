"""Files into a real store, with encoders that only count."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.errors import StoreFull, UsageError
from index.records import FrameRecords, Segment, rfc3339
from index.store import Store
from ingest.file_ingest import IngestProgress, ingest_sources
from ingest.footage_report import FootageAmount
from tests.support.footage import make_video
from tests.support.records import PAIR


class Grey:
    """Vectors that say how bright a frame is."""

    encoded = 0

    def frame_features(self, frames: Sequence[NDArray[np.uint8]]) -> Any:
        self.encoded += len(frames)
        vectors = np.ones((len(frames), 16), np.float32)
        vectors[:, 0] = [frame.mean() for frame in frames]
        return vectors


class Patches:
    def encode_frames(self, frames: Sequence[NDArray[np.uint8]], clips: Any = None) -> Any:
        n = len(frames)
        return np.ones((n, 12), np.float32), np.ones((n, 4, 12), np.float16)


@pytest.fixture
def encoders() -> Any:
    return SimpleNamespace(frame=Grey(), patch=Patches(), pair=PAIR)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "footage" / "front_2024-03-01T08-00-00Z.mp4"
    path.parent.mkdir()
    make_video(path, seconds=25, gop=10)
    return path


def test_a_file_becomes_segments(store: Store, encoders: Any, film: Path) -> None:
    told: list[IngestProgress] = []
    report = ingest_sources([film], store=store, encoders=encoders, segment_seconds=10, on_progress=told.append)
    assert report.files[0].model_dump() == {
        "file": str(film),
        "stream_id": "front",
        "frames": 25,
        "repeated": 0,
        "seconds": 25.0,
        "start": "2024-03-01T08:00:00Z",
        "clock": "filename (UTC)",
        "decode_mode": "keyframes",
        "skipped": False,
        "problem": None,
        "footage": {
            "stored": {"files": 0, "segments": 0, "frames": 25, "seconds": 25.0},
            "repeated": {"files": 0, "segments": 0, "frames": 0, "seconds": 0.0},
            "dropped": {"files": 0, "segments": 0, "frames": 0, "seconds": 0.0},
        },
    }
    assert [(s.chunk, s.frames, s.final) for s in store.segments()] == [(0, 10, False), (1, 10, False), (2, 5, True)]
    window = store.window()
    assert (np.diff(window.captured_at) == 1_000_000).all()
    assert datetime.fromtimestamp(window.captured_at[0] / 1e6, UTC).isoformat() == "2024-03-01T08:00:00+00:00"
    assert store.pictures(window)[0][:2] == b"\xff\xd8"
    assert told[-1].frames == 25
    assert store.verify() == []


def test_running_again_skips_without_encoding(store: Store, encoders: Any, film: Path) -> None:
    ingest_sources([film.parent], store=store, encoders=encoders)
    before = encoders.frame.encoded
    report = ingest_sources([film.parent], store=store, encoders=encoders)
    assert report.files[0].skipped
    assert encoders.frame.encoded == before


class Breaking:
    """A store whose disk is full after some commits."""

    def __init__(self, store: Store, commits: int) -> None:
        self.store, self.left = store, commits

    def append(self, segment: Segment, frames: FrameRecords | None) -> Segment | None:
        if self.left == 0:
            raise StoreFull("no space left")
        self.left -= 1
        return self.store.append(segment, frames)

    def segments(self, stream_id: str | None = None) -> list[Segment]:
        return self.store.segments(stream_id)

    def seal(self) -> int:
        return self.store.seal()


def test_what_was_stopped_is_finished_from_where_it_was(store: Store, encoders: Any, film: Path) -> None:
    with pytest.raises(StoreFull):
        ingest_sources([film], store=Breaking(store, 1), encoders=encoders, segment_seconds=10)
    assert store.streams()[0].frames == 10
    encoders.frame.encoded = 0
    ingest_sources([film], store=store, encoders=encoders, segment_seconds=10)
    assert encoders.frame.encoded == 15  # the first ten seconds were not seen again
    assert store.streams()[0].frames == 25
    assert store.verify() == []


def test_one_bad_file_does_not_stop_the_rest(store: Store, encoders: Any, film: Path) -> None:
    (film.parent / "broken.mp4").write_bytes(b"nothing" * 100)
    raw = film.read_bytes()
    report = ingest_sources([film.parent, film.parent / "absent.mp4"], store=store, encoders=encoders)
    assert len(raw) > 0
    assert sorted(bool(f.problem) for f in report.files) == [False, True, True]
    assert report.frames == 25


def test_the_start_must_fit(store: Store, encoders: Any, film: Path, tmp_path: Path) -> None:
    make_video(film.parent / "other.mp4", seconds=1)
    with pytest.raises(UsageError, match="one file"):
        ingest_sources([film.parent], store=store, encoders=encoders, start=datetime(2024, 1, 1, tzinfo=UTC))
    with pytest.raises(UsageError, match="cannot name a stream"):
        ingest_sources([film], store=store, encoders=encoders, stream="../up")


@pytest.mark.parametrize(
    ("name", "begins", "clock"),
    [
        ("20240701_080000", "2024-07-01T06:00:00Z", "Europe/Amsterdam"),
        ("20240701_080000+0100", "2024-07-01T07:00:00Z", "+01:00"),
        ("20241027_023000", "2024-10-27T00:30:00Z", "Europe/Amsterdam; the first of two equal times"),
        (
            "20240331_023000",
            "2024-03-31T01:30:00Z",
            "Europe/Amsterdam; a time that does not occur, read by the offset before clocks change",
        ),
    ],
)
def test_the_zone_of_a_clock_is_stored(
    store: Store, encoders: Any, tmp_path: Path, name: str, begins: str, clock: str
) -> None:
    make_video(tmp_path / f"front_{name}.mp4", seconds=2)
    report = ingest_sources(
        [tmp_path / f"front_{name}.mp4"], store=store, encoders=encoders, timezone="Europe/Amsterdam"
    )
    (segment,) = store.segments()
    assert (rfc3339(segment.start), segment.clock) == (begins, f"filename ({clock})")
    assert (report.files[0].start, report.files[0].clock) == (begins, f"filename ({clock})")


def test_what_was_stored_what_repeated_and_what_was_dropped(store: Store, encoders: Any, tmp_path: Path) -> None:
    """Each with its seconds: a second file with some of the seconds, one that ends early, one that is no video."""
    folder = tmp_path / "footage"
    folder.mkdir()
    make_video(folder / "front_2024-03-01T08-00-00Z.mp4", seconds=10)
    make_video(folder / "front_2024-03-01T08-00-06Z.mp4", seconds=10)
    make_video(tmp_path / "whole.mkv", seconds=40, gop=10)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (folder / "yard_2024-03-01T08-00-00Z.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "text.mp4").write_text("no video\n" * 50)
    report = ingest_sources([folder], store=store, encoders=encoders, overlap="first")
    yard = next(file for file in report.files if file.stream_id == "yard")
    assert 0 < yard.frames < 40
    assert yard.footage.dropped.seconds == pytest.approx(40 - yard.seconds, abs=0.2)
    assert report.footage.stored == FootageAmount(frames=16 + yard.frames, seconds=16 + yard.frames)
    assert report.footage.repeated == FootageAmount(frames=4, seconds=4)
    assert (report.footage.dropped.files, report.footage.dropped.seconds) == (2, yard.footage.dropped.seconds)
    again = ingest_sources([folder], store=store, encoders=encoders, overlap="first")
    assert again.footage.stored == FootageAmount()
    assert again.footage.repeated.frames == report.footage.stored.frames
    assert str(again.footage).startswith(f"stored: nothing; repeated: {16 + yard.frames} frames, {16 + yard.frames} s")
