"""How the patches of frames become bytes: `fp16`, `int8` with per-channel scales, `differential`.

All numbers are little endian; M patches of D channels a frame.

    fp16          2·M·D bytes: float16[M, D]. Exact.
    int8          low float16[D], step float16[D], level uint8[M, D]: 4·D + M·D bytes. Channel c of a patch is
                  low[c] + step[c] · level[c], computed in float32 and rounded to float16. Every row stands alone.
    differential  Rows come in chains of at most CHAIN frames, ascending in time. A chain's first row, its head:
                      uint16 0, low float16[D], step float16[D], level uint8[M, D]          2 + 4·D + M·D bytes
                  and row r of the same chain, 0 < r < CHAIN:
                      uint16 r, ceil(M / 8) bytes, one bit a patch (patch 0 is the highest bit of the first byte),
                      then for each set bit, in order, uint8[D]: level minus the patch's last stored level, modulo 256
                  A patch whose bit is not set is what it was. Differences of a still picture are small numbers, and
                  Parquet's ZSTD makes little of them.

A patch p is written only when cos(p, p̂) < 1 − ε, p̂ being what readers have for its place (after quantising and
rounding). So every rebuilt patch that is not zero has

    cos(p, p̂) ≥ min(1 − ε, c)                    c: the cosine that quantising alone leaves, where p was written

and for any query q, with unit vectors u = p/|p|, û = p̂/|p̂|, v = q/|q|, by Cauchy and Schwarz

    |cos(p, q) − cos(p̂, q)| = |⟨u − û, v⟩| ≤ |u − û| = √(2 − 2 cos(p, p̂)) ≤ √(2 max(ε, 1 − c))

with equality for v along u − û: no smaller bound holds for every query. The length of a patch is not bounded by ε.

Steps: low and low + 255 · step span the channel over the chain. A differential chain takes a larger step where ε
allows it: uniform rounding leaves 1 − c ≈ D · step² / (24 |p|²) on average, and the step is chosen for ε / 2.

Knows numpy only: no tables, no files.
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
    "chains",
    "check_row",
    "cut_chain",
    "decode_chain",
    "decode_int8",
    "encode_chain",
    "encode_int8",
]

CHAIN = 128
_CACHED = 64  # patches that are rebuilt at once: their numbers stay in the cache between the steps
_LARGEST = float(np.finfo(np.float16).max)
_PLACE = np.dtype("<u2")

Row = NDArray[np.uint8]


class PatchEncoding(BaseModel):
    """How a store keeps patches, chosen when it is made. `epsilon` is used by `differential` alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fp16", "int8", "differential"] = "fp16"
    epsilon: float = Field(default=1e-3, ge=0.0, lt=1.0)

    def __str__(self) -> str:
        return f"{self.kind} with ε = {self.epsilon:g}" if self.kind == "differential" else self.kind


def chains(count: int) -> list[slice]:
    """`count` frames cut into chains."""
    return [slice(first, min(first + CHAIN, count)) for first in range(0, count, CHAIN)]


def encode_int8(patches: NDArray[np.float16]) -> list[Row]:
    """float16[N, M, D] → N rows. Raises UsageError for a value that is not finite."""
    _refuse_infinite(patches)
    rows = []
    for frame in patches:
        low, step = _grid(frame[None], 0.0)
        rows.append(np.concatenate([_bytes(low), _bytes(step), _levels(frame, low, step).reshape(-1)]))
    return rows


def decode_int8(rows: Sequence[Row], m: int, d: int, out: Sequence[NDArray[np.float16]]) -> None:
    """Rebuild every row into the float16[M, D] of the same place in `out`. Raises ValueError for another size."""
    scratch = np.empty((_CACHED, d), np.float32)
    for row, frame in zip(rows, out, strict=True):
        if len(row) != (4 + m) * d:
            raise ValueError(f"{len(row)} bytes where {(4 + m) * d} belong")
        low, step, levels = _head(row, m, d)
        start, wide = low.astype(np.float32), step.astype(np.float32)
        beyond = bool((start + 255.0 * wide > _LARGEST).any())  # levels that the encoder never uses
        for first in range(0, m, _CACHED):
            values = scratch[: min(_CACHED, m - first)]
            np.multiply(levels[first : first + _CACHED], wide, out=values)
            np.add(values, start, out=values)
            if beyond:
                np.clip(values, -_LARGEST, _LARGEST, out=values)
            frame[first : first + _CACHED] = values


def encode_chain(patches: NDArray[np.float16], epsilon: float) -> list[Row]:
    """float16[N, M, D], N ≤ CHAIN, ascending in time → the N rows of one chain.

    Raises:
        UsageError: a value that is not finite, or more than CHAIN frames.
    """
    n = len(patches)
    if n > CHAIN:
        raise UsageError(f"a chain of patches has at most {CHAIN} frames, got {n}")
    _refuse_infinite(patches)
    low, step = _grid(patches, epsilon)
    table = _Table(low, step)
    levels = _levels(patches[0], low, step)
    rows = [np.concatenate([_bytes(np.zeros(1, _PLACE)), _bytes(low), _bytes(step), levels.reshape(-1)])]
    shown = _unit(table(levels))
    for place in range(1, n):
        true = patches[place].astype(np.float64)
        cosine = np.einsum("md,md->m", true, shown) / _length(true)
        write = cosine < 1.0 - epsilon
        new = _levels(patches[place][write], low, step)
        rows.append(
            np.concatenate([_bytes(np.array([place], _PLACE)), np.packbits(write), (new - levels[write]).reshape(-1)])
        )
        levels[write] = new
        shown[write] = _unit(table(new))
    return rows


