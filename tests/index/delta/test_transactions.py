"""Application transactions followed through the log: always what deltalake says, with few reads, and still fenced."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties
from hypothesis import given, settings
from hypothesis import strategies as st

from index.delta.failures import retry_conflicts
from index.delta.table import StoreTable
from index.delta.transactions import Transactions
from index.errors import CommitFenced

SCHEMA = pa.schema([pa.field("a", pa.int64())])
APPS = ("gate/0", "gate/1", "yard/0")
ROW = pa.table({"a": [1]}, SCHEMA)


def opened(folder: Path) -> StoreTable:
    """A worker's own view of the table, with caches of its own; the first call makes the table."""
    table = StoreTable(str(folder), "test", schema=SCHEMA, writer=WriterProperties(), partitions=[])
    table.create({})
    return table


def entry_of(folder: Path, version: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "_delta_log" / f"{version:020d}.json").read_text().splitlines()]


class Asked:
    """A `DeltaTable` that counts how often it is asked for a transaction."""

    def __init__(self, folder: Path, answers: dict[str, int] | None = None) -> None:
        self.table, self.answers, self.asked = DeltaTable(str(folder)), answers, 0

    def version(self) -> int:
        return int(self.table.version())

    def transaction_version(self, app: str) -> int | None:
        self.asked += 1
        found = self.table.transaction_version(app) if self.answers is None else self.answers.get(app)
        return None if found is None else int(found)


def known_at(known: Transactions, table: Any) -> dict[str, int | None]:
    return known.at(table, APPS)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(APPS), st.booleans()), min_size=1, max_size=12))
def test_what_is_known_is_what_deltalake_says(steps: list[tuple[int, str, bool]]) -> None:
    """Two workers commit in any order, with and without a look for the other's commits first."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [opened(Path(folder, "t")) for _ in range(2)]
        truth: dict[str, int] = {}
        for number, (worker, app, update) in enumerate(steps):
            before = truth.get(app)
            try:
                workers[worker].append_and_advance(ROW, {app: (before, number)}, update=update)
            except CommitFenced:  # it knows nothing of the other one's commit, and looks
                assert not update
                workers[worker].append_and_advance(ROW, {app: (before, number)})
            truth[app] = number
            for table in workers:
                assert table.transaction_versions(APPS) == {each: truth.get(each) for each in APPS}
        newest = DeltaTable(str(Path(folder, "t")))
        assert {app: newest.transaction_version(app) for app in truth} == truth


def test_entries_are_read_once_and_deltalake_is_not_asked_again(tmp_path: Path) -> None:
    worker, other = opened(tmp_path), opened(tmp_path)
    worker.append_and_advance(ROW, {"gate/0": (None, 1), "gate/1": (None, 1)})
    known, first = Transactions(str(tmp_path)), Asked(tmp_path)
    assert known_at(known, first) == {"gate/0": 1, "gate/1": 1, "yard/0": None}
    assert first.asked == 3
    other.append_and_advance(ROW, {"yard/0": (None, 5)})
    worker.append_and_advance(ROW, {"gate/0": (1, 2)})
    later = Asked(tmp_path)
    assert known_at(known, later) == {"gate/0": 2, "gate/1": 1, "yard/0": 5}
    assert later.asked == 0


@pytest.mark.parametrize("damage", ["removed", "damaged"])
def test_an_entry_that_cannot_be_read_is_asked_of_deltalake(tmp_path: Path, damage: str) -> None:
    worker = opened(tmp_path)
    known = Transactions(str(tmp_path))
    assert known.at(DeltaTable(str(tmp_path)), APPS)["gate/0"] is None
    worker.append_and_advance(ROW, {"gate/0": (None, 1)})
    newest = Asked(tmp_path, {"gate/0": 1})
    entry = tmp_path / "_delta_log" / f"{1:020d}.json"
    if damage == "removed":
        entry.unlink()
    else:
        entry.write_text(entry.read_text().replace('"txn":', '"txn":['))
    assert known_at(known, newest) == {"gate/0": 1, "gate/1": None, "yard/0": None}
    assert newest.asked == 3


def test_a_worker_that_was_replaced_is_fenced_without_a_look(tmp_path: Path) -> None:
    old, new = opened(tmp_path), opened(tmp_path)
    old.append_and_advance(ROW, {"gate/0": (None, 1)})
    new.append_and_advance(ROW, {"gate/0": (1, 2)})
    with pytest.raises(CommitFenced, match="gate/0 is at 2, this worker expected 1"):
        old.append_and_advance(ROW, {"gate/0": (1, 3)}, update=False)
    assert len(DeltaTable(str(tmp_path)).to_pyarrow_table()) == 2


def test_the_version_after_a_commit_is_that_of_the_commit_whatever_others_do(tmp_path: Path) -> None:
    """`Transactions.advance` rests on it: the handle must not run ahead to another worker's commit."""
    opened(tmp_path)

    def write(number: int) -> list[int]:
        table, handle, made = opened(tmp_path), DeltaTable(str(tmp_path)), []
        for at in range(12):
            app, properties = f"gate/{number}", CommitProperties(app_transactions=[Transaction(f"gate/{number}", at)])
            retry_conflicts(table.write)(handle, ROW, properties)
            version = handle.version()
            transactions = [line["txn"] for line in entry_of(tmp_path, version) if "txn" in line]
            assert [(each["appId"], each["version"]) for each in transactions] == [(app, at)]
            made.append(version)
        return made

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(write, range(4)))
    assert sorted(version for each in made for version in each) == list(range(1, 49))
