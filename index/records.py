"""Value objects of what is stored: encoder identities, segments and frames; and the two forms of a time.

A frame is identified by (stream_id, captured_at), in UTC microseconds; beside it are the stream's own pts and the
source of the clock. Arrays are column-wise: row i of every array is the same frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from index.errors import UsageError

Time = datetime | str | int
"""A time as the Python API takes it, see `parse_time`."""

ClockSource = Literal["given", "filename", "container", "mtime", "arrival"]
"""Where the time of a stream comes from: the user, the file's name, the container, the file's modification time, or the
moment at which a live frame arrived."""


ClockFold = Literal["first", "before"]
"""How a local time was read that a change of daylight saving time makes doubtful: the first of two equal times, or, for
a time that does not occur, by the offset before clocks change."""

_FOLDS: dict[ClockFold, str] = {
    "first": "the first of two equal times",
    "before": "a time that does not occur, read by the offset before clocks change",
}


class EncoderIdentity(BaseModel):
    """The encoder that made a vector. Vectors of different identity are never compared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Name of the encoder, or its hub id."""

    revision: str
    """Revision of the checkpoint."""

    weights_digest: str
    """SHA-256 of the weights, hex."""

    preprocessing_digest: str
    """SHA-256 of the preprocessing settings, hex."""

    dimension: int = Field(gt=0)
    """Length of a vector."""


class EncoderPair(BaseModel):
    """The two encoders whose vectors a store holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    frame: EncoderIdentity
    """Encoder of whole frames (CLIP), whose vectors have Df dimensions."""

    patch: EncoderIdentity
    """Encoder of patches (SigLIP, or UMT for clips), whose vectors have Dp dimensions."""

    patches: int = Field(gt=0)
    """M, the number of patch tokens of one frame."""

    clip_frames: int = Field(default=1, gt=0)
    """Most frames that share their patch tokens because they were encoded as a clip; 1 where each frame was encoded by
    itself and its M tokens form a square grid over the picture."""

    def grid_side(self) -> int:
        """Rows and columns of the square grid that the patches of a frame form over its picture.

        Raises:
            UsageError: the patches have no places in the picture, because clips were encoded, or M is not a square.
        """
        if self.clip_frames > 1:
            raise UsageError(
                f"this store was ingested by clips of {self.clip_frames} frames, whose tokens have no place in one "
                "picture; parts of pictures need a store of a profile without a [hico] section"
            )
        side = math.isqrt(self.patches)
        if side * side != self.patches:
            raise UsageError("the patches of this store's encoder are not a square grid over the picture")
        return side


