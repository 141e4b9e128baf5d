"""The loading benchmark: bytes on disk and the content of a filled store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.patches.codec import PatchEncoding
from pipeline.bench.patches.loading import bench_load, fill, full_size, patch_bytes


@pytest.mark.parametrize("kind", ["fp16", "int8", "differential"])
def test_loading_counts_bytes(tmp_path: Path, kind: str) -> None:
    pair, patches = full_size(5, m=9, d=16)
    row = bench_load(tmp_path, pair, PatchEncoding.model_validate({"kind": kind}), patches, 12)
    assert (row.frames, row.shape, row.patch_bytes) == (12, [9, 16], 12 * 9 * 16 * 2)
    assert row.file_bytes > 0
    assert row.share_of_plain_read == pytest.approx(row.plain_cold_seconds / row.load_cold_seconds)


def test_a_filled_store_holds_the_patches_and_reports_their_size(tmp_path: Path) -> None:
    pair, patches = full_size(5, m=9, d=16)
    store = fill(tmp_path / "store", pair, PatchEncoding(), patches, np.arange(5, dtype=np.int64) * 1_000_000)
    assert np.array_equal(store.patches(store.window()), patches)
    assert patch_bytes(store) == sum(p.stat().st_size for p in tmp_path.rglob("patches/**/*.parquet"))
