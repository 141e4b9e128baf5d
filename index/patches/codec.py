"""Encodings of patch tokens as bytes: `fp16`, `int8` with a scale per channel, `differential`.

All numbers are little endian. A frame has M patches of D channels.

    fp16          2·M·D bytes: float16[M, D]. Exact.

    int8          4·D + M·D bytes: low float16[D], step float16[D], level uint8[M, D].
                  Channel c of a patch is low[c] + step[c] · level[c], computed in float32 and rounded to float16.
                  Every row is decoded by itself.

    differential  Rows form chains of at most CHAIN frames, ascending in time. The first row of a chain, its head:
                      uint16 0, low float16[D], step float16[D], level uint8[M, D]          2 + 4·D + M·D bytes
                  Row r of the chain, 0 < r < CHAIN:
                      uint16 r; ceil(M / 8) bytes, one bit per patch (patch 0 is the highest bit of the first byte);
                      then for each set bit, in order, uint8[D]: level minus the last written level, modulo 256
                  A patch whose bit is not set has not changed. The differences of a still picture are small numbers,
                  which Parquet's ZSTD compresses well.

Error of `differential`. A patch p is written only if cos(p, p̂) < 1 − ε, where p̂ is what readers have in its place,
after quantization and rounding. So every decoded patch that is not zero has

    cos(p, p̂) ≥ min(1 − ε, c)                    c: the cosine after quantization alone, where p was written

and for any query q, with unit vectors u = p/|p|, û = p̂/|p̂|, v = q/|q|, by the Cauchy-Schwarz inequality

    |cos(p, q) − cos(p̂, q)| = |⟨u − û, v⟩| ≤ |u − û| = √(2 − 2 cos(p, p̂)) ≤ √(2 max(ε, 1 − c))

with equality for v along u − û, so no smaller bound holds for every query. ε does not bound the length of a patch.

Steps. low and low + 255 · step enclose the values of the channel in the chain. A differential chain uses a larger step
where ε allows it: uniform rounding leaves 1 − c ≈ D · step² / (24 |p|²) on average, and the step is chosen for ε / 2.

This module uses numpy only and does not know tables or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from index.errors import UsageError

__all__ = [
    "CHAIN",
    "PatchEncoding",
    "check_row",
    "decode_chain",
    "decode_int8",
    "drop_first_rows",
    "encode_chain",
    "encode_int8",
    "split_chains",
]

CHAIN = 128
"""Largest number of frames of a chain."""

Row = NDArray[np.uint8]
"""The encoded bytes of one frame."""

_PATCHES_AT_ONCE = 64  # decoded together, so that their values stay in the CPU's cache between two steps
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_POSITION = np.dtype("<u2")


class PatchEncoding(BaseModel):
    """How a store encodes patches; chosen when the store is created."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["fp16", "int8", "differential"] = "fp16"
    """The encoding; see the module's docstring."""

    epsilon: float = Field(default=1e-3, ge=0.0, lt=1.0)
    """ε of `differential`: a patch is written when its cosine to the stored one is below 1 − ε. Else unused."""

    def __str__(self) -> str:
        return f"{self.kind} with ε = {self.epsilon:g}" if self.kind == "differential" else self.kind


def split_chains(count: int) -> list[slice]:
    """The positions of `count` frames, split into chains."""
    return [slice(first, min(first + CHAIN, count)) for first in range(0, count, CHAIN)]


def encode_int8(patches: NDArray[np.float16]) -> list[Row]:
    """Encode float16[N, M, D] as N rows. Raises UsageError if a value is not finite."""
    _check_finite(patches)
    rows = []
    for frame in patches:
        low, step = _quantization_grid(frame[None], 0.0)
        rows.append(np.concatenate([_bytes(low), _bytes(step), _quantize(frame, low, step).reshape(-1)]))
    return rows


