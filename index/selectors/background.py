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

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIKE", "MEAN_COSINE", "STRETCH", "reduce_background", "stretches"]

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


def reduce_background(
    frames: NDArray[np.float32], query: NDArray[np.float32], stream_index: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """f' and R' of every frame; see the module's docstring.

    Args:
        frames: float32[N, d]; rows need not be normalized.
        query: float32[d].
        stream_index: the stream of each row, int[N]; one stream if None.

    Returns:
        float32[N, d], whose rows have unit norm only if nothing is reduced, and float32[N].
    """
    norms = np.sqrt(np.einsum("nd,nd->n", frames, frames))
    if (np.abs(norms - 1) > 1e-3).any():
        frames = (frames / np.where(norms == 0, 1, norms)[:, None]).astype(np.float32)
    length = float(np.linalg.norm(query))
    direction = query / np.float32(length if length > 0 else 1)
    scores = (frames @ direction).astype(np.float32)
    edges = stretches(len(frames), stream_index)
    means = np.zeros((len(edges) - 1, frames.shape[1]), np.float32)
    for number, (first, last) in enumerate(pairwise(edges.tolist())):
        means[number] = np.full(last - first, 1.0 / max(1, last - first), np.float32) @ frames[first:last]
    streams = np.zeros(len(means), np.int64) if stream_index is None or not len(frames) else stream_index[edges[:-1]]
    reduced = frames
    for stream in np.unique(streams).tolist():
        numbers = np.flatnonzero(streams == stream)
        scene, spread = means[numbers].mean(axis=0), 1 - np.square(means[numbers]).sum(axis=1, dtype=np.float64)
        usual = float(spread.mean())
        if 1 - usual <= ALIKE:
            continue
        if reduced is frames:
            reduced = frames.copy()
        for number, own in zip(numbers.tolist(), np.maximum(spread, 0).tolist(), strict=True):
            rows, mean = slice(int(edges[number]), int(edges[number + 1])), means[number]
            changed = mean - scene
            same = (own / max(1e-12, own + float(changed @ changed))) ** 2
            varies = same * usual + (1 - same) * own
            stays = _stays(varies)
            np.subtract(frames[rows], np.float32(1 - _stays(own)) * mean, out=reduced[rows])
            offset = stays * (scene @ direction) + same * (changed @ direction) - mean @ direction
            scores[rows] += np.float32(offset)
            scores[rows] /= np.float32(max(1e-12, varies + stays * stays * (1 - varies)) ** 0.5)
    return reduced, scores


def _stays(varies: float) -> float:
    """s(v), the share of the background that stays where the frames of a stretch vary by v."""
    return float(min(1.0, (MEAN_COSINE * varies / (max(1e-12, 1 - varies) * (1 - MEAN_COSINE))) ** 0.5))
