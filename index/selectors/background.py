"""Vectors without the background: what the frames of a fixed camera share is reduced before they are compared.

The frames of a fixed camera share the scene, so all of them are alike for an encoder and Algorithm 1 stops after one
keyframe. A stream is cut into stretches of about ten minutes. With the mean μ of the unit vectors f of a stretch, and
the means μ̄ and w̄ of all μ and w of the stream:

    w  = 1 − ‖μ‖²                                how much the frames of the stretch differ
    f' = f − (1 − s(w)) μ                         vectors to compare; their mean cosine is m₀ = 0.2
    s(v) = √(m₀ v / ((1 − v) (1 − m₀)))           share of the background that stays, at most 1
    κ  = (w / (w + ‖μ − μ̄‖²))²                 1 where the background is that of the stream, 0 where it is another
    v  = κ w̄ + (1 − κ) w
    R' = ((f − μ) · q + κ (μ − μ̄) · q + s(v) μ̄ · q) / √(v + s(v)² (1 − v))
                                                  relevance; the denominator is the root mean square of ‖f'‖

Where the mean cosine of a stream, 1 − w̄, is at most 0.6, f' = f and R' is the cosine: varied footage is selected
exactly as the paper does. With one background all day κ is 1, and R' orders a stream's frames as the cosine does; only
their redundancy is judged without the scene. √κ is the share of the energy about μ̄ that is not a change of the
background. As it falls, as from day to night, frames are compared by what happens in them. A stream whose scene fits
the question stays ahead of others. Each stretch has a background of its own, so light that changes over the day is not
mistaken for an event; what stays for most of ten minutes becomes background itself. `benchmarks/selectors.json`
compares the rules.

This is our own addition, not part of the paper. Does not know K or τ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALIKE",
    "MEAN_COSINE",
    "STRETCH",
    "Reduction",
    "direction_of",
    "mean_of",
    "reduce_background",
    "reduced_stretch",
    "reductions",
    "stretches",
    "unit_rows",
]

MEAN_COSINE = 0.2
"""m₀, chosen among 0.1 to 0.5 over the four seeds of `benchmarks/selectors.json`; 0.1 does as well, and larger ones
show the evidence less often, because the scene has a part in what is alike."""
ALIKE = 0.6
"""Mean cosine of a stream up to which its frames are left as they are."""
STRETCH = 600
"""Frames that share one background: ten minutes at one frame a second."""


def stretches(rows: int, stream_index: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
    """The edges of the stretches, int64[stretches + 1], from 0 to `rows`: equal parts of each stream.

    A part has about `STRETCH` frames.

    Args:
        rows: N.
        stream_index: the stream of each row, int[N], rows of a stream together; one stream if None.
    """
    ends = [0, rows]
    if stream_index is not None and rows:
        ends = [0, *(np.flatnonzero(np.diff(stream_index)) + 1).tolist(), rows]
    edges = [0]
    for first, last in pairwise(ends):
        parts = max(1, round((last - first) / STRETCH))
        edges += np.linspace(first, last, parts + 1).round().astype(np.int64)[1:].tolist()
    return np.asarray(edges, np.int64)


@dataclass(frozen=True, slots=True)
class Reduction:
    """How the frames of one stretch are reduced."""

    background: NDArray[np.float32]
    """(1 − s(w)) μ, which is subtracted from the vectors, float32[d]."""
    offset: np.float32
    """What is added to the relevance."""
    scale: np.float32
    """What the relevance is divided by then."""


def unit_rows(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of unit norm, float32[n, d]: those whose norm differs from 1 by over 0.001 are scaled, zeros are not."""
    norms = np.sqrt(np.einsum("nd,nd->n", frames, frames))
    other = np.abs(norms - 1) > 1e-3
    if other.any():
        frames = frames.copy()
        frames[other] /= np.where(norms == 0, 1, norms)[other, None]
    return frames


