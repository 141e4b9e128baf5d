"""Comparison of two stores, row by row."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from index.store import Store


def assert_same(found: Store, expected: Store) -> None:
    """Assert that both have the same rows. Vectors may differ in the last bits, because encoder batches are filled differently."""
    order = {"frames": ["stream_id", "captured_at"], "patches": ["stream_id", "captured_at"]}
    for name in ("segments", "frames", "patches"):
        got, want = (getattr(store.tables, name).dataset().to_table() for store in (found, expected))
        keys = [(column, "ascending") for column in order.get(name, ["stream_id", "source", "chunk"])]
        got, want = got.sort_by(keys), want.sort_by(keys)
        assert got.num_rows == want.num_rows, name
        for column in want.column_names:
            if column in ("frame_vector", "patch_pooled"):
                a, b = (pc.list_flatten(rows[column]).to_numpy() for rows in (got, want))
                np.testing.assert_allclose(a, b, atol=1e-5)
            elif column == "frame_norm":
                np.testing.assert_allclose(got[column].to_numpy(), want[column].to_numpy(), rtol=1e-5)
            elif column != "patches":
                assert got[column].to_pylist() == want[column].to_pylist(), (name, column)
    window, other = found.window(), expected.window()
    np.testing.assert_allclose(found.patches(window), expected.patches(other), atol=2e-3)
    assert found.verify() == []
