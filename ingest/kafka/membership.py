"""The membership of a worker in its consumer group: whether it has joined, and how long joining may take.

- `install` has kafka-python complete every rebalance that it has begun. Without it a consumer can wait forever, see
  `PersistentCoordinator`.
- `has_joined` says whether the group may be asked for offsets. During a rebalance it may not: the broker answers the
  requests of one connection in order, so the answer comes after that to JoinGroup, and commits are refused.
- `SettleLimit` ends a worker whose partitions stand still for whatever other reason, except a broker that is gone.

This module knows nothing of records or of the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from kafka.consumer import group as consumer_group
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.structs import MemberState

from index.errors import KafkaProblem
from ingest.kafka.ownership import Partition
from ingest.kafka.settings import KafkaSettings

__all__ = ["SETTLE_POLLS", "PersistentCoordinator", "SettleLimit", "has_joined", "install"]

SETTLE_POLLS = 3
"""How many times `kafka.poll_seconds` the partitions of a worker may stand still. One rebalance waits for the slowest
member for that long, and a cooperative rebalance takes two rounds."""


_ASK_SECONDS = 60.0


class PersistentCoordinator(ConsumerCoordinator):  # type: ignore[misc]
    """kafka-python's coordinator, which does not forget that it must join the group again.

    The leader of a group joins again when the partitions of the topics differ from those it has assigned. kafka-python
    3.0.12 compares them at every poll. If metadata that arrive while JoinGroup is under way remove the difference, for
    instance after a lost connection, it never takes the answer: the member sends no heartbeats, `commit` raises
    RebalanceInProgressError forever, and the group evicts the member, which does not notice. As in Kafka's Java client
    (`ConsumerCoordinator.rejoinNeededOrPending`), the decision holds here until the group is joined.
    """

    def need_rejoin(self) -> bool:
        """Whether the group must be joined (again); once True, True until it is joined."""
        needed = bool(super().need_rejoin())
        if needed:
            self.request_rejoin()
        return needed


def install() -> None:
    """Have kafka-python's consumers use `PersistentCoordinator`; its consumer has no setting for that."""
    consumer_group.ConsumerCoordinator = PersistentCoordinator


def has_joined(consumer: Any) -> bool:
    """Whether the consumer is a member of its group and no rebalance of it is under way, as far as it knows."""
    return bool(consumer.group_metadata().state == MemberState.STABLE)


class SettleLimit:
    """Limits how long a worker may be without the group, or its partitions without a position.

    The limit is `SETTLE_POLLS` times `kafka.poll_seconds`, and once `kafka.session_seconds` and
    `kafka.connect_seconds`: 975 s by default. A broker that is gone is waited for, however long: when it does not
    answer, the time counts from then.

    Args:
        kafka: the settings of the limit.
        group: the consumer group, for the error.
        answers: whether the broker answers; called once in a minute while not all is well, and before the error.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        group: str,
        answers: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = SETTLE_POLLS * kafka.poll_seconds + kafka.session_seconds + kafka.connect_seconds
        self._kafka, self._group, self._answers, self._clock = kafka, group, answers, clock
        self._settled = self._asked = clock()

    def check(self, joined: bool, unpositioned: Collection[Partition]) -> None:
        """Call it in every turn of the loop.

        Args:
            joined: `has_joined`.
            unpositioned: the partitions that are assigned and have no position.

        Raises:
            KafkaProblem: the worker has not been joined with a position in every partition for `seconds`.
        """
        now = self._clock()
        if joined and not unpositioned:
            self._settled = self._asked = now
            return
        if now - self._settled > self.seconds or now - self._asked >= _ASK_SECONDS:
            answered = self._answers()
            now = self._asked = self._clock()
            if not answered:
                self._settled = now
        waited = now - self._settled
        if waited <= self.seconds:
            return
        what = "is not joined: its rebalance does not end" if not joined else "is joined"
        where = ", ".join(partition.app for partition in sorted(unpositioned)[:10])
        still = f"; {where} cannot be positioned" if where else ""
        raise KafkaProblem(
            f"Kafka at {self._kafka.servers}: after {waited:.0f} s the group {self._group} {what}{still}; start the "
            "command again, nothing is lost; if it happens again, look at the members of the group (a member that does "
            "not poll delays all others for its kafka.poll_seconds) and at the log of the broker"
        )