def direction_of(query: NDArray[np.float32]) -> NDArray[np.float32]:
    """The query scaled to unit norm, float32[d]; zeros if it is zero."""
    length = float(np.linalg.norm(query))
    return np.asarray(query / np.float32(length if length > 0 else 1), np.float32)


def mean_of(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """μ of the unit vectors of one stretch, float32[d]."""
    count = len(frames)
    return np.asarray(np.full(count, 1.0 / max(1, count), np.float32) @ frames, np.float32)


def reductions(means: NDArray[np.float32], direction: NDArray[np.float32]) -> list[Reduction] | None:
    """The reduction of each stretch of one stream; None if its frames are left as they are.

    Args:
        means: μ of each stretch, float32[stretches, d], in the order of time.
        direction: the query, float32[d] of unit norm.
    """
    scene, spread = means.mean(axis=0), 1 - np.square(means).sum(axis=1, dtype=np.float64)
    usual = float(spread.mean())
    if 1 - usual <= ALIKE:
        return None
    found = []
    for mean, own in zip(means, np.maximum(spread, 0).tolist(), strict=True):
        changed = mean - scene
        same = (own / max(1e-12, own + float(changed @ changed))) ** 2
        varies = same * usual + (1 - same) * own
        stays = _stays(varies)
        offset = stays * (scene @ direction) + same * (changed @ direction) - mean @ direction
        scale = max(1e-12, varies + stays * stays * (1 - varies)) ** 0.5
        found.append(Reduction(np.float32(1 - _stays(own)) * mean, np.float32(offset), np.float32(scale)))
    return found


def reduced_stretch(
    frames: NDArray[np.float32], direction: NDArray[np.float32], reduction: Reduction | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """f' and R' of the frames of one stretch.

    Args:
        frames: unit vectors, float32[n, d].
        direction: the query, float32[d] of unit norm.
        reduction: that of the stretch; None leaves the frames as they are.

    Returns:
        float32[n, d], which is `frames` itself if nothing is reduced, and float32[n].
    """
    scores = (frames @ direction).astype(np.float32)
    if reduction is None:
        return frames, scores
    scores += reduction.offset
    scores /= reduction.scale
    return frames - reduction.background, scores


def reduce_background(
    frames: NDArray[np.float32], query: NDArray[np.float32], stream_index: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """f' and R' of every frame; see the module's docstring.

    The figures of a stretch are computed from its rows alone, by the functions above, so that a selection that reads
    one stretch after the other has the same bits.

    Args:
        frames: float32[N, d]; rows need not be normalized.
        query: float32[d].
        stream_index: the stream of each row, int[N]; one stream if None.

    Returns:
        float32[N, d], whose rows have unit norm only if nothing is reduced, and float32[N].
    """
    frames, direction = unit_rows(frames), direction_of(query)
    scores = np.zeros(len(frames), np.float32)
    edges = stretches(len(frames), stream_index)
    parts = [slice(first, last) for first, last in pairwise(edges.tolist())]
    means = np.stack([mean_of(frames[part]) for part in parts]) if parts else np.zeros((0, frames.shape[1]), np.float32)
    streams = np.zeros(len(parts), np.int64) if stream_index is None or not len(frames) else stream_index[edges[:-1]]
    reduced = frames
    for stream in np.unique(streams).tolist():
        numbers = np.flatnonzero(streams == stream)
        of_stream = reductions(means[numbers], direction)
        if of_stream is not None and reduced is frames:
            reduced = frames.copy()
        for place, number in enumerate(numbers.tolist()):
            part = parts[number]
            reduction = None if of_stream is None else of_stream[place]
            vectors, scores[part] = reduced_stretch(frames[part], direction, reduction)
            if reduction is not None:
                reduced[part] = vectors
    return reduced, scores


def _stays(varies: float) -> float:
    """s(v), the share of the background that stays where the frames of a stretch vary by v."""
    return float(min(1.0, (MEAN_COSINE * varies / (max(1e-12, 1 - varies) * (1 - MEAN_COSINE))) ** 0.5))
