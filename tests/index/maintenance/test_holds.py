"""Holds: no deletion touches what is held, whatever the order, and everything says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.commits.deletion import delete_rows
from index.commits.held import merged, uncovered
from index.delta.table import StoreTable
from index.errors import FootageHeld, StoreBusy, StoreCorrupt, UnknownStream, UsageError
from index.maintenance import holds as holding
from index.maintenance.rules import RetentionRule
from index.patches.codec import PatchEncoding
from index.records import FrameRecords
from index.standing_questions import StandingQuestionStore
from index.store import Store
from tests.support.faults import Killed, fault
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

Fill = Callable[..., list[FrameRecords]]
DAY = 86_400 * SECOND


def at(second: float) -> int:
    """A time, `second` seconds after the footage begins."""
    return BEGAN + round(second * SECOND)


def seconds(store: Store, stream: str = "front") -> list[int]:
    """The seconds of a stream that the store has."""
    return sorted((int(t) - BEGAN) // SECOND for t in store.window([stream]).captured_at)


def hold(store: Store, first: float, last: float, stream: str = "front") -> str:
    """Hold [first, last) seconds; returns the id."""
    return store.hold(stream, at(first), at(last), reason="case 7/24", placed_by="ada").id


def slow_records(start: int) -> FrameRecords:
    """Twenty frames whose patches change little, so that differential rows refer to earlier ones."""
    records = make_records("front", start, seed=5)
    rng = np.random.default_rng(1)
    patches = np.repeat(records.patches[:1], 20, axis=0).copy()
    patches[rng.random(patches.shape[:2]) < 0.2] += np.float16(0.5)
    return FrameRecords(
        **{name: getattr(records, name) for name in records.__slots__ if name != "patches"}, patches=patches
    )


def test_forget_is_refused_and_says_who_holds_what_and_why(store: Store, fill: Fill) -> None:
    fill(chunks=2)
    standing = StandingQuestionStore(store.url)
    standing.write_state("front", b"{}")
    hold(store, 5, 8)
    for before in (None, at(6), at(40)):
        with pytest.raises(
            FootageHeld,
            match=r"front: 2024-03-01T08:00:05Z to 2024-03-01T08:00:08Z is held as evidence by ada \(case 7/24\); nothing was deleted",
        ):
            store.forget("front", before)
    assert seconds(store) == list(range(40))
    assert standing.read_state("front") == b"{}"
    assert store.forget("front", at(5)) == 5  # before the hold begins
    assert store.verify() == []


@pytest.mark.parametrize("kind", ["fp16", "int8", "differential"])
@pytest.mark.parametrize("before", [None, 30, 12])
def test_everything_but_what_is_held_is_deleted(tmp_path: Path, kind: Any, before: int | None) -> None:
    store = Store.create(tmp_path / "store", PAIR, PatchEncoding(kind=kind))
    for chunk in range(2):
        records = slow_records(at(20 * chunk))
        store.append(make_segment(records, chunk), records)
    whole = store.window(["front"])
    patches, pictures = store.patches(whole), store.pictures(whole)
    store.seal()
    hold(store, 3, 6)
    hold(store, 5, 9)
    hold(store, 15, 16)
    hold(store, 25, 50)
    left = [s for s in range(40) if 3 <= s < 9 or s == 15 or s >= 25 or (before is not None and s >= before)]
    assert store.forget("front", None if before is None else at(before), keep_held=True) == 40 - len(left)
    assert seconds(store) == left
    now = store.window(["front"])
    assert np.array_equal(store.patches(now), patches[left])
    assert store.pictures(now) == [pictures[s] for s in left]
    assert store.verify() == []
    store.compact()
    assert seconds(store) == left
    assert np.array_equal(store.patches(store.window(["front"])), patches[left])
    store.seal(today="1970-01-01")
    assert store.search(whole.frame_vectors[15], top=1)[0].captured_at == at(15)
    records = slow_records(at(0))
    assert store.append(make_segment(records, 0), records) is None, "a listed segment is not stored again"
    for each in store.holds():
        store.release(each.id, reason="closed")
    store.forget("front")
    assert store.streams() == []
    assert store.verify() == []


def test_what_is_deleted_beside_a_hold_is_nowhere_in_the_bytes(store: Store) -> None:
    for chunk, mark in enumerate(("KEEPNOT", "KEEPME")):
        records = make_records("front", at(20 * chunk), seed=chunk, mark=mark)
        store.append(make_segment(records, chunk), records)
    hold(store, 20, 40)
    store.forget("front", keep_held=True)
    files = [path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()]
    assert not any(b"KEEPNOT" in data for data in files)
    assert any(b"KEEPME" in data for data in files)
    assert [s.chunk for s in store.segments()] == [1]


def test_released_holds_leave_no_trace_of_a_stream_that_is_forgotten(store: Store, fill: Fill) -> None:
    fill("secret-camera")
    store.release(hold(store, 0, 5, "secret-camera"), reason="closed")
    store.forget("secret-camera")
    assert not any(b"secret-camera" in p.read_bytes() for p in Path(store.url).rglob("*") if p.is_file())


def test_retention_leaves_what_is_held_and_says_how_much(store: Store) -> None:
    for day in range(4):
        records = make_records("front", BEGAN + day * DAY, n=100, seed=day)
        store.append(make_segment(records, day), records)
    name = hold(store, 10, 40)
    rules, now = {"*": RetentionRule(days=2)}, BEGAN + 4 * DAY
    (dry,) = store.expire(rules, now, dry_run=True)
    assert (dry.frames, dry.held) == (0, 30)
    (expired,) = store.expire(rules, now)
    assert (expired.frames, expired.held) == (170, 30)
    assert len(store.window(["front"])) == 230
    version = store.tables.segments.open().version()
    (again,) = store.expire(rules, now)
    assert (again.frames, again.bytes, again.held) == (0, 0, 30)
    assert store.tables.segments.open().version() == version, "nothing is committed while only held footage is old"
    store.release(name, reason="closed")
    (last,) = store.expire(rules, now)
    assert (last.frames, last.held) == (30, 0)
    assert store.verify() == []


def test_held_bytes_do_not_make_other_footage_expire(store: Store) -> None:
    for day in range(4):
        records = make_records("front", BEGAN + day * DAY, n=200, seed=day)
        store.append(make_segment(records, day), records)
    store.hold("front", BEGAN, BEGAN + 2 * DAY, reason="case", placed_by="ada")
    whole = sum(table.stat().st_size for table in Path(store.url).rglob("*.parquet"))
    rules = {"*": RetentionRule(bytes=int(whole * 0.6))}
    assert store.expire(rules, BEGAN + 4 * DAY) == [], "the free half is smaller than what is allowed"
    (expired,) = store.expire({"*": RetentionRule(bytes=int(whole * 0.4))}, BEGAN + 4 * DAY)
    assert (expired.frames, expired.held) == (200, 400)
    assert {int(t - BEGAN) // DAY for t in store.window(["front"]).captured_at} == {0, 1, 3}


def test_a_deletion_that_was_killed_is_completed_as_it_began(store: Store, fill: Fill) -> None:
    fill(chunks=2)
    hold(store, 5, 8)
    for boundary in range(1, 12):
        with pytest.raises(Killed), fault("kill", boundary):
            store.forget("front", at(30), keep_held=True)
        store = Store.open(store.url)
        assert set(seconds(store)) >= {5, 6, 7, *range(30, 40)}
        if len(seconds(store)) == 13:
            break
    store.compact()
    assert seconds(store) == [5, 6, 7, *range(30, 40)]
    assert store.verify() == []


def test_a_hold_of_footage_that_is_being_deleted_is_refused(
    store: Store, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(chunks=2)
    hold(store, 5, 8)
    begun, go = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> int:
        begun.set()
        assert go.wait(300)
        return delete_rows(*arguments)

    monkeypatch.setattr("index.maintenance.retention.delete_rows", slow)
    thread = threading.Thread(target=lambda: store.forget("front", at(30), keep_held=True))
    thread.start()
    try:
        assert begun.wait(300)
        other = Store.open(store.url)
        with pytest.raises(StoreBusy, match="is being deleted, by a deletion that began earlier"):
            hold(other, 10, 12)
        with pytest.raises(StoreBusy):
            hold(other, 6, 10)
        hold(other, 6, 8)  # held already when the deletion began
        hold(other, 30, 35)  # not deleted
    finally:
        go.set()
        thread.join(300)
    assert seconds(store) == [5, 6, 7, *range(30, 40)]
    hold(store, 10, 12)  # nothing is left there; a later ingest of it is held


def test_holds_placed_while_deletions_run_are_obeyed_or_refused(store: Store, fill: Fill) -> None:
    fill(chunks=2)
    outcomes: list[tuple[int, bool]] = []

    def place() -> None:
        mine = Store.open(store.url)
        for second in range(0, 30, 3):
            try:
                hold(mine, second, second + 1)
                outcomes.append((second, True))
            except StoreBusy:
                outcomes.append((second, False))

    thread = threading.Thread(target=place)
    thread.start()
    for second in range(2, 32, 6):
        store.forget("front", at(second), keep_held=True)
    thread.join(600)
    assert len(outcomes) == 10
    left = set(seconds(store))
    assert set(range(26, 40)) <= left
    held = {second for second, placed in outcomes if placed}
    assert store.held_seconds("front") == len(held & left)
    assert store.held_seconds("front", at(20)) == len({second for second in held & left if second < 20})
    store.forget("front", at(39), keep_held=True)
    assert set(seconds(store)) == {39, *(s for s in left if s in held)}
    assert store.verify() == []


def test_invalid_holds(store: Store, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    fill()
    with pytest.raises(UnknownStream, match="yard: the store has no such stream"):
        hold(store, 0, 1, "yard")
    with pytest.raises(UsageError, match=r"ends .* before it begins"):
        hold(store, 5, 5)
    for reason in ("", " \n", "x" * 501):
        with pytest.raises(UsageError, match="need a reason of 1 to 500 characters"):
            store.hold("front", at(0), at(1), reason=reason, placed_by="ada")
    with pytest.raises(UsageError, match=r"'nothing': .* has no such hold"):
        store.release("nothing", reason="closed")
    monkeypatch.setattr(holding, "MAX_HOLDS", 1)
    name = hold(store, 0, 1)
    with pytest.raises(UsageError, match="has 1 holds already"):
        hold(store, 2, 3)
    with pytest.raises(UsageError, match="need a reason"):
        store.release(name, reason="")
    assert [h.id for h in store.holds()] == [h.id for h in store.holds("front")] == [name]
    assert store.holds("yard") == []


def test_a_damaged_record_of_holds_lets_nothing_be_deleted(store: Store, fill: Fill) -> None:
    fill(chunks=1)
    hold(store, 0, 1)
    (name,) = [n for n in store.tables.segments.configuration() if n.startswith("sightline.holds.")]
    assert isinstance(store.tables.segments, StoreTable)
    store.tables.segments.configure({name: '[{"id": 1'})
    for act in (lambda: store.forget("front", keep_held=True), lambda: store.expire({"*": RetentionRule(days=1)})):
        with pytest.raises(StoreCorrupt, match="record of the evidence locks is damaged"):
            act()
    assert seconds(store) == list(range(20))


STRETCHES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6)


@given(STRETCHES, st.none() | st.integers(0, 30), st.integers(0, 30), st.integers(1, 10))
def test_arithmetic_of_stretches(some: list[tuple[int, int]], before: int | None, start: int, length: int) -> None:
    points = {t for a, b in some for t in range(a, b) if before is None or t < before}
    result = merged(some, before)
    assert {t for a, b in result for t in range(a, b)} == points
    assert all(a < b for a, b in result)
    assert all(one[1] < two[0] for one, two in pairwise(result))
    rest = uncovered((start, start + length), result)
    assert [t for a, b in rest for t in range(a, b)] == [t for t in range(start, start + length) if t not in points]
