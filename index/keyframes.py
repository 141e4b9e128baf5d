"""Differential Keyframe Selection (ViLAMP, Algorithm 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def select_keyframes(
    frames: NDArray[np.float32], query: NDArray[np.float32], *, k: int = 32, tau: float = 0.85, fill: bool = False
) -> NDArray[np.int64]:
    f = frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)
    r = f @ query
    order = np.argsort(-r, kind="stable")
    out: list[int] = []
    top = np.full(len(f), -2.0, np.float32)
    for i in order:
        if len(out) == k:
            break
        if top[i] < tau:
            out.append(int(i))
            top = np.maximum(top, f @ f[i])
    return np.asarray(out, np.int64)


def select_top_k(frames: NDArray[np.float32], query: NDArray[np.float32], *, k: int) -> NDArray[np.int64]:
    return np.argsort(-(frames @ query), kind="stable")[:k].astype(np.int64)


def select_uniform(n: int, *, k: int) -> NDArray[np.int64]:
    return np.unique(((np.arange(k) + 0.5) * n / k).astype(np.int64))