class Segment(BaseModel):
    """One committed stretch of footage: the unit that is stored exactly once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stream_id: str
    """The stream that the footage belongs to."""

    source: str
    """Stable name of the footage: its digest, or a topic partition."""

    chunk: int = Field(ge=0)
    """Position in the source; the chunks of one source are committed in ascending order."""

    uri: str
    """Where the footage was read from. Credentials are masked before it is stored."""

    start: int
    """UTC microseconds."""

    end: int
    """UTC microseconds, exclusive."""

    frames: int = Field(ge=0)
    """Number of frames that were stored with this segment."""

    decode_mode: str
    """Which frames were decoded: keyframes, nonref or all."""

    clock_source: ClockSource
    """Source of `start`, `end` and the times of the frames."""

    clock_zone: str | None = None
    """The time zone in which the time in a file's name, or a given time, was read: an IANA name, an offset such as
    `+01:00`, `UTC`, or `epoch`. None for other sources, and for segments that were stored before zones were."""

    clock_fold: ClockFold | None = None
    """How a doubtful local time was read; None where the time was not doubtful."""

    final: bool = False
    """Whether the source ends with this segment."""

    problem: str | None = None
    """What went wrong while decoding, None if nothing did."""

    @property
    def clock(self) -> str:
        """Source, zone and fold of the clock for people, see `clock_text`."""
        return clock_text(self.clock_source, self.clock_zone, self.clock_fold)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRecords:
    """The frames of one segment, ready to be stored, ascending in `captured_at`.

    Raises:
        UsageError: an array has another shape or dtype than documented.
    """

    stream_id: str
    """The stream of all frames."""

    clock_source: ClockSource
    """Source of `captured_at`."""

    captured_at: NDArray[np.int64]
    """int64[N]: UTC microseconds."""

    pts_seconds: NDArray[np.float64]
    """float64[N]: seconds of the stream's own clock."""

    frame_vectors: NDArray[np.float32]
    """float32[N, Df]: embeddings by the frame encoder (CLIP), unit norm."""

    patch_pooled: NDArray[np.float32]
    """float32[N, Dp]: pooled embeddings by the patch encoder (SigLIP), unit norm."""

    patches: NDArray[np.float16]
    """float16[N, M, Dp]: patch tokens."""

    pictures: list[bytes]
    """N pictures, JPEG."""

    frame_norms: NDArray[np.float32] | None = None
    """float32[N]: norms that the vectors of `frame_vectors` had before they were scaled to 1; None if not known."""

    def __post_init__(self) -> None:
        n = len(self.captured_at)
        for name, dtype, dims in (
            ("captured_at", np.int64, 1),
            ("pts_seconds", np.float64, 1),
            ("frame_vectors", np.float32, 2),
            ("patch_pooled", np.float32, 2),
            ("patches", np.float16, 3),
            ("frame_norms", np.float32, 1),
        ):
            array = getattr(self, name)
            if array is None and name == "frame_norms":
                continue
            if array.dtype != dtype or array.ndim != dims or len(array) != n:
                raise UsageError(
                    f"{name}: expected {np.dtype(dtype).name} with {dims} dimensions and {n} rows, "
                    f"got {array.dtype} {array.shape}"
                )
        if len(self.pictures) != n:
            raise UsageError(f"pictures: expected {n}, got {len(self.pictures)}")

    def __len__(self) -> int:
        return len(self.captured_at)

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors, patches and pictures."""
        arrays = (self.frame_vectors, self.patch_pooled, self.patches)
        return sum(array.nbytes for array in arrays) + sum(map(len, self.pictures))

    def filter(self, keep: NDArray[np.bool_]) -> FrameRecords:
        """The rows where `keep`, bool[N], is true; the object itself if all are."""
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
            frame_norms=None if self.frame_norms is None else self.frame_norms[keep],
        )


def clock_text(source: ClockSource, zone: str | None, fold: ClockFold | None = None) -> str:
    """A clock for people, such as `mtime` or `filename (Europe/Amsterdam; the first of two equal times)`."""
    details = "; ".join(filter(None, (zone, None if fold is None else _FOLDS[fold])))
    return f"{source} ({details})" if details else source


_FIRST_MICRO, _LAST_MICRO = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The first and the last microsecond of the years 1 to 9999."""


def to_micros(time: datetime) -> int:
    """UTC microseconds since the epoch. Raises UsageError for a datetime without a zone or outside years 1 to 9999."""
    if time.tzinfo is None:
        raise UsageError(f"{time.isoformat()} has no time zone; write it as {time.isoformat()}Z for UTC")
    try:
        delta = time.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError:
        raise UsageError(f"{time.isoformat()} is not in the years 1 to 9999 in UTC") from None
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def from_micros(micros: int) -> datetime:
    """The datetime, in UTC, of `micros` microseconds since the epoch."""
    return datetime.fromtimestamp(int(micros) // 1_000_000, UTC).replace(microsecond=int(micros) % 1_000_000)


def rfc3339(micros: int) -> str:
    """UTC microseconds as an RFC 3339 time, `2024-03-01T08:00:00Z`; a fraction only if it is not zero."""
    return from_micros(micros).isoformat().replace("+00:00", "Z")


def parse_rfc3339(text: str) -> int:
    """UTC microseconds of an RFC 3339 time. Raises UsageError if it is not one, or names no time zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text[:64]!r} is not a time; write 2024-03-01T08:00:00Z") from None
    return to_micros(time)


def parse_time(value: Time | None, name: str = "time") -> int | None:
    """UTC microseconds of a time, in any form that the Python API and the command line take; None stays None.

    Args:
        value: a datetime with a time zone, an RFC 3339 text, or UTC microseconds since the epoch.
        name: name of the parameter, for the error.

    Raises:
        UsageError: `value` has no time zone, does not parse, or is of another type.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return parse_rfc3339(value)
        if isinstance(value, datetime):
            return to_micros(value)
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            if not _FIRST_MICRO <= value <= _LAST_MICRO:
                raise UsageError("microseconds since 1970 are expected, in the years 1 to 9999")
            return int(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    raise UsageError(f"{name}: expected a datetime, an RFC 3339 text or whole microseconds, got {type(value).__name__}")


def parse_zoned_time(value: Time | None, name: str = "time") -> datetime | None:
    """The same as a datetime in the zone that `value` names; UTC for microseconds."""
    micros = parse_time(value, name)
    if micros is None:
        return None
    zoned = datetime.fromisoformat(value) if isinstance(value, str) else value
    return from_micros(micros).astimezone(zoned.tzinfo if isinstance(zoned, datetime) else UTC)
