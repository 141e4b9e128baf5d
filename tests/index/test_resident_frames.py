"""Frames in memory follow the table: new files, replaced files, forgotten footage; scores and pictures are those stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.delta.files import open_file
from index.errors import UnknownFrame
from index.search import resident_frames
from index.search.resident_frames import ResidentFrames
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment


def resident(store: Store, **limits: int) -> ResidentFrames:
    return ResidentFrames(store.tables.frames, dimension=16, fresh_seconds=0, **limits)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "store", PAIR)
    for chunk, (stream, start, seed) in enumerate((("tür", 40, 1), ("tür", 0, 2), ("gate-1", 0, 3))):
        records = make_records(stream, BEGAN + start * SECOND, 20, seed, mark=f"{stream} {seed}")
        made.append(make_segment(records, chunk, f"file {seed}"), records)
    return made


@pytest.mark.parametrize("vector_bytes", [2**20, 1])
def test_scores_are_those_of_the_store(store: Store, vector_bytes: int) -> None:
    frames = resident(store, vector_bytes=vector_bytes)
    query = make_records(n=1, seed=9).frame_vectors[0]
    snapshot = frames.refresh()
    assert list(snapshot.streams) == ["gate-1", "tür"]
    for name, stream in snapshot.streams.items():
        window = store.window([name])
        np.testing.assert_array_equal(stream.captured_at, window.captured_at)
        np.testing.assert_array_equal(stream.pts_seconds, window.pts_seconds)
        np.testing.assert_allclose(stream.scores(query), window.frame_vectors @ query, atol=1e-6)
        pictures = store.pictures(window)
        assert [stream.picture(row) for row in range(len(stream))] == pictures
        np.testing.assert_array_equal(stream.vector(25 % len(stream)), window.frame_vectors[25 % len(stream)])


def test_rows_by_time(store: Store) -> None:
    stream = resident(store).refresh().streams["tür"]
    assert stream.row(BEGAN + 41 * SECOND) == 21
    with pytest.raises(UnknownFrame, match="no such frame"):
        stream.row(BEGAN + 30 * SECOND)
    assert stream.nearest(BEGAN + 25 * SECOND) == 19
    assert stream.nearest(BEGAN + 38 * SECOND) == 20
    assert stream.nearest(0) == 0
    assert stream.nearest(BEGAN + 10**12) == 39
    assert stream.between(BEGAN + 10 * SECOND, BEGAN + 41 * SECOND) == slice(10, 21)


def test_a_new_version_reads_the_new_files_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = resident(store)
    before = frames.refresh()
    opened: list[str] = []

    def noted(uri: str, path: str) -> Any:
        opened.append(path)
        return open_file(uri, path)

    monkeypatch.setattr(resident_frames, "open_file", noted)
    assert frames.refresh() is before
    records = make_records("tür", BEGAN + 100 * SECOND, 5, 7)
    store.append(make_segment(records, 0, "later"), records)
    after = frames.refresh()
    assert len(opened) == 1
    assert len(after.streams["tür"]) == 45
    assert len(before.streams["tür"]) == 40
    assert after.streams["gate-1"] is before.streams["gate-1"]


def test_forgotten_footage_leaves_the_memory(store: Store) -> None:
    frames = resident(store)
    frames.warm()
    frames.refresh().streams["tür"].picture(0)
    store.forget("tür")
    assert list(frames.refresh().streams) == ["gate-1"]
    assert all("t%C3" not in path for path in frames.held_paths)


def test_compaction_changes_no_result(store: Store) -> None:
    frames = resident(store)
    query = make_records(n=1, seed=9).frame_vectors[0]
    before = frames.refresh().streams["tür"]
    scores = before.scores(query)
    for number in range(4):
        records = make_records("tür", BEGAN + (200 + number) * SECOND, 1, number)
        store.append(make_segment(records, 0, f"small {number}"), records)
    store.compact()
    after = frames.refresh().streams["tür"]
    assert len(after.paths) < 6
    np.testing.assert_allclose(after.scores(query)[:40], scores, atol=1e-6)
    np.testing.assert_allclose(before.scores(query), scores, atol=1e-6)
