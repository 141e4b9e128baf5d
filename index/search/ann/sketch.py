"""A sketch of the centroids of a codebook: short codes that tell which centroids may be nearest to a query.

A search needs the best 1 % of the centroids. 65,536 of them in 400 dimensions are 105 MB, more than all codes that it
looks into; their product-quantized codes of 4 bits for 2 dimensions (Jégou et al., "Product quantization for nearest
neighbor search", TPAMI 2011; compared in registers, André et al., "Quicker ADC", TPAMI 2019) are 6.6 MB. The best by
the sketch, four times as many as are wanted, are then compared exactly. Cells of near centroids would not do: what a
text asks for happens in front of many cameras, and is a small part of a centroid. Does not know lists nor files.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

__all__ = ["CentroidSketch", "sketch_of"]

_LEAST = 4096  # centroids; fewer are compared as fast
_BITS, _VALUES = 4, 16
_WIDTH = 2  # dimensions of one value


class CentroidSketch:
    """The codes of centroids. Any number of threads may search it.

    Args:
        table: float32[M, 16, 2], the values of each pair of dimensions; M = c / 2.
        codes: uint8[L, ⌈M / 2⌉]: two values a byte.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    def __init__(self, table: NDArray[np.float32], codes: NDArray[np.uint8]) -> None:
        pairs = len(table)
        fits = table.shape == (pairs, _VALUES, _WIDTH) and codes.shape == (len(codes), -(-pairs // 2))
        if table.dtype != np.float32 or codes.dtype != np.uint8 or not fits or not pairs:
            raise ValueError("the arrays of the sketch do not fit each other")
        self.table, self._count = table, len(codes)
        plain = self._quantizer()
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), plain.codes)
        plain.ntotal = len(codes)
        self._index = faiss.IndexPQFastScan(plain)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.table.nbytes + int(self._index.codes.size())

    @property
    def dimension(self) -> int:
        """c."""
        return _WIDTH * len(self.table)

    def _quantizer(self) -> Any:
        made: Any = faiss.IndexPQ(self.dimension, len(self.table), _BITS, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.table).ravel(), made.pq.centroids)
        made.is_trained = True
        return made

    def codes_of(self, centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The codes of centroids float32[L, c]; they are kept once, as FAISS needs them."""
        found: NDArray[np.uint8] = self._quantizer().sa_encode(np.ascontiguousarray(centroids))
        return found

    def best(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """About the `count` centroids with the highest inner products with `query` (float32[c]), int64[count]."""
        found: NDArray[np.int64] = self._index.search(query[None], count)[1][0]
        return found[found >= 0]


def sketch_of(centroids: NDArray[np.float32]) -> CentroidSketch | None:
    """The sketch of centroids float32[L, c]; None of fewer than 4,096, and where c is odd."""
    count, dimension = centroids.shape
    if count < _LEAST or dimension % _WIDTH:
        return None
    trained: Any = faiss.IndexPQ(dimension, dimension // _WIDTH, _BITS, faiss.METRIC_INNER_PRODUCT)
    trained.train(centroids)
    table = faiss.vector_to_array(trained.pq.centroids).reshape(-1, _VALUES, _WIDTH)
    return CentroidSketch(table, trained.sa_encode(centroids))
