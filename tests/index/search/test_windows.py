"""Windows without vectors, and reads of scattered frames: the same rows as a read of everything, from fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.delta.row_filter import in_frames
from index.errors import EmptyWindow, StoreCorrupt
from index.patches.codec import PatchEncoding
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

DAY = 86_400 * SECOND
STREAMS = ("back", "front", "gate")


def filled(folder: Path, encoding: PatchEncoding | None = None) -> Store:
    """A store of three streams with footage on two days, the later chunks committed first."""
    store = Store.create(folder, PAIR, encoding)
    for number, name in enumerate(STREAMS):
        for chunk in (3, 2, 1, 0):
            records = make_records(name, BEGAN + chunk // 2 * DAY + chunk * 30 * SECOND, 20, seed=10 * number + chunk)
            store.append(make_segment(records, 0, f"file-{chunk}"), records)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for the tests that only read."""
    return filled(tmp_path_factory.mktemp("windows") / "store")


@pytest.mark.parametrize("where", [(None, None), (BEGAN + 5 * SECOND, BEGAN + DAY + 70 * SECOND)])
def test_a_window_in_parts_equals_the_window(store: Store, where: tuple[int | None, int | None]) -> None:
    whole = store.window(["front", "gate"], *where)
    large = store.large_window(["front", "gate"], *where)
    assert large is not None
    for name in ("stream_index", "captured_at", "pts_seconds"):
        assert getattr(large.window, name).tolist() == getattr(whole, name).tolist()
        assert getattr(large.window, name).dtype == getattr(whole, name).dtype
    assert (large.window.stream_ids, large.window.frame_vectors.shape) == (whole.stream_ids, (len(whole), 0))
    border = int(np.searchsorted(whole.stream_index, 1))
    for first, last in ((0, border), (border, len(whole)), (3, 4), (border + 1, border + 27)):
        assert large.read(first, last).tobytes() == whole.frame_vectors[first:last].tobytes()


def test_whether_a_window_is_large_is_decided_by_its_frames(store: Store) -> None:
    assert store.large_window(["front"], above=80) is None
    assert store.large_window(["front"], above=79) is not None
    assert store.large_window(["front"], BEGAN, BEGAN + 10 * SECOND, above=10) is None  # its file has twice as many
    with pytest.raises(EmptyWindow, match="no frames in that time"):
        store.large_window(["front"], BEGAN + SECOND // 4, BEGAN + SECOND // 2)


def test_a_window_in_parts_stays_as_it_was_opened(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    large, whole = store.large_window(), store.window()
    assert large is not None
    more = make_records("front", BEGAN + 50 * SECOND, 10, seed=99)
    store.append(make_segment(more, 0, "more"), more)
    border = int(np.searchsorted(whole.stream_index, 1))
    assert large.read(border, border + 40).tobytes() == whole.frame_vectors[border : border + 40].tobytes()
    store.forget("gate")
    with pytest.raises(StoreCorrupt):
        large.read(2 * border, 2 * border + 5)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 239), min_size=1, max_size=12, unique=True))
def test_scattered_frames_are_read_whole_and_other_files_not_at_all(store: Store, rows: list[int]) -> None:
    whole, chosen = store.window(), np.sort(rows)
    some = whole.take(chosen)
    assert store.patches(some).tobytes() == store.patches(whole)[chosen].tobytes()
    assert store.pictures(some) == [store.pictures(whole)[row] for row in chosen]
    bare = some.take(slice(None))
    bare = type(bare)(
        bare.stream_ids, bare.stream_index, bare.captured_at, bare.pts_seconds, np.zeros((len(bare), 0), np.float32)
    )
    assert store.with_vectors(bare).frame_vectors.tobytes() == some.frame_vectors.tobytes()
    assert store.with_vectors(some) is some
    files = store.tables.frames.snapshot().matching(in_frames(some.stream_ids, some.stream_index, some.captured_at))
    wanted = {
        (int(some.stream_index[i]), (int(some.captured_at[i]) - BEGAN) // (30 * SECOND)) for i in range(len(some))
    }
    assert len(files) == len(wanted)  # each append made one file, of one stream and twenty seconds


def test_row_groups_without_wanted_frames_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    records = make_records("front", BEGAN, 2_000)
    store.append(make_segment(records, 0), records)
    monkeypatch.setattr("index.delta.snapshot._SPLIT_BYTES", 0)  # as if the file were large
    window = store.window().take(np.array([5, 1_900]))
    seen: list[int] = []
    where = in_frames(window.stream_ids, window.stream_index, window.captured_at)
    for _ in store.tables.frames.map_batches(["captured_at"], where, 8_192, lambda batch: seen.append(len(batch))):
        pass
    assert len(seen) == 2  # of eight row groups of 256 frames
    assert sum(seen) <= 512
    assert store.pictures(window) == [records.pictures[5], records.pictures[1_900]]


@pytest.mark.parametrize("kind", ["fp16", "int8", "differential"])
def test_scattered_patches_of_every_encoding(tmp_path: Path, kind: str) -> None:
    store = filled(tmp_path / "store", PatchEncoding.model_validate({"kind": kind, "epsilon": 0.01}))
    whole = store.window()
    everything = store.patches(whole)
    for rows in ([0], [19, 20, 150], [3, 77, 81, 239]):
        assert store.patches(whole.take(np.array(rows))).tobytes() == everything[rows].tobytes()


def test_a_frame_that_is_not_there_is_an_error(store: Store) -> None:
    window = store.window(["front"]).take(np.array([0]))
    gone = type(window)(
        ["front"], window.stream_index, window.captured_at + 1, window.pts_seconds, np.zeros((1, 0), np.float32)
    )
    with pytest.raises(StoreCorrupt, match=r"front from 2024-03-01T08:00:00.000001"):
        store.with_vectors(gone)