def decode_int8(rows: Sequence[Row], m: int, d: int, out: Sequence[NDArray[np.float16]]) -> None:
    """Decode rows.

    Args:
        rows: N encoded frames.
        m: M, patches of a frame.
        d: D, channels of a patch.
        out: N arrays float16[M, D] to fill.

    Raises:
        ValueError: a row has another size.
    """
    scratch = np.empty((_PATCHES_AT_ONCE, d), np.float32)
    for row, frame in zip(rows, out, strict=True):
        if len(row) != (4 + m) * d:
            raise ValueError(f"{len(row)} bytes instead of {(4 + m) * d}")
        low, step, levels = _parse_levels(row, m, d)
        start, wide = low.astype(np.float32), step.astype(np.float32)
        beyond = bool((start + 255.0 * wide > _FLOAT16_MAX).any())  # in levels that the encoder never uses
        for first in range(0, m, _PATCHES_AT_ONCE):
            values = scratch[: min(_PATCHES_AT_ONCE, m - first)]
            np.multiply(levels[first : first + _PATCHES_AT_ONCE], wide, out=values)
            np.add(values, start, out=values)
            if beyond:
                np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX, out=values)
            frame[first : first + _PATCHES_AT_ONCE] = values


def encode_chain(patches: NDArray[np.float16], epsilon: float) -> list[Row]:
    """Encode float16[N, M, D], N ≤ CHAIN, ascending in time, as the N rows of one chain.

    Args:
        patches: the frames.
        epsilon: ε, see the module's docstring.

    Raises:
        UsageError: a value is not finite, or there are more than CHAIN frames.
    """
    n = len(patches)
    if n > CHAIN:
        raise UsageError(f"a chain of patches has at most {CHAIN} frames, got {n}")
    _check_finite(patches)
    low, step = _quantization_grid(patches, epsilon)
    values_of = _Dequantizer(low, step)
    levels = _quantize(patches[0], low, step)
    rows = [np.concatenate([_bytes(np.zeros(1, _POSITION)), _bytes(low), _bytes(step), levels.reshape(-1)])]
    shown = _unit(values_of(levels))  # what readers have, float64[M, D]
    for position in range(1, n):
        true = patches[position].astype(np.float64)
        cosine = np.einsum("md,md->m", true, shown) / _length(true)
        write = cosine < 1.0 - epsilon
        new = _quantize(patches[position][write], low, step)
        rows.append(
            np.concatenate(
                [_bytes(np.array([position], _POSITION)), np.packbits(write), (new - levels[write]).reshape(-1)]
            )
        )
        levels[write] = new
        shown[write] = _unit(values_of(new))
    return rows


def decode_chain(rows: Sequence[Row], m: int, d: int, out: Sequence[NDArray[np.float16] | None]) -> None:
    """Decode the first rows of one chain.

    Args:
        rows: rows of the chain, from its head, without gaps.
        m: M, patches of a frame.
        d: D, channels of a patch.
        out: for each row an array float16[M, D] to fill, or None if that frame is not needed.

    Raises:
        ValueError: a row is missing, stored twice or of another size.
    """
    levels, values_of, frame = _decode_head(rows, m, d)
    for position, (row, target) in enumerate(zip(rows, out, strict=True)):
        if position:
            write, new = _decode_difference(row, position, levels, m, d)
            levels[write] = new
            frame[write] = values_of(new)
        if target is not None:
            target[:] = frame


def drop_first_rows(rows: Sequence[Row], first: int, m: int, d: int) -> list[Row]:
    """The chain without its first `first` rows. The next row becomes the head; nothing is rounded again.

    Args:
        rows: all rows of the chain.
        first: number of rows to drop.
        m: M, patches of a frame.
        d: D, channels of a patch.

    Raises:
        ValueError: as `decode_chain`.
    """
    low, step, _ = _parse_levels(rows[0][2:], m, d)
    levels, _, _ = _decode_head(rows, m, d)
    for position in range(1, first + 1):
        write, new = _decode_difference(rows[position], position, levels, m, d)
        levels[write] = new
    left = [np.concatenate([_bytes(np.zeros(1, _POSITION)), _bytes(low), _bytes(step), levels.reshape(-1)])]
    for position, row in enumerate(rows[first + 1 :], 1):
        left.append(np.concatenate([_bytes(np.array([position], _POSITION)), row[2:]]))
    return left


def check_row(row: Row, m: int, d: int) -> int:
    """The position of a differential row in its chain, 0 for a head. Raises ValueError if the row has another size."""
    if len(row) < 2:
        raise ValueError(f"{len(row)} bytes, too few for a row")
    position = int(row[:2].view(_POSITION)[0])
    mask = (m + 7) // 8
    size = 2 + (4 + m) * d if position == 0 else 2 + mask + d * int(np.unpackbits(row[2 : 2 + mask], count=m).sum())
    if len(row) != size:
        raise ValueError(f"{len(row)} bytes instead of {size}")
    return position