def decode_chain(rows: Sequence[Row], m: int, d: int, out: Sequence[NDArray[np.float16] | None]) -> None:
    """Rebuild the first rows of one chain, in order from its head.

    Each row goes into the float16[M, D] of the same place in `out`; None there for one nobody asked for.

    Raises:
        ValueError: a row that is missing, doubled or of another size.
    """
    levels, table, frame = _start(rows, m, d)
    for place, (row, target) in enumerate(zip(rows, out, strict=True)):
        if place:
            write, new = _difference(row, place, levels, m, d)
            levels[write] = new
            frame[write] = table(new)
        if target is not None:
            target[:] = frame


def cut_chain(rows: Sequence[Row], first: int, m: int, d: int) -> list[Row]:
    """The same chain without the `first` rows before: the next one becomes its head, nothing is rounded again.

    Raises:
        ValueError: as `decode_chain`.
    """
    low, step, _ = _head(rows[0][2:], m, d)
    levels, _, _ = _start(rows, m, d)
    for place in range(1, first + 1):
        write, new = _difference(rows[place], place, levels, m, d)
        levels[write] = new
    left = [np.concatenate([_bytes(np.zeros(1, _PLACE)), _bytes(low), _bytes(step), levels.reshape(-1)])]
    for place, row in enumerate(rows[first + 1 :], 1):
        left.append(np.concatenate([_bytes(np.array([place], _PLACE)), row[2:]]))
    return left


def check_row(row: Row, m: int, d: int) -> int:
    """The place of a differential row in its chain, 0 for a head. Raises ValueError when its size is not right."""
    if len(row) < 2:
        raise ValueError(f"{len(row)} bytes, too few for a row")
    place = int(row[:2].view(_PLACE)[0])
    mask = (m + 7) // 8
    size = 2 + (4 + m) * d if place == 0 else 2 + mask + d * int(np.unpackbits(row[2 : 2 + mask], count=m).sum())
    if len(row) != size:
        raise ValueError(f"{len(row)} bytes where {size} belong")
    return place


class _Table:
    """float16 of every level of every channel: what rebuilds, and what the encoder compares with."""

    def __init__(self, low: NDArray[np.float16], step: NDArray[np.float16]) -> None:
        values = low.astype(np.float32)[:, None] + step.astype(np.float32)[:, None] * np.arange(256, dtype=np.float32)
        # Levels that the encoder never uses may lie beyond float16.
        self._values = np.clip(values, -_LARGEST, _LARGEST).astype(np.float16).reshape(-1)
        self._first = np.arange(len(low), dtype=np.intp) * 256

    def __call__(self, levels: NDArray[np.uint8]) -> NDArray[np.float16]:
        """uint8[..., D] → float16[..., D]."""
        return self._values.take(self._first + levels)


def _grid(patches: NDArray[np.float16], epsilon: float) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """low and step, float16[D], that span float16[N, M, D]."""
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


def _levels(patches: NDArray[np.float16], low: NDArray[np.float16], step: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The nearest level of each value, uint8[..., D]; channels without extent are level 0."""
    wide, start = step.astype(np.float32), low.astype(np.float32)
    safe = np.where(wide > 0, wide, 1.0)
    most = np.minimum(255.0, np.floor((_LARGEST - start) / safe))
    return np.clip(np.rint((patches.astype(np.float32) - start) / safe), 0.0, most).astype(np.uint8)


def _head(row: Row, m: int, d: int) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8]]:
    return row[: 2 * d].view("<f2"), row[2 * d : 4 * d].view("<f2"), row[4 * d :].reshape(m, d)


def _start(rows: Sequence[Row], m: int, d: int) -> tuple[NDArray[np.uint8], _Table, NDArray[np.float16]]:
    """Levels uint8[M, D] of a chain's head, its table, and the frame they stand for."""
    if len(rows[0]) != 2 + (4 + m) * d or check_row(rows[0], m, d) != 0:
        raise ValueError("the first row of a chain is missing")
    low, step, levels = _head(np.array(rows[0][2:]), m, d)
    table = _Table(low, step)
    return levels, table, table(levels)


def _difference(
    row: Row, place: int, levels: NDArray[np.uint8], m: int, d: int
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Which patches row `place` writes, bool[M], and their new levels uint8[k, D]."""
    if check_row(row, m, d) != place:
        raise ValueError(f"row {place} of a chain is missing")
    mask = (m + 7) // 8
    write = np.unpackbits(row[2 : 2 + mask], count=m).astype(bool)
    return write, levels[write] + row[2 + mask :].reshape(-1, d)


def _bytes(array: NDArray[np.generic]) -> Row:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def _length(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Norms of [..., D], a tiny number in place of 0."""
    squares = np.einsum("...d,...d->...", vectors, vectors)
    lengths: NDArray[np.floating] = np.maximum(np.sqrt(squares), 1e-30)
    return lengths


def _unit(vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    result: NDArray[np.float64] = wide / _length(wide)[..., None]
    return result


def _refuse_infinite(patches: NDArray[np.float16]) -> None:
    if not np.isfinite(patches).all():
        raise UsageError("patches hold values that are not finite; the encoder's weights or its precision are wrong")
