"""Segments decoded into the frames of the UTC seconds that they cover."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from index.errors import DecodeFailed, MessageInvalid, NotVideo
from index.records import FrameRecords
from ingest.decoding.frame import FrameBatch
from ingest.decoding.limits import DecodeLimits
from ingest.embedding import encode_records
from ingest.segments.frames import PartEncoder, SegmentFrames, decode_segment
from tests.support.brightness import ENCODERS
from tests.support.footage import make_video

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make_video(path, seconds=4, gop=10)
    return path


def decode(path: Path, start: int, duration: float = 4.0) -> SegmentFrames:
    return decode_segment(path, name="front at 08:00", start=start, duration=duration, limits=DecodeLimits())


def test_a_segment_that_begins_inside_a_second_keeps_to_the_grid(film: Path) -> None:
    whole = decode(film, BEGAN)
    assert [t - BEGAN for t in whole.captured_at] == [0, 1_000_000, 2_000_000, 3_000_000]
    # Key frames stand at .7: of each second the first of them; second 8:00:00 has only what is left of it, and the last
    # second, which ends before its key frame, the first frame there is.
    later = decode(film, BEGAN + 700_000)
    assert [t - BEGAN for t in later.captured_at] == [700_000, 1_700_000, 2_700_000, 3_700_000, 4_000_000]


def test_a_segment_that_is_longer_than_its_duration_is_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "long.mp4", seconds=9, gop=10)
    with pytest.raises(MessageInvalid, match="front at 08:00: the segment is longer than its duration of 2 s"):
        decode(tmp_path / "long.mp4", BEGAN, 2.0)


def test_errors_name_the_segment_and_not_its_file(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"not a video" * 99)
    with pytest.raises(NotVideo, match=r"^front at 08:00: not a video"):
        decode(tmp_path / "text.mp4", BEGAN)


def test_a_truncated_segment_keeps_its_frames_and_the_problem(tmp_path: Path) -> None:
    make_video(tmp_path / "whole.mkv", seconds=30, size=(160, 120), gop=20)
    raw = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(raw[: len(raw) // 2])
    frames = decode(tmp_path / "cut.mkv", BEGAN, 30.0)
    assert 5 < len(frames) == len(frames.pixels) == len(frames.pts_seconds) < 30
    assert frames.problem is not None
    assert frames.problem.startswith("front at 08:00: ")
    (tmp_path / "none.mkv").write_bytes(raw[:100])
    with pytest.raises((NotVideo, DecodeFailed)):
        decode(tmp_path / "none.mkv", BEGAN, 30.0)


def test_a_long_segment_is_encoded_in_parts_and_its_pixels_are_never_all_held(tmp_path: Path) -> None:
    seconds, frame_bytes = 120, 320 * 240 * 3
    make_video(tmp_path / "long.mp4", seconds=seconds, rate=2, gop=10, size=(320, 240))
    parts: list[int] = []
    held: list[int] = []

    def encode(frames: FrameBatch) -> FrameRecords:
        parts.append(len(frames))
        held.append(sum(pixels.nbytes for pixels in frames.pixels))
        return encode_records(ENCODERS, [("gate", "given", frames)], batch_frames=32)[0]

    def streamed(max_frames: int, max_bytes: int) -> SegmentFrames:
        return decode_segment(
            tmp_path / "long.mp4",
            name="gate",
            start=BEGAN,
            duration=seconds,
            limits=DecodeLimits(),
            parts=PartEncoder(encode, max_frames=max_frames, max_bytes=max_bytes),
        )

    tracemalloc.start()
    try:
        by_bytes = streamed(32, 5 * frame_bytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parts == [5] * 23
    assert max(held) == 5 * frame_bytes
    assert peak < 15 * frame_bytes  # of 120: one part, the next frame, and copies of it
    whole = decode(tmp_path / "long.mp4", BEGAN, float(seconds))
    times = [at for records in by_bytes.encoded for at in records.captured_at.tolist()]
    assert times + by_bytes.captured_at == whole.captured_at
    assert len(times) == 115
    expected = encode_records(ENCODERS, [("gate", "given", whole)], batch_frames=32)[0]
    assert [p for records in by_bytes.encoded for p in records.pictures] == expected.pictures[:115]
    parts.clear()
    assert len(streamed(32, 2**40)) == 120 - 96
    assert parts == [32] * 3
