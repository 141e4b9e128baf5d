"""Partition ownership: where a worker starts reading each partition, and which partitions it may commit.

The store decides both, never the consumer group: its committed offset is the position of a partition, and a worker
becomes the owner only after it has read that offset. One assignment of one partition is an `OwnedPartition`. Every
record carries the `OwnedPartition` it was read for, so that records of an assignment that has ended are discarded
before they are stored, even when the same partition was assigned to this worker again.

This module knows nothing of records, segments or the consumer group protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.errors import OffsetsExpired, TopicRecreated

__all__ = ["OwnedPartition", "Partition", "PartitionOwnership", "read_ownership"]


class Partition(NamedTuple):
    """A partition of a topic. Equal to kafka-python's `TopicPartition`, and usable in its place."""

    topic: str
    """The topic's name."""
    partition: int
    """The partition's number."""

    @property
    def app(self) -> str:
        """The application id of the partition's transactions in the store, `topic/partition`."""
        return f"{self.topic}/{self.partition}"


@dataclass(slots=True, eq=False)
class OwnedPartition:
    """One assignment of one partition to this worker. Two assignments of the same partition are not equal."""

    partition: Partition
    """The partition that is owned."""
    stored: int | None
    """The next offset according to the store, updated after each commit. None when the store has no offset yet."""
    fetched: int
    """The offset of the next record to fetch."""
    topic_app: str | None
    """A second application id that contains the topic's id, to tell a recreated topic from the one before it. It
    advances together with the first. None when the broker gives topics no ids."""

    def advance_to(self, offset: int) -> OffsetAdvance:
        """The advance of the store's offset from `stored` to `offset`."""
        return OffsetAdvance(self.stored, offset, self.topic_app)


@dataclass(slots=True)
class PartitionOwnership:
    """The partitions that this worker owns now. Safe for use by several threads."""

    _owned: dict[Partition, OwnedPartition] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, assignments: Iterable[OwnedPartition]) -> None:
        """Become the owner of partitions. An earlier assignment of the same partition ends."""
        with self._lock:
            self._owned.update({owned.partition: owned for owned in assignments})

    def release(self, partitions: Iterable[Partition]) -> None:
        """Give up partitions. Those that are not owned are ignored."""
        with self._lock:
            for partition in partitions:
                self._owned.pop(partition, None)

    def get(self, partition: Partition) -> OwnedPartition | None:
        """The current assignment of `partition`, or None when it is not owned."""
        with self._lock:
            return self._owned.get(partition)

    def is_current(self, owned: OwnedPartition) -> bool:
        """Whether this very assignment is still in force."""
        with self._lock:
            return self._owned.get(owned.partition) is owned

    def all(self) -> list[OwnedPartition]:
        """All current assignments."""
        with self._lock:
            return list(self._owned.values())


def read_ownership(
    committer: OffsetCommitter,
    offsets: Mapping[Partition, tuple[int, int]],
    topic_id: str,
    *,
    accept_recreated: bool = False,
    accept_expired: bool = False,
) -> list[OwnedPartition]:
    """Read from the store where to start in each partition of `offsets`.

    Args:
        committer: the store's offsets.
        offsets: the first offset and the next offset of each partition according to the broker.
        topic_id: the id of the topic; empty when the broker gives none.
        accept_recreated: start at the first message of a topic that was deleted and created again.
        accept_expired: start at the first message that is left when earlier ones have expired.

    Raises:
        TopicRecreated: the store's offset is beyond the partition's end, or belongs to an earlier topic of this name.
        OffsetsExpired: the topic's retention has deleted messages that were never stored.
    """
    topic_apps = {partition: f"{partition.app}@{topic_id}" if topic_id else None for partition in offsets}
    stored = committer.offsets(_all_apps(topic_apps))
    assignments: list[OwnedPartition] = []
    for partition, (first, end) in offsets.items():
        topic_app, before = topic_apps[partition], stored[partition.app]
        recreated = before is not None and topic_app is not None and stored[topic_app] is None
        if before is not None and (recreated or before > end):
            if not accept_recreated:
                what = "was deleted and created again" if recreated else f"ends at {end}"
                raise TopicRecreated(
                    f"{partition.app}: the store has read up to offset {before} and the topic {what}; find out why, "
                    "then pass --accept-recreated once to read it from its first message; no frame is stored twice"
                )
            committer.reset([app for app in (partition.app, topic_app) if app is not None])
            before = 0
        start = first if before is None else before
        if before is not None and before < first:
            if not accept_expired and not (accept_recreated and before == 0):
                raise OffsetsExpired(
                    f"{partition.app}: messages {before} to {first - 1} have expired before they were stored; publish "
                    "that footage again and pass --accept-expired once, and give the topic a longer retention"
                )
            start = first
        assignments.append(OwnedPartition(partition, before, start, topic_app))
    return assignments


def _all_apps(topic_apps: Mapping[Partition, str | None]) -> Sequence[str]:
    return [app for partition, topic_app in topic_apps.items() for app in (partition.app, topic_app) if app is not None]
