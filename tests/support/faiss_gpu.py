"""A library in the place of FAISS with CUDA, for machines without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import faiss

__all__ = ["Library"]


class Library:
    """FAISS with a GPU, of which the CPU does the work; `made` lists what was made on it."""

    def __init__(self, *, gpus: int = 1, memory: int = 1 << 30) -> None:
        self.gpus, self.memory, self.made = gpus, memory, list[str]()
        self.Clustering, self.vector_float_to_array = faiss.Clustering, faiss.vector_float_to_array

    def get_num_gpus(self) -> int:
        return self.gpus

    def StandardGpuResources(self) -> Any:  # noqa: N802 FAISS's name
        return SimpleNamespace(setTempMemory=lambda size: self.made.append("resources"))

    def index_cpu_to_gpu(self, resources: Any, device: int, index: faiss.Index) -> faiss.Index:
        if 4 * index.ntotal * index.d > self.memory:
            raise RuntimeError("StandardGpuResources: alloc fail type FlatData\nmore")
        self.made.append(type(index).__name__)
        return faiss.clone_index(index)

    def GpuIndexFlatL2(self, resources: Any, dimension: int) -> faiss.Index:  # noqa: N802 FAISS's name
        self.made.append("kmeans")
        return faiss.IndexFlatL2(dimension)
