"""The page about the tables: its code is executed on a store, and its columns are those of the schemas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from index.schemas import TABLES
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"


def test_every_program_reads_the_current_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.create("store", PAIR)
    for name in ("front", "gate"):
        for chunk in range(5):
            records = make_records(name, BEGAN + chunk * 10 * SECOND, 10, seed=chunk)
            store.append(make_segment(records, chunk), records)
    store.compact()
    store.forget("gate", before=BEGAN + 5 * SECOND)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(code, names)
    assert len(names["table"]) == 95
    assert len(names["front"]) == 50
    assert sorted(names["counted"].rows()) == [("front", 50), ("gate", 45)]
    assert names["per_day"] == [("front", "2024-03-01", 50), ("gate", "2024-03-01", 45)]
    assert names["total"] == 95


def test_a_glob_counts_frames_twice_after_compact(tmp_path: Path) -> None:
    """What the page warns of is so; if it no longer is, the warning can go."""
    store = Store.create(tmp_path / "store", PAIR)
    for chunk in range(5):
        records = make_records("front", BEGAN + chunk * 10 * SECOND, 10, seed=chunk)
        store.append(make_segment(records, chunk), records)
    store.compact()
    glob = f"{store.url}/frames/stream_id=*/**/*.parquet"
    counted = duckdb.sql(f"SELECT count(*) FROM read_parquet('{glob}')")
    assert counted is not None
    assert counted.fetchall() == [(100,)]
    assert store.streams()[0].frames == 50


def test_every_column_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for schema, _ in TABLES.values():
        for name in schema.names:
            assert f"`{name}`" in page, name
