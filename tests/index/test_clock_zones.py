"""The zone of a clock is stored with its segment, also in a store that was made before there was a column for it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, write_deltalake

from index import schemas, tables
from index.commits import append, bulk
from index.commits import offset as offsets
from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.delta import table as delta_table
from index.records import ClockFold, Segment, clock_text
from index.schemas import SEGMENTS
from index.store import Store, StreamClock
from tests.support.records import APP, BEGAN, PAIR, SECOND, make_records, make_segment

_LATER = ("clock_zone", "clock_fold")


def early(schema: pa.Schema = SEGMENTS) -> pa.Schema:
    """The table `segments` as earlier versions made it."""
    return pa.schema([field for field in schema if field.name not in _LATER])


def in_zone(segment: Segment, zone: str | None = "Europe/Amsterdam", fold: ClockFold | None = "first") -> Segment:
    return segment.model_copy(update={"clock_source": "filename", "clock_zone": zone, "clock_fold": fold})


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store without the columns, as an earlier version writes it: one segment of the stream "front"."""
    with monkeypatch.context() as earlier:
        for module in (schemas, tables, append, bulk, offsets):
            earlier.setattr(module, "SEGMENTS", early(), raising=False)
        earlier.setitem(schemas.TABLES, "segments", (early(), ["stream_id"]))
        earlier.setattr(delta_table, "TABLES", schemas.TABLES)
        earlier.setattr(
            append, "segment_row", lambda key, segment: {**segment.model_dump(exclude=set(_LATER)), "segment": key}
        )
        store = Store.create(tmp_path / "store", PAIR)
        records = make_records()
        store.append(make_segment(records), records)
    opened = Store.open(store.url)
    assert not set(_LATER) & {field.name for field in opened.tables.segments.open().schema().fields}
    return opened


def zones(store: Store) -> list[tuple[str, int, str | None, str | None]]:
    return [(s.stream_id, s.chunk, s.clock_zone, s.clock_fold) for s in Store.open(store.url).segments()]


def columns(store: Store) -> set[str]:
    return {field.name for field in store.tables.segments.open().schema().fields}


def test_an_old_store_opens_and_stays_as_it_is_for_clocks_without_a_zone(old: Store) -> None:
    records = make_records("front", BEGAN + 40 * SECOND)
    assert old.append(make_segment(records, 1), records)
    assert zones(old) == [("front", 0, None, None), ("front", 1, None, None)]
    assert columns(old) == set(early().names)
    assert old.clocks() == [StreamClock("front", "given", None, None, BEGAN, BEGAN + 60 * SECOND, 2)]
    assert old.verify() == []


def test_an_append_adds_the_columns(old: Store) -> None:
    records = make_records("front", BEGAN + 40 * SECOND)
    assert old.append(in_zone(make_segment(records, 1)), records)
    assert old.append(in_zone(make_segment(records, 1)), records) is None
    assert zones(old) == [("front", 0, None, None), ("front", 1, "Europe/Amsterdam", "first")]
    assert columns(old) == set(SEGMENTS.names)
    assert old.verify() == []


def test_a_backfill_adds_the_columns(old: Store) -> None:
    records = make_records("back")
    chunk = bulk.write(old.tables, in_zone(make_segment(records), "+01:00", None), records)
    assert chunk is not None
    assert bulk.commit(old.tables, [chunk]) == 1
    assert zones(old) == [("back", 0, "+01:00", None), ("front", 0, None, None)]
    assert old.verify() == []


def test_a_worker_adds_the_columns_while_another_one_has_the_table_open(old: Store) -> None:
    workers = [OffsetCommitter(Store.open(old.url).tables) for _ in range(2)]
    for offset, worker in enumerate([*workers, *workers]):
        records = make_records("back", BEGAN + 30 * offset * SECOND, seed=offset)
        segment = make_segment(records, offset, APP)
        segment = in_zone(segment, "UTC", None) if offset % 2 else segment
        worker.invalidate()
        worker.commit([OffsetSegment(APP, segment, records)], {APP: OffsetAdvance(offset or None, offset + 1)})
    assert [zone for _, _, zone, _ in zones(old)] == [None, "UTC", None, "UTC", None]
    assert old.verify() == []


def test_deletion_and_compaction_keep_the_zones(old: Store) -> None:
    for chunk in range(1, 9):
        records = make_records("front", BEGAN + 40 * chunk * SECOND)
        old.append(in_zone(make_segment(records, chunk)), records)
    assert sum(each.merged for each in old.compact()) > 0
    old.forget("front", BEGAN + 200 * SECOND)
    assert zones(old) == [("front", chunk, "Europe/Amsterdam", "first") for chunk in range(5, 9)]
    assert old.verify() == []


def test_a_column_of_a_later_version_gets_null(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    later = SEGMENTS.append(pa.field("later", pa.string()))
    write_deltalake(
        store.tables.segments.open(),
        later.empty_table(),
        mode="append",
        schema_mode="merge",
        commit_properties=CommitProperties(),
    )
    records = make_records()
    assert Store.open(store.url).append(in_zone(make_segment(records)), records)
    assert zones(store) == [("front", 0, "Europe/Amsterdam", "first")]
    assert store.tables.segments.dataset().to_table(columns=["later"]).to_pylist() == [{"later": None}]


def test_clocks_of_a_stream(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for chunk, (zone, fold) in enumerate([("Europe/Amsterdam", None), ("Europe/Amsterdam", "first"), ("UTC", None)]):
        records = make_records("front", BEGAN + 40 * chunk * SECOND)
        store.append(in_zone(make_segment(records, chunk), zone, fold), records)  # type: ignore[arg-type]
    assert [(c.zone, c.fold, (c.first - BEGAN) // SECOND, (c.last - BEGAN) // SECOND) for c in store.clocks()] == [
        ("Europe/Amsterdam", None, 0, 20),
        ("Europe/Amsterdam", "first", 40, 60),
        ("UTC", None, 80, 100),
    ]
    assert store.clocks(["nowhere"]) == []
    assert clock_text("filename", "UTC") == "filename (UTC)"
    assert clock_text("filename", "Europe/Amsterdam", "first") == (
        "filename (Europe/Amsterdam; the first of two equal times)"
    )
    assert clock_text("mtime", None) == "mtime"
