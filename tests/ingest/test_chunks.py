"""Chunks of a source: batches read ahead, chunks appended in order, and the identity of a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import DecodeFailed, NoFrames
from index.records import FrameRecords, Segment
from ingest import chunks
from ingest.chunks import (
    BATCH_FRAMES,
    ChunkFrames,
    ChunkWriter,
    FrameReader,
    SourceFootage,
    decoding_problem,
    first_missing_chunk,
    source_digest,
    stored_chunks,
)
from ingest.decoding.sandbox import VideoInfo
from tests.support.records import make_records, make_segment

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z
SECOND = 1_000_000
FOOTAGE = SourceFootage("front.mp4", "front", "digest", BEGAN, "given")
PIXELS = np.zeros((1, 1, 3), np.uint8)


class FakeDecoding:
    """Yields frames at these pts, then raises `error`; counts how often its process is killed."""

    def __init__(self, times: Iterable[float], error: BaseException | None = None) -> None:
        self.times, self.error, self.kills = times, error, 0
        self.process = SimpleNamespace(kill=self.kill)

    def kill(self) -> None:
        self.kills += 1

    def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for pts in self.times:
            yield pts, PIXELS
        if self.error is not None:
            raise self.error


def read(decoding: Any, first: float = 0.0, segment_seconds: int = 10) -> list[Any]:
    return list(FrameReader(decoding, BEGAN, first, segment_seconds))


def batches_of(times: list[float], first: float, segment_seconds: int) -> list[tuple[int, list[float]]]:
    """The reference: group all frames by chunk, then split each group into batches."""
    batches = []
    for chunk, group in groupby(times, key=lambda pts: int((pts - first + 1e-6) // segment_seconds)):
        frames = list(group)
        batches += [(chunk, frames[at : at + BATCH_FRAMES]) for at in range(0, len(frames), BATCH_FRAMES)]
    return batches


# ---- reading ahead -------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40_000), max_size=150), st.integers(-10_000, 10_000), st.sampled_from([1, 7, 60]))
def test_batches_are_those_of_grouping_all_frames(gaps: list[int], start: int, segment_seconds: int) -> None:
    first = start / 1000
    times = [first] if gaps else []
    for gap in gaps:
        times.append(times[-1] + gap / 1000)
    got: list[ChunkFrames] = read(FakeDecoding(times), first, segment_seconds)
    assert [(item.chunk, item.frames.pts_seconds) for item in got] == batches_of(times, first, segment_seconds)
    captured = [at for item in got for at in item.frames.captured_at]
    assert captured == [BEGAN + round((pts - first) * 1e6) for pts in times]
    assert all(len(item.frames) == len(item.frames.pixels) for item in got)


def test_a_frame_of_a_chunks_first_second_is_not_put_into_the_chunk_before_by_rounding() -> None:
    got = read(FakeDecoding([0.1 + 9, 0.1 + 10 - 1e-9]), first=0.1)
    assert [item.chunk for item in got] == [0, 1]


def test_an_error_of_the_file_is_the_last_item_and_others_are_raised() -> None:
    failed = DecodeFailed("front.mp4: truncated")
    got = read(FakeDecoding([0.0, 1.0], failed))
    assert got[0].frames.pts_seconds == [0.0, 1.0]
    assert got[1:] == [failed]
    decoding: Any = FakeDecoding([0.0], ZeroDivisionError())
    reader = iter(FrameReader(decoding, BEGAN, 0.0, 10))
    assert isinstance(next(reader), ChunkFrames)
    with pytest.raises(ZeroDivisionError):
        next(reader)
    assert decoding.kills == 1


def test_a_reader_that_is_left_early_ends_its_process_and_thread() -> None:
    before = threading.active_count()
    decoding: Any = FakeDecoding(float(i) for i in range(10**9))
    reader: Any = iter(FrameReader(decoding, BEGAN, 0.0, 10))
    assert len(next(reader).frames) == 10
    reader.close()
    assert decoding.kills == 1
    assert threading.active_count() == before


# ---- appending -----------------------------------------------------------------------------------------------------


class Appended:
    """A store that keeps what is appended, and has some chunks already."""

    def __init__(self, held: frozenset[int] = frozenset()) -> None:
        self.held, self.rows = held, list[tuple[Segment, FrameRecords | None]]()

    def __call__(self, segment: Segment, frames: FrameRecords | None) -> Segment | None:
        self.rows.append((segment, frames))
        return None if segment.chunk in self.held else segment


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=12),
    st.frozensets(st.integers(0, 10)),
)
def test_every_chunk_is_appended_once_with_its_frames(
    first: int, added: list[tuple[int, int]], held: frozenset[int]
) -> None:
    """`added`: how many chunks further, and how many frames."""
    info = VideoInfo("keyframes", 0.0, None, None)
    store = Appended(held)
    writer = ChunkWriter(store, FOOTAGE, info, segment_seconds=10, chunk=first)
    assert writer.empty
    expected: dict[int, list[int]] = {first: []}
    chunk = first
    for step, n in added:
        chunk += step
        taken = len(expected.get(chunk, []))
        records = make_records(start=BEGAN + chunk * 10 * SECOND + taken, n=n, seed=taken)
        writer.add(chunk, records)
        expected.setdefault(chunk, []).extend(records.captured_at.tolist())
    info.mode = "nonref"
    writer.finish("truncated")
    assert [segment.chunk for segment, _ in store.rows] == sorted(expected)
    for number, (segment, kept) in enumerate(store.rows):
        times = expected[segment.chunk]
        following = store.rows[number + 1][0].chunk if number + 1 < len(store.rows) else segment.chunk + 1
        assert segment.frames == len(times)
        assert (kept is None) == (not times)
        assert kept is None or kept.captured_at.tolist() == times
        assert kept is None or len(kept.pictures) == len(kept.patches) == len(times)
        assert segment.start == BEGAN + segment.chunk * 10 * SECOND
        last = segment.chunk == max(expected)
        assert segment.end == (times[-1] + SECOND if last and times else BEGAN + following * 10 * SECOND)
        assert (segment.final, segment.problem) == (last, "truncated" if last else None)
        assert (segment.uri, segment.source, segment.stream_id) == ("front.mp4", "digest", "front")
    frames = {chunk: len(times) for chunk, times in expected.items()}
    assert writer.frames == sum(frames.values())
    assert writer.stored == sum(n for chunk, n in frames.items() if chunk not in held)
    assert writer.empty == (writer.frames == 0)


def test_a_mode_that_changes_is_the_last_chunks_alone() -> None:
    info = VideoInfo("keyframes", 0.0, None, None)
    store = Appended()
    writer = ChunkWriter(store, FOOTAGE, info, segment_seconds=10)
    writer.add(0, make_records(n=2))
    info.mode = "nonref"
    writer.add(1, make_records(start=BEGAN + 10 * SECOND, n=2))
    writer.finish()
    assert [segment.decode_mode for segment, _ in store.rows] == ["keyframes", "nonref"]


# ---- identity ------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 30)))
def test_an_ingest_continues_at_the_first_chunk_that_is_missing(stored: set[int]) -> None:
    rows = {chunk: chunk_row(chunk, chunk + 1) for chunk in stored}
    assert first_missing_chunk(rows, 10) == min(set(range(32)) - stored)


def test_a_gap_is_one_segment_that_covers_the_chunks_without_frames() -> None:
    store = Appended()
    writer = ChunkWriter(store, FOOTAGE, VideoInfo("all", 0.0, None, None), segment_seconds=10)
    writer.add(0, make_records(n=2))
    writer.add(8640, make_records(start=BEGAN + 86_400 * SECOND, n=2))
    writer.finish()
    spans = [(s.chunk, (s.start - BEGAN) // SECOND, (s.end - BEGAN) // SECOND) for s, _ in store.rows]
    assert spans == [(0, 0, 86_400), (8640, 86_400, 86_402)]
    assert first_missing_chunk({s.chunk: s for s, _ in store.rows[:1]}, 10) == 8640


def chunk_row(chunk: int, until: int) -> Segment:
    """The row of a chunk of ten seconds whose segment ends where chunk `until` begins."""
    return make_segment(make_records(n=1), chunk).model_copy(
        update={"start": BEGAN + chunk * 10 * SECOND, "end": BEGAN + until * 10 * SECOND}
    )


def test_chunks_of_another_source_do_not_count() -> None:
    rows = []
    for source, chunk in (("digest", 0), ("other", 1), ("digest", 2)):
        writer_footage = SourceFootage("front.mp4", "front", source, BEGAN, "given")
        store = Appended()
        info = VideoInfo("all", 0.0, None, None)
        ChunkWriter(store, writer_footage, info, segment_seconds=10, chunk=chunk).finish()
        rows += [segment for segment, _ in store.rows]
    fake: Any = SimpleNamespace(segments=lambda stream_id=None: [row for row in rows if row.stream_id == stream_id])
    assert sorted(stored_chunks(fake, FOOTAGE)) == [0, 2]


def test_a_digest_tells_footage_apart_and_copies_not(tmp_path: Path) -> None:
    body = bytes(range(256)) * 10_000  # 2.4 MiB
    (tmp_path / "a.mp4").write_bytes(body)
    (tmp_path / "copy.mp4").write_bytes(body)
    digest = source_digest(tmp_path / "a.mp4", "front", BEGAN)
    assert source_digest(tmp_path / "copy.mp4", "front", BEGAN) == digest
    assert source_digest(tmp_path / "a.mp4", "back", BEGAN) != digest
    assert source_digest(tmp_path / "a.mp4", "front", BEGAN + 1) != digest
    for changed in (b"x" + body[1:], body[:-1] + b"x", body + b"x"):
        (tmp_path / "copy.mp4").write_bytes(changed)
        assert source_digest(tmp_path / "copy.mp4", "front", BEGAN) != digest
    (tmp_path / "empty.mp4").touch()
    assert source_digest(tmp_path / "empty.mp4", "front", BEGAN) != digest


def test_a_file_without_frames_is_no_problem_of_its_last_segment() -> None:
    assert decoding_problem(None) is None
    assert decoding_problem(NoFrames("front.mp4: no frame decodes")) is None
    assert decoding_problem(DecodeFailed("front.mp4: truncated")) == "front.mp4: truncated"


def test_frames_that_wait_are_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 3 MB with room for 10 MB: batches of three, and the decoder waits for its reader."""
    monkeypatch.setattr(chunks, "BATCH_BYTES", 10_000_000)
    given: list[int] = []

    def frames() -> Iterator[tuple[float, NDArray[np.uint8]]]:
        for i in range(20):
            given.append(i)
            yield float(i), np.zeros((1000, 1000, 3), np.uint8)

    class Decoder:
        process = SimpleNamespace(kill=lambda: None)

        def __iter__(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
            return frames()

    batches = []
    for batch in FrameReader(cast(Any, Decoder()), BEGAN, 0.0, 300):
        assert isinstance(batch, ChunkFrames)
        time.sleep(0.05)
        batches.append(len(batch.frames))
        # At most three frames of the batch, three in the queue, and the one that waits for room in it.
        assert len(given) <= sum(batches) + 3 + 1 + 1
    assert batches == [3] * 6 + [2]
