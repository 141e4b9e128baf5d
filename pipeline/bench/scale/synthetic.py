"""Synthetic stores of any size: valid tables with tiny patches, made by bulk appends of many streams at once.

A store has S streams × D days × F frames. The frames of a stream's day begin at midnight UTC, `every` seconds apart,
and are written as `files` files by as many commits, as workers do that commit all streams together: few commits make a
store as `compact` leaves it, many make one as live cameras do. `verify` finds no problem in it.

A vector is a unit vector of three parts: the scene of the stream, which all of its frames share; one of `_CONCEPTS`
things that are seen for half a minute, the same things in all streams; and noise. So frames of a stream are alike,
neighbours more so, and a query for a thing has matches in all streams. The vectors depend on the seed, stream and day
alone, not on how the frames are divided into files.

This module does not know what is measured on a store, and no encoder makes such vectors: recall that is measured on
them says nothing about footage.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from index.columns import day_of, segment_key, segment_row, to_list_array
from index.errors import UsageError
from index.patches.codec import PatchEncoding
from index.records import EncoderIdentity, EncoderPair, FrameRecords, Segment
from index.schemas import FRAMES, PATCHES, SEGMENTS
from index.store import Store

__all__ = [
    "StorePlan",
    "concepts",
    "covering_segment",
    "make_synthetic_store",
    "synthetic_encoders",
    "synthetic_vectors",
]

_BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z
_SECOND = 1_000_000
_DAY = 86_400
_ROWS = 65_536  # frames that are in memory at once, about
_CONCEPTS = 1_000
_SEEN_SECONDS = 30
_PARTS = (0.6, 0.5, 0.6)  # of scene, concept and noise before the vector is scaled to unit norm
_PATCHES, _PATCH_DIMENSION = 1, 4


@dataclass(frozen=True, slots=True)
class StorePlan:
    """The size and layout of a synthetic store."""

    streams: int = 200
    """Number of streams."""

    days: int = 2
    """Days of footage of each stream."""

    frames: int = _DAY
    """Frames of a stream's day."""

    every: int = 1
    """Seconds between two frames."""

    files: int = 1
    """Files of a stream's day in each of the tables `frames` and `patches`, and commits of each day."""

    segments: int = 24
    """Segments of a stream's day, a multiple of `files`."""

    dimension: int = 512
    """Df, the length of a frame vector."""

    seed: int = 0
    """Seed of the vectors."""

    shuffled: bool = False
    """Whether the files of a day are committed in no order, as by workers of a backfill."""

    def __post_init__(self) -> None:
        numbers = (self.streams, self.days, self.frames, self.every, self.files, self.segments, self.dimension)
        if min(numbers) < 1:
            raise UsageError("every number of a synthetic store must be at least 1")
        if self.frames * self.every > _DAY:
            raise UsageError(f"{self.frames} frames, {self.every} s apart, are more than a day has")
        if self.segments % self.files or self.segments > self.frames:
            raise UsageError(
                f"{self.segments} segments of {self.frames} frames in {self.files} files: the segments must be a "
                "multiple of the files, and no more than the frames"
            )

    def times(self, day: int) -> NDArray[np.int64]:
        """int64[F]: times of a day's frames, UTC microseconds."""
        return _BEGAN + (day * _DAY + np.arange(self.frames, dtype=np.int64) * self.every) * _SECOND

    def order(self) -> list[int]:
        """The files of a day in the order of their commits."""
        parts = np.arange(self.files)
        return (np.random.default_rng([self.seed, 5]).permutation(parts) if self.shuffled else parts).tolist()

    def bounds(self) -> NDArray[np.int64]:
        """int64[segments + 1]: the first frame of each segment of a day, and the number of frames."""
        return np.arange(self.segments + 1, dtype=np.int64) * self.frames // self.segments


def covering_segment(records: FrameRecords, *, source: str, chunk: int) -> Segment:
    """The segment of frames of one stream that are a second apart, to append them as `chunk` of `source`."""
    return Segment(
        stream_id=records.stream_id,
        source=source,
        chunk=chunk,
        uri="synthetic",
        start=int(records.captured_at[0]),
        end=int(records.captured_at[-1]) + _SECOND,
        frames=len(records.captured_at),
        decode_mode="all",
        clock_source="given",
    )


def synthetic_encoders(dimension: int) -> EncoderPair:
    """The identity of vectors that no encoder made, of `dimension` floats, with one tiny patch a frame."""

    def named(name: str, width: int) -> EncoderIdentity:
        """One of the two encoders."""
        return EncoderIdentity(
            name=name, revision="1", weights_digest="none", preprocessing_digest="none", dimension=width
        )

    return EncoderPair(
        frame=named("synthetic", dimension), patch=named("synthetic-patch", _PATCH_DIMENSION), patches=_PATCHES
    )


def concepts(plan: StorePlan) -> NDArray[np.float32]:
    """float32[1000, Df], unit norm: the things that are seen; as queries, each matches frames of many streams."""
    return _unit(np.random.default_rng([plan.seed, 1]).standard_normal((_CONCEPTS, plan.dimension), np.float32))