class _Dequantizer:
    """The float16 value of every level of every channel; used by the decoder, and by the encoder to compare."""

    def __init__(self, low: NDArray[np.float16], step: NDArray[np.float16]) -> None:
        values = low.astype(np.float32)[:, None] + step.astype(np.float32)[:, None] * np.arange(256, dtype=np.float32)
        # Levels that the encoder never uses may exceed float16.
        self._values = np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16).reshape(-1)
        self._first = np.arange(len(low), dtype=np.intp) * 256

    def __call__(self, levels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """uint8[..., D] → float16[..., D]."""
        return self._values.take(self._first + levels)


def _quantization_grid(patches: NDArray[np.float16], epsilon: float) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """low and step, float16[D], that enclose float16[N, M, D]."""
    low, high = patches.min(axis=(0, 1)), patches.max(axis=(0, 1))
    step = (high.astype(np.float32) - low.astype(np.float32)) / 255.0
    if epsilon > 0.0:
        lengths = _length(patches.astype(np.float32).reshape(-1, patches.shape[2]))
        some = lengths[lengths > 1e-30]
        wanted = float(some.min()) * (12.0 * epsilon / patches.shape[2]) ** 0.5 if len(some) else 0.0
        step = np.where(step > 0, np.maximum(step, np.float32(wanted)), step)
    rounded = step.astype(np.float16)
    short = rounded.astype(np.float32) < step
    rounded[short] = np.nextafter(rounded[short], np.float16(np.inf))
    return low.astype("<f2"), rounded.astype("<f2")


def _quantize(patches: NDArray[np.float16], low: NDArray[np.float16], step: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The nearest level of each value, uint8[..., D]; 0 for a channel whose step is 0."""
    wide, start = step.astype(np.float32), low.astype(np.float32)
    safe = np.where(wide > 0, wide, 1.0)
    highest = np.minimum(255.0, np.floor((_FLOAT16_MAX - start) / safe))
    return np.clip(np.rint((patches.astype(np.float32) - start) / safe), 0.0, highest).astype(np.uint8)


def _parse_levels(row: Row, m: int, d: int) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8]]:
    """low, step and level of a row `int8`, or of a head without its position."""
    return row[: 2 * d].view("<f2"), row[2 * d : 4 * d].view("<f2"), row[4 * d :].reshape(m, d)


def _decode_head(rows: Sequence[Row], m: int, d: int) -> tuple[NDArray[np.uint8], _Dequantizer, NDArray[np.float16]]:
    """Levels uint8[M, D] of a chain's head, the dequantizer of the chain, and the frame float16[M, D]."""
    if len(rows[0]) != 2 + (4 + m) * d or check_row(rows[0], m, d) != 0:
        raise ValueError("the first row of a chain is missing")
    low, step, levels = _parse_levels(np.array(rows[0][2:]), m, d)
    values_of = _Dequantizer(low, step)
    return levels, values_of, values_of(levels)


def _decode_difference(
    row: Row, position: int, levels: NDArray[np.uint8], m: int, d: int
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Which patches the row at `position` changes, bool[M], and their new levels uint8[k, D]."""
    if check_row(row, m, d) != position:
        raise ValueError(f"row {position} of a chain is missing")
    mask = (m + 7) // 8
    write = np.unpackbits(row[2 : 2 + mask], count=m).astype(bool)
    return write, levels[write] + row[2 + mask :].reshape(-1, d)


def _bytes(array: NDArray[np.generic]) -> Row:
    """The memory of an array as uint8[size]."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _length(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Norms of [..., D]; a tiny number instead of 0."""
    squares = np.einsum("...d,...d->...", vectors, vectors)
    lengths: NDArray[np.floating] = np.maximum(np.sqrt(squares), 1e-30)
    return lengths


def _unit(vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    """The vectors [..., D] scaled to unit norm; zero vectors stay zero."""
    wide = vectors.astype(np.float64)
    result: NDArray[np.float64] = wide / _length(wide)[..., None]
    return result


def _check_finite(patches: NDArray[np.float16]) -> None:
    if not np.isfinite(patches).all():
        raise UsageError("patches contain values that are not finite; check the encoder's weights and precision")
