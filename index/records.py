"""What one stored frame is: the value objects that every room passes around.

A frame is (stream_id, captured_at): UTC microseconds, with the stream's own pts and the clock's source beside it.
Arrays are column-wise: row i of every array is the same frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from index.errors import UsageError

ClockSource = Literal["given", "filename", "container", "mtime", "arrival"]


class EncoderIdentity(BaseModel):
    """Which encoder made a vector. Vectors of different identity are never compared.

    `weights_digest` and `preprocessing_digest` are hex SHA-256; `dimension` is the length of a vector.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    revision: str
    weights_digest: str
    preprocessing_digest: str
    dimension: int = Field(gt=0)


class EncoderPair(BaseModel):
    """The two encoders whose vectors a store holds; `patches` is M, the patch tokens of one frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame: EncoderIdentity
    patch: EncoderIdentity
    patches: int = Field(gt=0)


class Segment(BaseModel):
    """One committed piece of footage, the unit of exactly-once.

    `source` is a stable name of the footage (digest or topic partition), `chunk` its place in that source: chunks
    of one source are committed in ascending order. `start` and `end` are UTC microseconds, `end` exclusive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream_id: str
    source: str
    chunk: int = Field(ge=0)
    uri: str
    start: int
    end: int
    frames: int = Field(ge=0)
    decode_mode: str
    clock_source: ClockSource
    final: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRecords:
    """The frames of one segment, ready to be stored, ascending in `captured_at`.

    Shapes: captured_at int64[N] (UTC microseconds), pts_seconds float64[N], frame_vectors float32[N, Df] of unit
    norm (CLIP), patch_pooled float32[N, Dp] of unit norm (SigLIP), patches float16[N, M, Dp], pictures: N JPEGs.

    Raises:
        UsageError: a shape or dtype is not the one above.
    """

    stream_id: str
    clock_source: ClockSource
    captured_at: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    frame_vectors: NDArray[np.float32]
    patch_pooled: NDArray[np.float32]
    patches: NDArray[np.float16]
    pictures: list[bytes]

    def __post_init__(self) -> None:
        n = len(self.captured_at)
        for name, dtype, dims in (
            ("captured_at", np.int64, 1),
            ("pts_seconds", np.float64, 1),
            ("frame_vectors", np.float32, 2),
            ("patch_pooled", np.float32, 2),
            ("patches", np.float16, 3),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != dims or len(array) != n:
                raise UsageError(
                    f"{name}: expected {np.dtype(dtype).name} with {dims} dimensions and {n} rows, "
                    f"got {array.dtype} {array.shape}"
                )
        if len(self.pictures) != n:
            raise UsageError(f"pictures: expected {n}, got {len(self.pictures)}")

    def __len__(self) -> int:
        return len(self.captured_at)

    def where(self, keep: NDArray[np.bool_]) -> FrameRecords:
        """The rows that `keep`, bool[N], marks; itself where it marks all."""
        if keep.all():
            return self
        return FrameRecords(
            stream_id=self.stream_id,
            clock_source=self.clock_source,
            captured_at=self.captured_at[keep],
            pts_seconds=self.pts_seconds[keep],
            frame_vectors=self.frame_vectors[keep],
            patch_pooled=self.patch_pooled[keep],
            patches=self.patches[keep],
            pictures=[picture for picture, kept in zip(self.pictures, keep.tolist(), strict=True) if kept],
        )


def to_micros(moment: datetime) -> int:
    """UTC microseconds since the epoch. Raises UsageError for a naive datetime."""
    if moment.tzinfo is None:
        raise UsageError(f"{moment.isoformat()} has no time zone; write it as {moment.isoformat()}Z for UTC")
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_micros(micros: int) -> datetime:
    """The UTC datetime of `micros` microseconds since the epoch."""
    return datetime.fromtimestamp(int(micros) // 1_000_000, UTC).replace(microsecond=int(micros) % 1_000_000)


def rfc3339(micros: int) -> str:
    """`2024-03-01T08:00:00Z`, with fractions of a second only where there are any."""
    return from_micros(micros).isoformat().replace("+00:00", "Z")


def parse_rfc3339(text: str) -> int:
    """UTC microseconds of an RFC 3339 time. Raises UsageError when it does not parse or names no time zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a time; write 2024-03-01T08:00:00Z") from None
    return to_micros(moment)
