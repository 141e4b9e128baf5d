"""Partition ownership: where a worker starts by the store's offsets, and which assignments are in force."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.errors import CommitFenced, OffsetsExpired, TopicRecreated
from index.store import Store
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership, read_ownership
from tests.support.records import PAIR

ZERO, ONE = Partition("footage", 0), Partition("footage", 1)


@pytest.fixture
def committer(tmp_path: Path) -> OffsetCommitter:
    return OffsetCommitter(Store.create(tmp_path / "store", PAIR).tables)


def store_up_to(committer: OffsetCommitter, owned: OwnedPartition, offset: int) -> None:
    """Commit the records of a partition up to `offset`, exclusive; they hold no footage."""
    committer.commit([], {owned.partition.app: owned.advance_to(offset)})
    owned.stored = offset


def assignment(number: int = 0) -> OwnedPartition:
    return OwnedPartition(Partition("footage", number), None, 0, None)


# ---- where to start ------------------------------------------------------------------------------------------------


def test_a_partition_that_was_never_stored_starts_at_the_first_message_there_is(committer: OffsetCommitter) -> None:
    (owned,) = read_ownership(committer, {ZERO: (7, 9)}, "id-1")
    assert (owned.partition, owned.stored, owned.fetched) == (ZERO, None, 7)
    assert owned.advance_to(9) == OffsetAdvance(None, 9, "footage/0@id-1")


def test_each_partition_starts_where_the_store_ends(committer: OffsetCommitter) -> None:
    first, second = read_ownership(committer, {ZERO: (0, 9), ONE: (0, 9)}, "id-1")
    store_up_to(committer, first, 5)
    store_up_to(committer, second, 9)
    again = read_ownership(committer, {ZERO: (2, 12), ONE: (9, 9)}, "id-1")
    assert [(owned.stored, owned.fetched) for owned in again] == [(5, 5), (9, 9)]
    store_up_to(committer, again[0], 12)
    assert committer.offsets(["footage/0", "footage/0@id-1"]) == {"footage/0": 12, "footage/0@id-1": 12}


def test_the_owner_before_is_fenced(committer: OffsetCommitter) -> None:
    (before,) = read_ownership(committer, {ZERO: (0, 9)}, "id-1")
    (after,) = read_ownership(committer, {ZERO: (0, 9)}, "id-1")
    store_up_to(committer, after, 4)
    with pytest.raises(CommitFenced):
        store_up_to(committer, before, 2)


def test_no_partitions_are_no_assignments(committer: OffsetCommitter) -> None:
    assert read_ownership(committer, {}, "id-1") == []


def test_a_broker_without_topic_ids(committer: OffsetCommitter) -> None:
    (owned,) = read_ownership(committer, {ZERO: (0, 9)}, "")
    assert owned.topic_app is None
    store_up_to(committer, owned, 5)
    (again,) = read_ownership(committer, {ZERO: (0, 9)}, "")
    assert again.fetched == 5


# ---- topics that were deleted and created again ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "topic_id", "message"),
    [
        (3, "id-1", r"footage/0: the store has read up to offset 5 and the topic ends at 3"),
        (3, "", r"the topic ends at 3"),
        (99, "id-2", r"footage/0: the store has read up to offset 5 and the topic was deleted and created again"),
    ],
)
def test_a_recreated_topic_is_an_error_until_it_is_accepted(
    committer: OffsetCommitter, end: int, topic_id: str, message: str
) -> None:
    (owned,) = read_ownership(committer, {ZERO: (0, 9)}, topic_id and "id-1")
    store_up_to(committer, owned, 5)
    for accept_expired in (False, True):
        with pytest.raises(TopicRecreated, match=message):
            read_ownership(committer, {ZERO: (0, end)}, topic_id, accept_expired=accept_expired)
    assert committer.offsets(["footage/0"]) == {"footage/0": 5}

    (again,) = read_ownership(committer, {ZERO: (0, end)}, topic_id, accept_recreated=True)
    assert (again.stored, again.fetched) == (0, 0)
    store_up_to(committer, again, 2)
    (later,) = read_ownership(committer, {ZERO: (0, end)}, topic_id)
    assert later.fetched == 2


def test_the_first_messages_of_a_recreated_topic_may_have_expired(committer: OffsetCommitter) -> None:
    (owned,) = read_ownership(committer, {ZERO: (0, 9)}, "id-1")
    store_up_to(committer, owned, 5)
    (again,) = read_ownership(committer, {ZERO: (3, 9)}, "id-2", accept_recreated=True)
    assert (again.stored, again.fetched) == (0, 3)
    store_up_to(committer, again, 4)


def test_one_recreated_partition_changes_no_other(committer: OffsetCommitter) -> None:
    for owned in read_ownership(committer, {ZERO: (0, 9), ONE: (0, 9)}, "id-1"):
        store_up_to(committer, owned, 5)
    zero, one = read_ownership(committer, {ZERO: (0, 3), ONE: (0, 9)}, "id-1", accept_recreated=True)
    assert (zero.fetched, one.fetched) == (0, 5)


# ---- messages that expired ------------------------------------------------------------------------------------------


def test_expired_messages_are_an_error_until_they_are_accepted(committer: OffsetCommitter) -> None:
    (owned,) = read_ownership(committer, {ZERO: (0, 9)}, "id-1")
    store_up_to(committer, owned, 5)
    for accept_recreated in (False, True):
        with pytest.raises(OffsetsExpired, match=r"footage/0: messages 5 to 7 have expired"):
            read_ownership(committer, {ZERO: (8, 9)}, "id-1", accept_recreated=accept_recreated)
    (again,) = read_ownership(committer, {ZERO: (8, 9)}, "id-1", accept_expired=True)
    assert (again.stored, again.fetched) == (5, 8)  # the commit advances from what the store says
    store_up_to(committer, again, 9)


# ---- which assignments are in force ---------------------------------------------------------------------------------


def test_an_assignment_is_current_until_it_is_released_or_replaced() -> None:
    ownership = PartitionOwnership()
    first, second = assignment(), assignment()
    assert ownership.get(ZERO) is None
    assert not ownership.is_current(first)
    ownership.acquire([first, assignment(1)])
    assert ownership.is_current(first)
    assert ownership.get(ZERO) is first
    ownership.release([ZERO, Partition("other", 3)])
    assert not ownership.is_current(first)
    assert [owned.partition for owned in ownership.all()] == [ONE]
    ownership.acquire([second])  # the same partition came back: records of the first assignment stay invalid
    assert ownership.is_current(second)
    assert not ownership.is_current(first)
    ownership.acquire([first])
    assert not ownership.is_current(second)


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 3))), max_size=30))
def test_any_sequence_of_acquire_and_release(steps: list[tuple[bool, set[int]]]) -> None:
    ownership, expected, made = PartitionOwnership(), dict[Partition, OwnedPartition](), list[OwnedPartition]()
    for acquire, numbers in steps:
        if acquire:
            new = [assignment(number) for number in numbers]
            ownership.acquire(new)
            made += new
            expected.update({owned.partition: owned for owned in new})
        else:
            ownership.release([Partition("footage", number) for number in numbers])
            for number in numbers:
                expected.pop(Partition("footage", number), None)
        assert {owned.partition: owned for owned in ownership.all()} == expected
        assert [owned for owned in made if ownership.is_current(owned)] == [
            owned for owned in made if expected.get(owned.partition) is owned
        ]


def test_the_threads_of_a_worker_may_acquire_and_release_at_once() -> None:
    ownership, problems = PartitionOwnership(), list[str]()

    def work(number: int) -> None:
        for _ in range(2000):
            owned = assignment(number)
            ownership.acquire([owned])
            if not ownership.is_current(owned) or owned not in ownership.all():
                problems.append(f"partition {number} was lost")
            ownership.release([owned.partition])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert ownership.all() == []


def test_a_partition_takes_the_place_of_kafkas_own() -> None:
    theirs = TopicPartition("footage", 0)
    assert theirs == ZERO
    assert {theirs: 1}[ZERO] == 1
    assert ZERO.app == "footage/0"
