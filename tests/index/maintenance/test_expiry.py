"""Retention: what is too old or too large leaves the disk, to the byte; everything else stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from index.errors import UnknownStream
from index.maintenance.expiry import stream_bytes
from index.maintenance.rules import RetentionRule
from index.schemas import partition_folder
from index.standing_questions import StandingQuestionStore
from index.store import Store
from index.stream_patterns import match_streams, matches
from tests.support.records import BEGAN, SECOND, make_records, make_segment

DAY = 86_400 * SECOND


def fill(store: Store, stream: str, days: int, frames: int = 200) -> None:
    """One segment at the same time of `days` days, whose pictures contain DAY<number>."""
    for day in range(days):
        records = make_records(stream, BEGAN + day * DAY, n=frames, seed=day, mark=f"DAY{day}-{stream}")
        store.append(make_segment(records, day), records)


def found(store: Store, text: str) -> bool:
    """Whether any file of the store contains a text."""
    return any(text.encode() in path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file())


def on_disk(store: Store, stream: str) -> int:
    """Bytes of the files of a stream in the tables."""
    folders = [Path(store.url, table, partition_folder(stream)) for table in ("frames", "patches", "segments")]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def test_what_is_too_old_leaves_the_disk(store: Store) -> None:
    for stream in ("gate-1", "gate-2", "yard"):
        fill(store, stream, 4)
    store.seal()
    now = BEGAN + 4 * DAY
    rules = {"gate-2": RetentionRule(days=36_500), "gate-*": RetentionRule(days=2)}
    assert [(e.stream_id, e.frames) for e in store.expire(rules, now, dry_run=True)] == [("gate-1", 0)]
    assert found(store, "DAY0-gate-1")
    (expired,) = store.expire(rules, now)
    assert (expired.stream_id, expired.pattern, expired.frames) == ("gate-1", "gate-*", 400)
    assert expired.before == BEGAN + 2 * DAY
    assert expired.bytes > 0
    assert [found(store, f"DAY{day}-gate-1") for day in range(4)] == [False, False, True, True]
    assert all(found(store, f"DAY{day}-{stream}") for day in range(4) for stream in ("gate-2", "yard"))
    assert {s.stream_id: s.frames for s in store.streams()} == {"gate-1": 400, "gate-2": 800, "yard": 800}
    assert store.verify() == []
    assert store.expire(rules, now) == []
    query = store.window(["gate-1"]).frame_vectors[0]
    assert store.search(query, top=1, streams=["gate-1"])[0].captured_at == BEGAN + 2 * DAY


def test_age_is_applied_in_fractions_of_a_day(store: Store) -> None:
    fill(store, "gate", 1, frames=600)
    now, age = BEGAN + 1000 * SECOND, round(0.01 * DAY)  # 864 s
    (expired,) = store.expire({"*": RetentionRule(days=0.01)}, now)
    left = store.window(["gate"])
    assert expired.frames == 600 - len(left)
    oldest = int(left.captured_at[0])
    assert now - age - age // 24 - SECOND <= oldest <= now - age + SECOND
    assert store.verify() == []


def test_a_stream_keeps_to_its_bytes(store: Store) -> None:
    fill(store, "gate", 5)
    fill(store, "yard", 2)
    whole = sum(stream_bytes(store.tables)["gate"].values())
    assert whole == on_disk(store, "gate")
    allowed = whole // 2
    yard = on_disk(store, "yard")
    (expired,) = store.expire({"gate": RetentionRule(bytes=allowed)}, BEGAN)
    assert on_disk(store, "gate") <= allowed
    assert expired.bytes == whole - on_disk(store, "gate")
    assert [found(store, f"DAY{day}-gate") for day in range(5)] == [False, False, False, True, True]
    assert on_disk(store, "yard") == yard
    assert store.expire({"gate": RetentionRule(bytes=allowed)}, BEGAN) == []
    assert store.verify() == []


def test_of_a_single_day_the_oldest_part_goes(store: Store) -> None:
    fill(store, "gate", 1, frames=2000)
    allowed = on_disk(store, "gate") * 3 // 4
    store.expire({"*": RetentionRule(bytes=allowed)}, BEGAN)
    assert 0 < on_disk(store, "gate") <= allowed
    left = store.window(["gate"])
    assert 1000 < len(left) < 1500
    assert left.captured_at[-1] == BEGAN + 1999 * SECOND
    assert store.verify() == []


def test_rules_and_patterns() -> None:
    for wrong in ({}, {"days": 0}, {"bytes": 0}, {"day": 3}):
        with pytest.raises(ValidationError):
            RetentionRule.model_validate(wrong)
    assert matches("gate-1", "gate-*")
    assert not matches("gate", "gate-*")
    known = ["back", "gate-1", "gate-2", "前门"]
    assert match_streams(["gate-?", "back", "gate-1"], known) == ["back", "gate-1", "gate-2"]
    assert match_streams(["前*"], known) == ["前门"]
    with pytest.raises(
        UnknownStream, match=r"^yard-\*: no stream of the store matches this pattern; it has back, gate-1"
    ):
        match_streams(["yard-*"], known)
    with pytest.raises(UnknownStream, match=r"^gate1: the store has no such stream; did you mean gate-1\? It has back"):
        match_streams(["gate1"], known)


def test_regular_retention_keeps_the_alert_state_and_forget_does_not(store: Store) -> None:
    fill(store, "gate", 3)
    standing = StandingQuestionStore(store.url)
    standing.write_state("gate", b"{}")
    store.expire({"gate": RetentionRule(days=2)}, BEGAN + 3 * DAY)
    assert standing.read_state("gate") == b"{}"
    store.forget("gate", BEGAN + 2 * DAY)
    assert standing.read_state("gate") is None
