"""Embeddings as a vector of unit norm and the norm that it had.

A store keeps both: cosines need the first, and weights of `single_token` the embedding itself. Imports no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["split_norms"]

_LEAST = np.float32(1e-12)


def split_norms(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors float32[n, D] of unit norm and their norms float32[n], of embeddings float32[n, D].

    A row of zeros stays one.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", features, features))
    vectors: NDArray[np.float32] = features / np.maximum(norms, _LEAST)[:, None]
    return vectors, norms
