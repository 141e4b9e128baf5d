"""The benchmark of search, and its made vectors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from index.errors import UsageError
from index.search.ann import codebook
from index.search.gpu import Accelerator, FlatVectors
from pipeline.bench.search import devices
from pipeline.bench.search.run import bench_search
from pipeline.bench.search.vectors import CameraVectors
from tests.support.faiss_gpu import Library


def test_made_vectors_are_like_those_of_fixed_cameras() -> None:
    made = CameraVectors(4)
    first, other = made.hour(0, 3), made.hour(1, 3)
    np.testing.assert_array_equal(first, CameraVectors(4).hour(0, 3))
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    assert 0.85 < float((first[::50] @ first[::50].T).mean()) < 0.97
    assert 0.4 < float((first[::50] @ other[::50].T).mean()) < 0.65


def test_the_benchmark_finds_what_the_exact_search_finds(tmp_path: Path) -> None:
    report = bench_search(7_000, cameras=2, dimension=64, queries=4, work=tmp_path)
    assert (report.frames, report.cameras) == (7_000, 2)
    assert report.everything.recall_at_100 > 0.95
    assert report.one_hour.frames == 7_000
    assert report.exact is not None
    assert report.exact.recall_at_100 > 0.99
    again = bench_search(7_000, cameras=2, dimension=64, queries=4, work=tmp_path, exact=False)
    assert (again.make_seconds, again.build_seconds) == (0.0, 0.0)
    assert again.everything.recall_at_100 == report.everything.recall_at_100


def test_the_two_devices_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    gpu = Accelerator(library)
    for module in (codebook, devices):
        monkeypatch.setattr(module, "GPU", gpu)
    monkeypatch.setattr(devices, "FlatVectors", lambda: FlatVectors(gpu))
    report = devices.bench_devices(10_000, cameras=3, dimension=32, queries=3, work=tmp_path)
    assert (report.frames, report.lists, report.same_lists, report.same_hits) == (10_800, 64, 1.0, 1.0)
    assert report.gpu.squared_error == report.cpu.squared_error > 0
    assert library.made.count("kmeans") == 4, "to get ready, and for the GPU's own codebook: lists and far lists"
    assert library.made.count("IndexFlatIP") == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(devices, "GPU", Accelerator(SimpleNamespace()))
    with pytest.raises(UsageError, match="no GPU support"):
        devices.bench_devices(10_000, cameras=3, dimension=32, queries=3, work=tmp_path)
