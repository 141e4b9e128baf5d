"""Where a worker begins in each partition, and which partitions are its own: by the store, never by the group.

A claim is what a worker has on a partition from one assignment to the next revocation. Everything that is read for a
claim carries it, and what is left of a claim that was dropped is thrown away before it is stored.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.errors import OffsetsExpired, TopicRecreated

__all__ = ["OwnedPartition", "Partition", "PartitionOwnership", "read_ownership"]


class Partition(NamedTuple):
    """A partition of a topic; equal to, and usable as, kafka-python's `TopicPartition`."""

    topic: str
    partition: int

    @property
    def app(self) -> str:
        """The application id of its transactions in the store."""
        return f"{self.topic}/{self.partition}"


@dataclass(slots=True, eq=False)
class OwnedPartition:
    """One assignment of one partition.

    stored: the next offset by the store (None: it never stored any), kept up by whoever commits. fetched: the next
    offset to be read. mark: the second application id, which says which topic of that name it is.
    """

    partition: Partition
    number: int
    stored: int | None
    fetched: int
    mark: str | None

    def step(self, after: int) -> OffsetAdvance:
        return OffsetAdvance(self.stored, after, self.mark)


@dataclass(slots=True)
class PartitionOwnership:
    """The claims that hold now. Used by two threads."""

    _held: dict[Partition, OwnedPartition] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, claims: Iterable[OwnedPartition]) -> None:
        with self._lock:
            self._held.update({claim.partition: claim for claim in claims})

    def drop(self, partitions: Iterable[Partition]) -> None:
        with self._lock:
            for partition in partitions:
                self._held.pop(partition, None)

    def of(self, partition: Partition) -> OwnedPartition | None:
        with self._lock:
            return self._held.get(partition)

    def holds(self, claim: OwnedPartition) -> bool:
        with self._lock:
            return self._held.get(claim.partition) is claim

    def all(self) -> list[OwnedPartition]:
        with self._lock:
            return list(self._held.values())


_numbers = itertools.count(1)


def read_ownership(
    writer: OffsetCommitter,
    spans: Mapping[Partition, tuple[int, int]],
    topic_id: str,
    *,
    accept_recreated: bool = False,
    accept_expired: bool = False,
) -> list[OwnedPartition]:
    """A claim on every partition of `spans`, which are their first and next offsets by the broker.

    Args:
        topic_id: which topic of that name it is; empty where the broker does not say.
        accept_recreated: begin again at the first message of a topic that was made again.
        accept_expired: go on at the first message there is where earlier ones have expired.

    Raises:
        TopicRecreated: the store is past the partition's end, or has read from another topic of this name.
        OffsetsExpired: messages that were never stored have been deleted by the topic's retention.
    """
    marks = {p: f"{p.app}@{topic_id}" if topic_id else None for p in spans}
    stored = writer.offsets(_all_apps(marks))
    claims: list[OwnedPartition] = []
    for partition, (first, end) in spans.items():
        mark, before = marks[partition], stored[partition.app]
        other = before is not None and mark is not None and stored[mark] is None
        if before is not None and (other or before > end):
            if not accept_recreated:
                what = "was deleted and made again" if other else f"ends at {end}"
                raise TopicRecreated(
                    f"{partition.app}: the store has read up to offset {before} and the topic {what}; find out why, then pass "
                    "--accept-recreated once to read it from its first message, nothing stored is doubled by that"
                )
            writer.reset([app for app in (partition.app, mark) if app is not None])
            before = 0
        begin = first if before is None else before
        if before is not None and before < first:
            if not accept_expired and not (accept_recreated and before == 0):
                raise OffsetsExpired(
                    f"{partition.app}: messages {before} to {first - 1} have expired before they were stored; publish that "
                    "footage again and pass --accept-expired once, and give the topic a longer retention"
                )
            begin = first
        claims.append(OwnedPartition(partition, next(_numbers), before, begin, mark))
    return claims


def _all_apps(marks: Mapping[Partition, str | None]) -> Sequence[str]:
    return [app for partition, mark in marks.items() for app in (partition.app, mark) if app is not None]
