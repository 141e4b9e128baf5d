"""Vectors without the background: what the frames of a fixed camera share is reduced before they are compared.

The frames of a fixed camera share the scene, so all of them are alike for an encoder and Algorithm 1 stops after one
keyframe. For each stretch of about ten minutes of a stream, with mean μ of the unit vectors f:

    m  = ‖μ‖²                                     mean cosine of two frames of the stretch
    s  = √(m₀ (1 − m) / (m (1 − m₀)))             share of the background that stays, if m > 0.6; else 1
    f' = f − (1 − s) μ                            so that the mean cosine becomes m₀ = 0.5
    B  = μ̄ + s (μ − μ̄)                            background; μ̄ is the mean of the stream's μ
    R' = ((f − μ) · q + s B · q) / √(1 − m + s² m)
                                                  relevance; the denominator is the root mean square of ‖f'‖

Where m ≤ 0.6, f' = f and R' = R: varied footage is selected exactly as the paper does. The more of the background goes,
the more alike are the backgrounds of a stream's stretches in R', so that day and night are compared by what happens in
them, while a stream whose scene fits the question stays ahead of others. Each ten minutes have a background of their
own, so light that changes over the day is not mistaken for an event; what stays for most of ten minutes becomes
background itself. `benchmarks/selectors.json` compares the rules.

This is our own addition, not part of the paper. Does not know K or τ.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIKE", "MEAN_COSINE", "STRETCH", "reduce_background", "stretches"]

MEAN_COSINE = 0.5
"""m₀. Pictures of unrelated things have about this mean cosine in the encoders of the CLIP family."""
ALIKE = 0.6
"""Mean cosine of a stretch up to which its frames are left as they are."""
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
    for number, (first, last) in enumerate(pairwise(edges.tolist())):
        mean = means[number]
        alike = float(mean @ mean)
        if alike <= ALIKE:
            continue
        stays = (MEAN_COSINE * max(0.0, 1 - alike) / (alike * (1 - MEAN_COSINE))) ** 0.5
        spread = max(1e-12, 1 - alike + stays * stays * alike) ** 0.5
        if reduced is frames:
            reduced = frames.copy()
        np.subtract(frames[first:last], np.float32(1 - stays) * mean, out=reduced[first:last])
        scene, own = float(means[streams == streams[number]].mean(axis=0) @ direction), float(mean @ direction)
        scores[first:last] += np.float32(stays * (scene + stays * (own - scene)) - own)
        scores[first:last] /= np.float32(spread)
    return reduced, scores
