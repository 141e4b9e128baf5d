"""Imports: what is exported comes back, repeated work changes nothing, and what is invalid is refused whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.commits import bulk
from index.errors import IdentityMismatch, UsageError
from index.maintenance.export import export_vectors
from index.maintenance.imports import import_vectors
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, identity, make_records, make_segment


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two streams of 30 frames, in files of 25, with pictures. Tests copy it."""
    folder = tmp_path_factory.mktemp("exported")
    store = Store.create(folder / "store", PAIR)
    for name in ("front", "gate"):
        for chunk in range(3):
            records = make_records(name, BEGAN + chunk * 10 * SECOND + 7, 10, seed=chunk)
            store.append(make_segment(records, chunk), records)
    export_vectors(store.tables, folder / "out", ["front", "gate"], rows=25, pictures=True, exact=True)
    return folder / "out"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test changes."""
    return Path(shutil.copytree(exported, tmp_path / "out"))


def content(folder: Path) -> tuple[np.ndarray, pa.Table]:
    """All vectors and metadata of an export, without the names of segments."""
    vectors = np.concatenate([np.load(path) for path in sorted(folder.glob("img_emb/*.npy"))])
    metadata = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("metadata/*.parquet"))])
    return vectors, metadata.drop_columns(["segment"])


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_exported_comes_back_identical(exported: Path, tmp_path: Path, exact: bool) -> None:
    first = Store.open(exported.parent / "store")
    export_vectors(first.tables, tmp_path / "one", ["front", "gate"], rows=17, pictures=True, exact=exact)
    assert import_vectors(str(tmp_path / "store"), tmp_path / "one") == 60
    second = Store.open(tmp_path / "store")
    export_vectors(second.tables, tmp_path / "two", ["front", "gate"], rows=40, pictures=True, exact=exact)
    (vectors, metadata), (again, metadata_again) = content(tmp_path / "one"), content(tmp_path / "two")
    assert vectors.dtype == again.dtype
    np.testing.assert_array_equal(vectors, again)
    assert metadata.equals(metadata_again)
    assert second.verify() == []
    assert second.window().frame_vectors.shape == (60, 16)
    query = first.window().frame_vectors[7]
    assert second.search(query, top=1)[0].captured_at == first.search(query, top=1)[0].captured_at
    with pytest.raises(IdentityMismatch):
        Store.open(tmp_path / "store", encoders=PAIR)


def test_a_repeated_or_stopped_import_adds_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, commit = str(tmp_path / "store"), bulk.commit
    monkeypatch.setattr("index.maintenance.imports._COMMITTED", 2)
    calls = list[int]()

    def failing(tables: Any, chunks: Any) -> int:
        calls.append(len(chunks))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(tables, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "commit", failing)
        with pytest.raises(KeyboardInterrupt):
            import_vectors(url, folder)
    kept = sum(each.frames for each in Store.open(url).streams())
    assert 0 < kept < 60
    assert import_vectors(url, folder) == 60 - kept
    assert import_vectors(url, folder) == 0
    assert Store.open(url).verify() == []


def replace_vectors(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "img_emb" / "img_emb_00001.npy"
        np.save(path, change(np.load(path)))

    return act


def replace_metadata(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / "metadata" / "metadata_00001.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return act


def set_column(name: str, values: Callable[[pa.Table], Any]) -> Callable[[Path], None]:
    return replace_metadata(lambda t: t.set_column(t.column_names.index(name), name, values(t)))


def not_finite(vectors: np.ndarray) -> np.ndarray:
    vectors[3, 2] = np.nan
    return vectors


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (replace_vectors(lambda v: v[:, :12]), r"has the shape \(25, 12\); vectors of 16 floats"),
        (replace_vectors(lambda v: v.reshape(-1)), r"has the shape \(400,\)"),
        (replace_vectors(lambda v: v.astype(np.float64)), "has float64; float16 or float32"),
        (replace_vectors(lambda v: v[:-1]), "has 24 vectors, but metadata_00001.parquet has 25 rows"),
        (replace_vectors(lambda v: v * np.float32(2)), "vector 0 is not finite and of unit norm"),
        (replace_vectors(not_finite), "vector 3 is not finite and of unit norm"),
        (lambda f: (f / "img_emb" / "img_emb_00001.npy").write_bytes(b"\x93NUMPY"), "not a valid .npy file"),
        (lambda f: (f / "img_emb" / "img_emb_00002.npy").unlink(), "2 files in img_emb.* and 3 in metadata"),
        (lambda f: (f / "metadata" / "metadata_00001.parquet").write_bytes(b"PAR1"), "not a valid Parquet file"),
        (lambda f: shutil.rmtree(f / "img_emb"), "0 files in img_emb"),
        (replace_metadata(lambda t: t.drop_columns(["captured_at"])), "has no column captured_at"),
        (replace_metadata(lambda t: t.drop_columns(["stream_id"])), "has no column stream_id"),
        (set_column("stream_id", lambda t: pa.array(["a/b"] * len(t))), "cannot name a stream"),
        (set_column("stream_id", lambda t: pa.array([None] * len(t), pa.string())), "stream_id: row 0 is null"),
        (set_column("captured_at", lambda t: pa.array(["now"] * len(t))), "captured_at: has the type string"),
        (set_column("captured_at", lambda t: t["captured_at"].cast(pa.timestamp("us"))), "with a time zone"),
        (set_column("clock_source", lambda t: pa.array(["sundial"] * len(t))), "row 0 is not one of given"),
        (set_column("pts_seconds", lambda t: pa.array([b"x"] * len(t))), "numbers are expected"),
        (set_column("picture", lambda t: pa.array(["x"] * len(t))), "binary is expected"),
        (lambda f: (f / "export.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "export.json").unlink(), "give the profile"),
        (
            lambda f: (f / "export.json").write_text(
                json.dumps({"frames": 61, "encoder": PAIR.frame.model_dump()})
            ),
            "says 61 frames, the files have 60",
        ),
        (lambda f: (f / "export.json").write_text(json.dumps({"frames": 60, "encoder": {}})), "encoder: name"),
    ],
)  # fmt: skip
def test_what_is_invalid_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, harm: Callable[[Path], object], why: str
) -> None:
    harm(folder)
    with pytest.raises(UsageError, match=why):
        import_vectors(str(tmp_path / "store"), folder)
    assert not (tmp_path / "store").exists()


def test_vectors_of_another_encoder_and_stores_with_patches_are_refused(folder: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    records = make_records("front", BEGAN, 5)
    store.append(make_segment(records), records)
    with pytest.raises(IdentityMismatch, match="has patches of siglip, which an import lacks"):
        import_vectors(store.url, folder)
    assert store.streams()[0].frames == 5
    with pytest.raises(IdentityMismatch, match="has vectors of clip, not of other"):
        import_vectors(str(tmp_path / "new"), folder, frame=identity("other", 16))


def test_the_layout_of_clip_retrieval_without_our_columns(tmp_path: Path) -> None:
    for name in ("img_emb", "metadata"):
        (tmp_path / "out" / name).mkdir(parents=True)
    records = make_records("gate", BEGAN, 20)
    np.save(tmp_path / "out" / "img_emb" / "img_emb_0.npy", records.frame_vectors.astype(np.float16))
    table = pa.table({"image_path": ["x"] * 20, "stream_id": ["gate"] * 20, "captured_at": records.captured_at[::-1]})
    pq.write_table(table, tmp_path / "out" / "metadata" / "metadata_0.parquet")
    assert import_vectors(str(tmp_path / "store"), tmp_path / "out", frame=PAIR.frame) == 20
    window = Store.open(tmp_path / "store").window()
    np.testing.assert_array_equal(window.frame_vectors, records.frame_vectors.astype(np.float16)[::-1])
    np.testing.assert_array_equal(window.pts_seconds, np.arange(20.0))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_usage_errors_only(exported: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "out"
    shutil.copytree(exported, folder)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    held = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(held) - 1))
    held[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(held[: data.draw(st.integers(0, len(held)))] if data.draw(st.booleans()) else held)
    try:
        import_vectors(str(folder.parent / "store"), folder)
    except UsageError:
        assert not (folder.parent / "store").exists()
