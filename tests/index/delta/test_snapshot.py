"""Snapshots: what the log says of a table equals a scan of its rows, and reads leave out no row of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.delta.row_filter import in_window, of_segment, of_streams
from index.delta.table import StoreTable
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

DAY = 86_400 * SECOND
ODD = 123_457  # microseconds; Delta's statistics have milliseconds


def filled(folder: Path, files: int = 4) -> Store:
    """A store of two streams with times between two milliseconds; the second one goes over midnight."""
    store = Store.create(folder, PAIR)
    for name, began in (("front", BEGAN + ODD), ("gate", BEGAN + DAY - BEGAN % DAY - 15 * SECOND + ODD)):
        for chunk in range(files):
            records = make_records(name, began + chunk * 10 * SECOND, 10, seed=chunk)
            store.append(make_segment(records, chunk), records)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for the tests that only read."""
    return filled(tmp_path_factory.mktemp("snapshot") / "store")


def scanned(store: Store) -> list[tuple[str, int, int, int]]:
    """Name, rows, first and last time of each stream, from every row."""
    rows = store.tables.frames.dataset().to_table(columns=["stream_id", "captured_at"])
    times = rows["captured_at"].cast(pa.int64()).to_numpy()
    names = np.array(rows["stream_id"].to_pylist())
    return [
        (str(name), int((names == name).sum()), int(times[names == name].min()), int(times[names == name].max()))
        for name in np.unique(names)
    ]


def summarized(store: Store) -> list[tuple[str, int, int, int]]:
    """The same from the log."""
    found = store.tables.frames.snapshot().summaries()
    return [(each.stream_id, each.rows, each.first, each.last) for each in found]


def test_summaries_equal_a_scan_to_the_microsecond(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    expected = [("front", 40, BEGAN + ODD, BEGAN + ODD + 39 * SECOND)]
    assert summarized(store)[:1] == expected
    assert summarized(store) == scanned(store)
    store.compact()
    assert summarized(store) == scanned(store)
    store.forget("gate", before=store.streams()[1].first + 12 * SECOND + 1)
    assert summarized(store) == scanned(store)
    assert summarized(store)[1][1] == 27
    store.forget("front")
    assert summarized(store) == scanned(store)
    assert store.last_captured_at("front") is None


def test_files_without_statistics_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.tables.frames.snapshot()
    listed = found.listed
    unknown = {
        "num_records": pa.array(np.full(len(listed), -1)),
        "first": pa.array(np.full(len(listed), np.iinfo(np.int64).min)),
        "last": pa.array(np.full(len(listed), np.iinfo(np.int64).max)),
        "low": pa.nulls(len(listed), pa.string()),
        "high": pa.nulls(len(listed), pa.string()),
    }
    for name, column in unknown.items():
        listed = listed.set_column(listed.schema.get_field_index(name), name, column)
    bare = type(found)(found.uri, found.version, found.schema, found.held, listed)
    assert bare.rows is None
    assert bare.summaries() == found.summaries()
    assert bare.row_counts() == found.row_counts() == {"front": 40, "gate": 40}
    where = in_window(["front"], BEGAN + 3 * SECOND, BEGAN + 7 * SECOND)
    assert bare.read(["captured_at"], where).sort_by("captured_at") == found.read(["captured_at"], where)
    assert bare.has_rows(where)
    assert not bare.has_rows(in_window(["front"], BEGAN - SECOND, BEGAN))


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(-2_000_000, 45_000_000),
    length=st.integers(1, 30_000_000),
    names=st.sampled_from([["front"], ["gate"], ["front", "gate"], ["nothing"]]),
)
def test_reads_and_emptiness_equal_a_naive_filter(store: Store, low: int, length: int, names: list[str]) -> None:
    base = BEGAN if names == ["front"] else BEGAN + DAY - BEGAN % DAY - 15 * SECOND
    start, end = base + low, base + low + length
    snapshot = store.tables.frames.snapshot()
    everything = store.tables.frames.dataset().to_table(columns=["stream_id", "captured_at"])
    times = everything["captured_at"].cast(pa.int64()).to_numpy()
    held = pc.is_in(everything["stream_id"], pa.array(names)).to_numpy().astype(bool)
    expected = np.sort(times[held & (times >= start) & (times < end)])
    where = in_window(names, start, end)
    found = snapshot.read(["captured_at"], where)["captured_at"].cast(pa.int64()).to_numpy()
    np.testing.assert_array_equal(np.sort(found), expected)
    assert snapshot.has_rows(where) == (len(expected) > 0)


