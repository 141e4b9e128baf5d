"""`forget` leaves no byte of what was deleted, also after a kill, and other footage as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from index.commits.deletion import deletion_in_progress
from index.delta.table import StoreTable
from index.errors import UnknownStream
from index.records import FrameRecords
from index.standing_questions import StandingQuestionStore
from index.store import Store
from tests.support.faults import Killed, fault
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

Fill = Callable[..., list[FrameRecords]]


@pytest.mark.parametrize("before", [None, BEGAN + 30 * SECOND])
def test_what_is_forgotten_is_nowhere_in_the_bytes(store: Store, before: int | None) -> None:
    secret, kept = make_records("secret-camera", mark="KEEPNOT"), make_records("public-camera", seed=1, mark="KEEPME")
    later = make_records("secret-camera", BEGAN + 40 * SECOND, seed=5, mark="LATER")
    for chunk, records in ((0, secret), (0, kept), (1, later)):
        store.append(make_segment(records, chunk), records)
    store.seal()
    needles = [b"KEEPNOT", secret.frame_vectors[3].tobytes(), secret.patches[3].tobytes()]

    def found(needle: bytes) -> bool:
        return any(needle in path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file())

    assert all(found(n) for n in needles)  # the search would find them
    assert store.forget("secret-camera", before) == (40 if before is None else 20)
    assert not any(found(n) for n in needles)
    assert found(b"KEEPME")
    assert found(b"LATER") == (before is not None)
    if before is None:
        assert not found(b"secret-camera")
        assert not [p for p in Path(store.url).rglob("*") if "secret-camera" in p.name]
    assert store.verify() == []
    assert {s.stream_id for s in store.streams()} == (
        {"public-camera"} if before is None else {"public-camera", "secret-camera"}
    )


@pytest.mark.parametrize("stop", ["delete_once", "purge"])
@pytest.mark.parametrize("table", ["frames", "patches", "segments"])
def test_a_forget_that_was_killed_is_completed_by_the_same_call(
    store: Store, monkeypatch: pytest.MonkeyPatch, stop: str, table: str
) -> None:
    records = make_records("yard", mark="KEEPNOT")
    store.append(make_segment(records), records)
    act = getattr(StoreTable, stop)

    class Killed(BaseException):
        pass

    def dies(self: StoreTable, *args: object) -> object:
        if self.name == table:
            raise Killed
        return act(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(StoreTable, stop, dies)
        with pytest.raises(Killed):
            store.forget("yard")
    Store.open(store.url).forget("yard")
    files = [path for path in Path(store.url).rglob("*") if path.is_file()]
    assert not [
        path
        for path in files
        if "yard" in str(path) or any(secret in path.read_bytes() for secret in (b"yard", b"KEEPNOT"))
    ]
    assert store.verify() == []
    with pytest.raises(UnknownStream):
        store.forget("yard")


def test_forgotten_footage_can_come_again(store: Store, fill: Fill) -> None:
    records = fill(chunks=1)[0]
    store.forget("front")
    assert store.append(make_segment(records, 0), records)
    assert store.streams()[0].frames == 20
    assert store.verify() == []


def test_forgotten_seconds_do_not_come_back_with_the_rest(store: Store, fill: Fill) -> None:
    records = fill(chunks=2)
    store.forget("front", BEGAN + 10 * SECOND)
    assert not store.append(make_segment(records[0], 0), records[0])
    assert store.streams()[0].frames == 30
    more = make_records("front", BEGAN + 40 * SECOND, seed=9)
    assert store.append(make_segment(more, 2), more)  # next to files that the deletion has rewritten
    store.seal(today="1970-01-01")
    best = store.search(more.frame_vectors[3], top=1)[0]
    assert best.captured_at == int(more.captured_at[3])
    assert store.verify() == []


def test_staged_frames_of_a_backfill_are_deleted_too(store: Store, fill: Fill) -> None:
    fill(chunks=1)
    waiting = Path(store.url, "staging", "footage", "0.parquet")
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"frames")
    store.forget("front")
    assert not waiting.exists()


def test_after_a_kill_at_any_removal_compact_completes_the_deletion(tmp_path: Path) -> None:
    """Also where the process was killed after its last removal: only the record of the deletion is left then."""
    records, after, killed = make_records("yard", mark="KEEPNOT"), 14, True
    while killed:
        store = Store.create(tmp_path / str(after), PAIR)
        store.append(make_segment(records), records)
        store.seal(today="1970-01-01")
        StandingQuestionStore(store.url).write_state("yard", b"state")
        try:
            with fault("kill", after):
                store.forget("yard")
            killed = False
        except Killed:
            again = Store.open(store.url)
            began = bool(deletion_in_progress(again.tables, "yard"))
            again.compact()
            if began:
                files = [path for path in Path(store.url).rglob("*") if path.is_file()]
                assert not [path for path in files if "yard" in str(path) or b"KEEPNOT" in path.read_bytes()], after
                assert deletion_in_progress(again.tables, "yard") is None, after
            else:
                again.forget("yard")
        again = Store.open(store.url)
        assert again.append(make_segment(records), records), after
        assert again.verify() == [], after
        after += 1
    assert after > 18
