"""FAISS on a GPU: which device does the work, and vectors that stay in the memory of a GPU.

A build of FAISS with CUDA (the extra `gpu`) works on the first visible GPU, every other one on the CPU. The variable
`CUDA_VISIBLE_DEVICES` chooses the GPU; an empty value chooses the CPU. What the GPU cannot do, for lack of memory for
example, the CPU does, and one line in the log names the reason. The results are the same but for the order of
candidates whose distances differ in their last bits.

FAISS has no RaBitQ codes on a GPU: k-means, the assignment of frames to lists and flat search run there, codes are made
and searched by the CPU. Does not know files, streams and times.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import faiss
import numpy as np
import structlog
from numpy.typing import NDArray

__all__ = ["GPU", "Accelerator", "Choice", "FlatVectors"]

_TEMPORARY_BYTES = 512 * 2**20
_MOST_NEIGHBOURS = 2048  # of a search on a GPU
_FLAT_BYTES = 8 * 2**30

_log = structlog.get_logger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Choice:
    """The device on which FAISS works."""

    device: Literal["gpu", "cpu"]
    """The device."""

    reason: str
    """Why it is this one."""


class Accelerator:
    """The GPU that FAISS uses in this process, if there is one. Any number of threads may use it, one at a time.

    Args:
        library: the module `faiss`.
    """

    def __init__(self, library: Any = faiss) -> None:
        self.library = library
        self._lock = threading.RLock()
        self._choice: Choice | None = None
        self._resources: Any = None
        self._process = 0
        self._paused = False
        self._failures: set[str] = set()

    @property
    def choice(self) -> Choice:
        """The device, chosen when it is asked for the first time in a process."""
        with self._lock:
            if self._choice is None:
                self._choice, self._process = self._choose(), os.getpid()
                if hasattr(self.library, "StandardGpuResources"):
                    _log.info("faiss_device", device=self._choice.device, reason=self._choice.reason)
            elif self._choice.device == "gpu" and self._process != os.getpid():
                return Choice("cpu", "a forked process cannot use the GPU of the process before it")
            return Choice("cpu", "the GPU is not to be used now") if self._paused else self._choice

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have the CPU do all work meanwhile, to compare the two."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _choose(self) -> Choice:
        if not hasattr(self.library, "StandardGpuResources"):
            return Choice("cpu", "this build of FAISS has no GPU support")
        try:
            count = int(self.library.get_num_gpus())
            if count < 1:
                return Choice("cpu", "no GPU is visible")
            self._resources = self.library.StandardGpuResources()
            self._resources.setTempMemory(_TEMPORARY_BYTES)
        except RuntimeError as error:
            return Choice("cpu", f"the GPU does not work ({_first_line(error)})")
        return Choice("gpu", f"{count} visible")

    def attempt(self, work: Callable[[Any], Result]) -> Result | None:
        """What `work` returns for the resources of the GPU; None without a GPU, or when FAISS cannot do it there."""
        if self.choice.device == "cpu":
            return None
        with self._lock:
            try:
                return work(self._resources)
            except (RuntimeError, MemoryError) as error:  # FAISS's error for a lack of memory
                reason = _first_line(error)
                if reason not in self._failures:
                    self._failures.add(reason)
                    _log.warning("faiss_device", device="cpu", reason=reason)
                return None

    def copy(self, index: faiss.Index) -> Any | None:
        """A flat or IVF-flat index on the GPU; None if there is none, or it does not fit."""
        return self.attempt(lambda resources: self.library.index_cpu_to_gpu(resources, 0, index))

    def search(
        self, copy: Any, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Distances and rows, float32 and int64[n, count], of the nearest to each of `queries`, float32[n, d].

        Args:
            copy: what `copy` returned; None without a GPU.
            queries: contiguous.
            count: neighbours of each.

        Returns:
            As FAISS; None where the CPU must do it.
        """
        if copy is None or count > _MOST_NEIGHBOURS:
            return None
        found: tuple[NDArray[np.float32], NDArray[np.int64]] | None
        found = self.attempt(lambda resources: copy.search(queries, count))
        return found

    def kmeans(self, points: NDArray[np.float32], count: int, parameters: Any) -> NDArray[np.float32] | None:
        """Centroids float32[count, d] of points float32[n, d] by FAISS's k-means; None where the CPU must do it."""

        def work(resources: Any) -> NDArray[np.float32]:
            """Train with assignments by the GPU."""
            dimension = points.shape[1]
            clustering = self.library.Clustering(dimension, count, parameters)
            clustering.train(points, self.library.GpuIndexFlatL2(resources, dimension))
            found = self.library.vector_float_to_array(clustering.centroids)
            return np.asarray(found, np.float32).reshape(count, dimension)

        return self.attempt(work)


GPU = Accelerator()
"""The GPU of this process."""


class FlatVectors:
    """Vectors of immutable files on the GPU, for exact search. Those that were not searched for longest are dropped.

    Args:
        gpu: the GPU.
        limit: most bytes of vectors.
    """

    def __init__(self, gpu: Accelerator = GPU, limit: int = _FLAT_BYTES) -> None:
        self._gpu, self._limit = gpu, limit
        self._lock = threading.Lock()
        self._copies: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._held = 0

    @property
    def nbytes(self) -> int:
        """Bytes of vectors that are on the GPU."""
        return self._held

    def nearest(
        self,
        key: Hashable,
        read: Callable[[], faiss.Index],
        query: NDArray[np.float32],
        rows: tuple[int, int],
        count: int,
    ) -> NDArray[np.int64] | None:
        """The `count` rows of low ≤ row < high with the largest inner products, int64[count]; None for work of the CPU.

        Args:
            key: names the content of the index.
            read: returns the index, a flat one; called when its vectors are not on the GPU.
            query: float32[d].
            rows: low and high.
            count: number of rows, at most high − low.
        """
        if self._gpu.choice.device == "cpu" or count > _MOST_NEIGHBOURS:
            return None
        with self._lock:
            copy = self._copy(key, read)
        if copy is None:
            return None
        low, high = rows
        whole = low == 0 and high == copy.ntotal
        found = self._gpu.search(copy, query[None], count if whole else min(_MOST_NEIGHBOURS, copy.ntotal))
        if found is None:
            return None
        inside = found[1][0]
        inside = inside[(inside >= low) & (inside < high)][:count]
        return inside if len(inside) == count else None

    def forget(self, wanted: Callable[[Any], bool] = lambda key: True) -> None:
        """Drop the vectors whose key is wanted, all by default."""
        with self._lock:
            for key in [key for key in self._copies if wanted(key)]:
                self._held -= self._copies.pop(key)[1]

    def _copy(self, key: Hashable, read: Callable[[], faiss.Index]) -> Any | None:
        if key in self._copies:
            self._copies.move_to_end(key)
            return self._copies[key][0]
        index = read()
        size = 4 * index.ntotal * index.d
        if size > self._limit:
            return None
        while self._held + size > self._limit:
            self._held -= self._copies.popitem(last=False)[1][1]
        copy = self._gpu.copy(index)
        if copy is not None:
            self._copies[key] = copy, size
            self._held += size
        return copy


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