def test_a_file_that_ends_between_two_milliseconds_is_not_left_out(store: Store) -> None:
    last = BEGAN + ODD + 9 * SECOND  # of the first file; the log says 123 ms
    found = store.tables.frames.read(["captured_at"], in_window(["front"], last, last + 1))
    assert found["captured_at"].cast(pa.int64()).to_pylist() == [last]


def test_files_are_ruled_out_by_stream_day_time_and_segment(store: Store) -> None:
    snapshot = store.tables.frames.snapshot()
    assert len(snapshot) == 9  # the second file of `gate` is two, of two days
    assert len(snapshot.matching(of_streams(["front"]))) == 4
    assert len(snapshot.matching(in_window(["front"], BEGAN + 11 * SECOND, BEGAN + 19 * SECOND))) == 1
    assert len(snapshot.matching(in_window(["front", "gate"], None, BEGAN + DAY - BEGAN % DAY))) == 6
    segments = store.tables.segments.snapshot()
    key = segments.read(["segment"], of_streams(["gate"]))["segment"][2].as_py()
    assert len(segments.matching(of_segment("gate", key))) == 1
    assert segments.read(["segment"], of_segment("gate", key))["segment"].to_pylist() == [key]
    assert [key for key, files in snapshot.by_day().items() for _ in files.paths] == [
        *[("front", "2024-03-01")] * 4,
        *[("gate", "2024-03-01")] * 2,
        *[("gate", "2024-03-02")] * 3,
    ]


def test_values_by_file(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for name in ("Tür-1", "front"):
        for chunk in range(5):
            records = make_records(name, BEGAN + chunk * 10 * SECOND, 10, seed=chunk)
            store.append(make_segment(records, chunk), records)
    for compacted in (False, True):
        if compacted:
            store.compact()
        files = store.tables.frames.snapshot()
        found = files.values_by_file("segment")
        assert list(found) == files.paths
        for i, path in enumerate(files.paths):
            rows = files.take(np.array([i])).read(["segment"])
            assert found[path] == frozenset(rows["segment"].to_pylist())
    assert sorted(len(each) for each in found.values()) == [5, 5]


def test_a_snapshot_stays_while_the_table_grows(tmp_path: Path) -> None:
    store, other = filled(tmp_path / "store"), Store.open(tmp_path / "store")
    before = other.tables.frames.snapshot()
    assert other.tables.frames.snapshot() is before
    more = make_records("front", BEGAN + 100 * SECOND, 5)
    store.append(make_segment(more, 9), more)
    after = other.tables.frames.snapshot()
    assert after.version == before.version + 1
    assert (before.summaries(["front"])[0].rows, after.summaries(["front"])[0].rows) == (40, 45)
    assert len(before.read(["captured_at"], of_streams(["front"]))) == 40


def test_a_reader_follows_a_log_that_was_cleaned(tmp_path: Path) -> None:
    store, reader = filled(tmp_path / "store"), Store.open(tmp_path / "store")
    assert len(reader.streams()) == 2
    store.forget("gate")  # removes the entries of the log at once
    assert [each.stream_id for each in reader.streams()] == ["front"]
    assert len(reader.window()) == 40


def test_an_operation_opens_each_table_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "store").seal(today="2024-03-02")
    store = Store.open(tmp_path / "store")
    opened: list[str] = []
    original = StoreTable.open

    def counted(table: StoreTable) -> object:
        """Open a table and note its name."""
        opened.append(table.name)
        return original(table)

    monkeypatch.setattr(StoreTable, "open", counted)
    query = store.window(["front"]).frame_vectors[3]
    assert store.search(query, top=1)[0].score == pytest.approx(1)
    assert len(store.score(query, ["front", "gate"])) == 2
    assert len(store.streams()) == 2
    assert opened == ["frames"]


def test_vectors_are_stored_without_dictionaries(store: Store) -> None:
    table = store.tables.frames
    group = pq.read_metadata(Path(table.uri, table.snapshot().paths[0])).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    raw = [name for name, column in columns.items() if "RLE_DICTIONARY" not in column.encodings]
    assert raw == ["frame_vector.list.element", "patch_pooled.list.element", "picture"]
    assert columns["captured_at"].statistics.has_min_max
