"""Exports have every frame of the window once, in order, with the vector that the store has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.errors import UsageError
from index.maintenance.export import export_vectors
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two streams of 30 frames; the second chunk of each is stored first."""
    store = Store.create(tmp_path / "store", PAIR)
    for name in ("front", "gate"):
        for chunk in (0, 2, 1):
            records = make_records(name, BEGAN + chunk * 10 * SECOND + 7, 10, seed=chunk)
            store.append(make_segment(records, chunk, f"file{chunk}"), records)
    return store


@pytest.mark.parametrize("rows", [7, 30, 100])
def test_an_export_has_the_frames_in_order(store: Store, tmp_path: Path, rows: int) -> None:
    done = list[int]()
    folder = tmp_path / "out"
    count = export_vectors(store.tables, folder, ["front", "gate"], rows=rows, exact=True, on_progress=done.append)
    window = store.window()
    assert count == len(window) == done[-1] == 60
    vectors = [np.load(path) for path in sorted(folder.glob("img_emb/*.npy"))]
    metadata = [pq.read_table(path) for path in sorted(folder.glob("metadata/*.parquet"))]
    assert [len(each) for each in vectors] == [len(each) for each in metadata]
    assert max(len(each) for each in vectors) == min(rows, 60)
    np.testing.assert_array_equal(np.concatenate(vectors), window.frame_vectors)
    times = [time for each in metadata for time in each["captured_at"].cast("int64").to_pylist()]
    assert times == window.captured_at.tolist()
    assert metadata[0]["image_path"][0].as_py() == "front/2024-03-01T08:00:00.000007Z.jpg"
    about = json.loads((folder / "export.json").read_text())
    assert (about["frames"], about["encoder"]["name"]) == (60, "clip")


def test_a_window_and_pictures(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    begin = BEGAN + 5 * SECOND
    assert export_vectors(store.tables, folder, ["gate"], begin, begin + 10 * SECOND, pictures=True) == 10
    (vectors,) = [np.load(path) for path in folder.glob("img_emb/*.npy")]
    window = store.window(["gate"], begin, begin + 10 * SECOND)
    assert vectors.dtype == np.float16
    np.testing.assert_array_equal(vectors, window.frame_vectors.astype(np.float16))
    (metadata,) = [pq.read_table(path) for path in folder.glob("metadata/*.parquet")]
    assert metadata["picture"].to_pylist() == store.pictures(window)


def test_a_folder_with_something_in_it_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an empty folder"):
        export_vectors(store.tables, tmp_path, ["front"])