def synthetic_vectors(plan: StorePlan, stream: int, day: int, things: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors of a stream's day, float32[F, Df], unit norm; `things` as `concepts` returns them."""
    scene = _unit(np.random.default_rng([plan.seed, 2, stream]).standard_normal((1, plan.dimension), np.float32))
    rng = np.random.default_rng([plan.seed, 3, stream, day])
    blocks = np.arange(plan.frames) * plan.every // _SEEN_SECONDS
    seen = rng.integers(0, len(things), int(blocks[-1]) + 1)[blocks]
    found = rng.standard_normal((plan.frames, plan.dimension), np.float32)
    found *= _PARTS[2] / np.sqrt(plan.dimension)
    found += _PARTS[0] * scene
    found += _PARTS[1] * things[seen]
    return _unit(found)


def make_synthetic_store(
    url: str | Path,
    plan: StorePlan,
    *,
    encoders: EncoderPair | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Store:
    """Make a store, or complete one whose making was stopped.

    Args:
        url: a path, or the URL of an object store.
        plan: its size and layout.
        encoders: the encoders that its vectors claim to be of; those of `synthetic_encoders` when None.
        on_progress: called with the number of frames that are stored, and with that of all.

    Raises:
        UsageError: `encoders` have vectors of another length than the plan.
        IdentityMismatch: the store exists and has other encoders.
    """
    pair = encoders or synthetic_encoders(plan.dimension)
    if pair.frame.dimension != plan.dimension:
        raise UsageError(f"{pair.frame.name}: its vectors have {pair.frame.dimension} floats, not {plan.dimension}")
    store = Store.open_or_create(url, pair, PatchEncoding())
    things, picture, done = concepts(plan), _picture(), 0
    total = plan.streams * plan.days * plan.frames
    for app, version, (patches, frames, segments) in _commits(plan, pair, things, picture):
        store.tables.patches.append_if_new(patches, app, version)
        store.tables.frames.append_if_new(frames, app, version)
        store.tables.segments.append_if_new(segments, app, version)
        done += len(frames)
        on_progress(done, total)
    return store


_Rows = tuple[pa.Table, pa.Table, pa.Table]


def _commits(
    plan: StorePlan, pair: EncoderPair, things: NDArray[np.float32], picture: bytes
) -> Iterator[tuple[str, int, _Rows]]:
    """Application, version and rows of each commit, which holds one file of each of some streams."""
    together = max(1, _ROWS // plan.frames)
    for first in range(0, plan.streams, together):
        chosen = range(first, min(first + together, plan.streams))
        for day in range(plan.days):
            vectors = [synthetic_vectors(plan, stream, day, things) for stream in chosen]
            for number, part in enumerate(plan.order()):
                some = [
                    _rows(plan, pair, stream, day, part, each, picture)
                    for stream, each in zip(chosen, vectors, strict=True)
                ]
                patches, frames, segments = (pa.concat_tables(parts) for parts in zip(*some, strict=True))
                yield f"synthetic/{first}", day * plan.files + number, (patches, frames, segments)


def _rows(
    plan: StorePlan, pair: EncoderPair, stream: int, day: int, part: int, vectors: NDArray[np.float32], picture: bytes
) -> _Rows:
    name, times, bounds = stream_name(stream), plan.times(day), plan.bounds()
    each = plan.segments // plan.files
    numbers = range(part * each, (part + 1) * each)
    low, high = int(bounds[numbers.start]), int(bounds[numbers.stop])
    segments = [
        Segment(
            stream_id=name,
            source=name,
            chunk=day * plan.segments + number,
            uri="synthetic",
            start=int(times[bounds[number]]),
            end=int(times[bounds[number + 1] - 1]) + plan.every * _SECOND,
            frames=int(bounds[number + 1] - bounds[number]),
            decode_mode="all",
            clock_source="given",
        )
        for number in numbers
    ]
    keys = [segment_key(segment) for segment in segments]
    count = high - low
    of_row = np.repeat(np.arange(each), np.diff(bounds[numbers.start : numbers.stop + 1]))
    key = {
        "stream_id": _same(name, count),
        "date": _same(day_of(int(times[0])), count),
        "captured_at": pa.array(times[low:high]).cast(pa.timestamp("us", "UTC")),
        "segment": pa.array(keys).take(pa.array(of_row)),
    }
    rng = np.random.default_rng([plan.seed, 4, stream, day, part])
    tokens = rng.standard_normal((count, pair.patches * pair.patch.dimension), np.float32).astype("<f2")
    patches = pa.table({**key, "patches": _binary(tokens.view(np.uint8).reshape(count, -1))}).cast(PATCHES)
    frames = pa.table(
        {
            **key,
            "pts_seconds": (day * _DAY + np.arange(low, high) * plan.every).astype(np.float64),
            "clock_source": _same("given", count),
            "frame_vector": to_list_array(vectors[low:high]),
            "patch_pooled": to_list_array(np.full((count, pair.patch.dimension), 0.5, np.float32)),
            "picture": _same(picture, count),
            "frame_norm": np.ones(count, np.float32),
        }
    ).cast(FRAMES)
    listed = [segment_row(key, segment) for key, segment in zip(keys, segments, strict=True)]
    return patches, frames, pa.Table.from_pylist(listed, schema=SEGMENTS)


def stream_name(number: int) -> str:
    """The name of a stream of a synthetic store, `camera-0000` and so on."""
    return f"camera-{number:04d}"


def _same(value: str | bytes, count: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(count, np.int64)))


def _binary(rows: NDArray[np.uint8]) -> pa.Array:
    """uint8[N, width] as an Arrow array of N binaries."""
    count, width = rows.shape
    offsets = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    data = np.ascontiguousarray(rows).reshape(-1)
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _picture() -> bytes:
    """A JPEG of 16 × 16 pixels, as small as they get."""
    out = io.BytesIO()
    Image.new("L", (16, 16), 128).save(out, "JPEG", quality=50, optimize=True)
    return out.getvalue()
