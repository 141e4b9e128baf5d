"""The Kafka worker's first thread: a member of the consumer group that polls, pauses and seeks, and decodes nothing.

- Polling continues however long decoding takes: while the queue is full the partitions are paused. The group therefore
  never evicts a busy worker, and memory holds at most one queue of segments.
- The rebalance listener must not block, so it only notes a new assignment. Before a record of it is read, the worker
  asks the store where to start and seeks to that offset. Offsets are also committed to the group, for lag tools; they
  are never used as the position.
- Offsets of the group are read and committed only while it is joined: during a rebalance a request would wait for the
  slowest member, without a poll. Offsets whose commit fails are committed again.
- A revoked partition is released at once. Segments of it that are decoded and not committed are discarded; the next
  owner decodes them again.

This module knows nothing of segments, encoders or the store's tables; see `ingest.kafka.indexer`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypedDict

import structlog
from kafka import ConsumerRebalanceListener, OffsetAndMetadata, errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from index.errors import KafkaProblem
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.clients import Sender, end_offsets, make_topics, native, new_consumer, translate_errors
from ingest.kafka.indexer import ConsumeReport, KafkaIndexer, SegmentRecord
from ingest.kafka.membership import SettleLimit, has_joined
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership, read_ownership
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.shutdown import Watchdog
from model.encoders.encoder import Encoders

__all__ = ["consume"]

_log = structlog.get_logger(__name__)
_POLL_MS = 200
_CLOSE_MS = 2000  # waiting for the broker at the end, twice
_ANSWER_MS = 5000  # for end offsets, which are only measured
_RETRY_SECONDS = 0.5
_COMMIT_SECONDS = 60.0  # for the answer to a commit; twice the time after which kafka-python gives a request up
_LAG_SECONDS = 5.0  # between measurements of the lag


class _Accept(TypedDict):
    accept_recreated: bool
    accept_expired: bool


def consume(
    store: Store,
    encoders: Encoders,
    *,
    kafka: KafkaSettings,
    group: str,
    settings: ConsumeSettings | None = None,
    limits: DecodeLimits | None = None,
    stop: threading.Event | None = None,
    drain: bool = False,
    accept_recreated: bool = False,
    accept_expired: bool = False,
    metrics: ConsumerMetrics | None = None,
    on_stall: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ConsumeReport:
    """Store the segments of Kafka as a member of `group`, until `stop` is set.

    Args:
        drain: return once every assigned partition is stored up to its end, or when no partition was assigned within
            `kafka.connect_seconds`.
        accept_recreated, accept_expired: see `ingest.kafka.ownership.read_ownership`.
        metrics: the metrics to update; new ones when None.
        on_stall: called, in another thread, when this one has not polled for `kafka.poll_seconds`: it hangs in a
            library, and the group has given its partitions to others. Should end the process. By default it is logged.
        clock: the monotonic clock of the limits of time, in seconds.

    Raises:
        BrokerUnavailable, TopicMissing, TopicRecreated, OffsetsExpired, KafkaProblem: Kafka cannot be used, or the
            group was not joined, or a partition had no position, for longer than `SettleLimit` allows.
        StoreError: the store does not accept the frames. Nothing is lost: the next worker starts at the store's
            offsets.
    """
    stop = stop or threading.Event()
    topic_id = make_topics(kafka)[kafka.segments]
    with Sender(kafka) as sender:
        indexer = KafkaIndexer(
            store,
            encoders,
            kafka=kafka,
            settings=settings or ConsumeSettings(),
            limits=limits or DecodeLimits(),
            outbox=sender,
            ownership=PartitionOwnership(),
            group=group,
            topic_id=topic_id,
            metrics=metrics or ConsumerMetrics(),
        )
        accept: _Accept = {"accept_recreated": accept_recreated, "accept_expired": accept_expired}
        poller = _Poller(store, kafka, group, indexer, accept, clock)
        indexer.start()
        try:
            with Watchdog("the thread that polls Kafka", kafka.poll_seconds, on_stall or _log.error) as watchdog:
                poller.run(stop, watchdog, drain=drain)
        finally:
            indexer.stop()
            poller.close()
        if indexer.failure is not None:
            raise indexer.failure
        return indexer.report


# kafka-python 3.0.12 sets aside what is left of a fetch when its partition is paused, and does not resume it while
# other partitions are being fetched. A poll that takes everything that was fetched leaves nothing to set aside.
_MAX_POLL_RECORDS = 1_000_000


class _Poller:
    def __init__(
        self,
        store: Store,
        kafka: KafkaSettings,
        group: str,
        indexer: KafkaIndexer,
        accept: _Accept,
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.store, self.kafka, self.indexer, self.accept = store, kafka, indexer, accept
        self.ownership = indexer.ownership
        self.unpositioned: set[Partition] = set()  # assigned; the store has not been asked where to start
        self.backlog: deque[SegmentRecord] = deque()  # polled and not yet queued: the records of one poll at most
        self.uncommitted: dict[OwnedPartition, int] = {}  # offsets that the group has not confirmed
        self.commit_due = self.lag_due = 0.0
        self.capacity = indexer.settings.queue_segments
        self.limit = SettleLimit(kafka, group, self._broker_answers, clock)
        self.consumer = new_consumer(
            kafka,
            group_id=group,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            max_poll_records=_MAX_POLL_RECORDS,
            session_timeout_ms=round(kafka.session_seconds * 1000),
            heartbeat_interval_ms=round(min(3000, kafka.session_seconds * 1000 / 4)),
            max_poll_interval_ms=round(kafka.poll_seconds * 1000),
        )
        self.consumer.subscribe([kafka.segments], listener=_Listener(self))
        # Fetch the topic's metadata before joining: a group leader without it assigns no partitions to anyone.
        with translate_errors(kafka):
            self.consumer.partitions_for_topic(kafka.segments)

    # ---- called by the listener, must not block ------------------------------------------------------------------

    def assigned(self, partitions: Iterable[Any]) -> None:
        """Note newly assigned partitions; they stay paused until `_position` has found where they start."""
        added = [Partition(*partition) for partition in partitions]
        for partition in native(added):
            self.consumer.seek(partition, 0)  # any position, so that the consumer does not ask for the group's
            self.consumer.pause(partition)
        self.ownership.release(added)
        self.unpositioned.update(added)
        self.indexer.report.rebalances += 1
        self.indexer.metrics.rebalances.inc()

    def revoked(self, partitions: Iterable[Any]) -> None:
        """Release revoked partitions."""
        gone = [Partition(*partition) for partition in partitions]
        self.ownership.release(gone)
        self.unpositioned.difference_update(gone)
        _log.info("revoked", partitions=[partition.app for partition in gone])

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, watchdog: Watchdog, *, drain: bool) -> None:
        """Poll until `stop` is set, everything is drained, or the indexer has failed."""
        last_assigned = self.clock()
        while not stop.is_set() and self.indexer.failure is None:
            watchdog.beat()
            self._poll()
            self._position()
            self._enqueue()
            self._commit_offsets()
            self._pause_or_resume()
            self._measure_lag()
            self.limit.check(has_joined(self.consumer), self.unpositioned)
            if self.ownership.all() or self.unpositioned:
                last_assigned = self.clock()
            if drain and (self._drained() or self.clock() - last_assigned > self.kafka.connect_seconds):
                return

    def _poll(self) -> None:
        try:
            with translate_errors(self.kafka):
                polled = self.consumer.poll(timeout_ms=_POLL_MS)
        except KafkaProblem as error:
            cause = error.__cause__
            if isinstance(cause, (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError)):
                self._reposition(self._assignment())
                return
            if isinstance(cause, (errors.AuthorizationError, errors.SaslAuthenticationFailedError)):
                raise
            _log.warning("polling failed; retrying", problem=str(error))
            time.sleep(_RETRY_SECONDS)
            return
        for partition, records in polled.items():
            owned = self.ownership.get(Partition(*partition))
            for record in records:
                if owned is None or record.offset < owned.fetched:
                    continue  # fetched for an assignment that has ended
                owned.fetched = record.offset + 1
                self.backlog.append(SegmentRecord(owned, record.offset, record.key, record.value, record.headers))

    def _position(self) -> None:
        """Ask the store where to start in every newly assigned partition, and seek there."""
        self.unpositioned &= self._assignment()
        if not self.unpositioned or not has_joined(self.consumer):
            return
        here = sorted(self.unpositioned)
        try:
            with translate_errors(self.kafka):
                offsets = {Partition(*p): span for p, span in end_offsets(self.consumer, here).items()}
                assignments = read_ownership(
                    self.indexer.indexer.committer, offsets, self.indexer.topic_id, **self.accept
                )
                self._announce_again(assignments)
                for owned in assignments:
                    self.consumer.seek(*native([owned.partition]), owned.fetched)
        except KafkaProblem as error:
            if error.__cause__ is None or isinstance(error.__cause__, errors.AuthorizationError):
                raise
            _log.warning("the start of the partitions cannot be read; retrying", problem=str(error))
            time.sleep(_RETRY_SECONDS)
            return
        self.indexer.indexer.forget()
        self.ownership.acquire(assignments)
        self.unpositioned.difference_update(here)
        _log.info("settled", partitions={owned.partition.app: owned.fetched for owned in assignments})

    def _announce_again(self, assignments: Iterable[OwnedPartition]) -> None:
        """Announce segments that were stored and perhaps not announced.

        The group's offset is committed after the announcement, so these are the segments between it and the store's.
        """
        for owned in assignments:
            (partition,) = native([owned.partition])
            announced = self.consumer.committed(partition, timeout_ms=10_000)
            if announced is None:
                self.consumer.commit({partition: OffsetAndMetadata(owned.fetched, "", -1)}, timeout_ms=10_000)
            elif owned.stored is not None and announced < owned.stored:
                source = f"{owned.partition.app}@{self.indexer.topic_id}"
                missed = [
                    segment
                    for segment in self.store.segments()
                    if segment.source == source and announced <= segment.chunk < owned.stored
                ]
                self.indexer.announce_segments(missed)
                self.indexer.committed.append((owned, owned.stored))

    def _reposition(self, partitions: set[Partition]) -> None:
        """Start again, at the store's offsets, with those of `partitions` that are still assigned."""
        mine = self._assignment() & partitions
        self.ownership.release(mine)
        if mine:
            self.consumer.pause(*native(mine))
        self.unpositioned.update(mine)

    def _enqueue(self) -> None:
        while self.backlog:
            if self.ownership.is_current(self.backlog[0].owned) and not self.indexer.offer(self.backlog[0]):
                return
            self.backlog.popleft()

    def _commit_offsets(self) -> None:
        """Commit to the group the offsets that are stored and announced; start again where a commit was fenced."""
        offsets = self._offsets_to_commit()
        if offsets and self.clock() >= self.commit_due and has_joined(self.consumer):
            self.commit_due = self.clock() + _COMMIT_SECONDS  # one at a time: an older one must not arrive last
            sent = dict(self.uncommitted)
            self.consumer.commit_async(offsets, callback=partial(self._commit_answered, sent))
        fenced: set[Partition] = set()
        while self.indexer.fenced:
            fenced.add(self.indexer.fenced.popleft().partition)
        if fenced:
            self._reposition({partition for partition in fenced if self.ownership.get(partition) is None})

    def _commit_answered(self, sent: Mapping[OwnedPartition, int], _: Any, answer: Any) -> None:
        """Called by a later poll with an exception when the commit has failed."""
        if isinstance(answer, Exception):
            self.commit_due = self.clock() + _RETRY_SECONDS
            _log.info("offsets were not committed to the group; retrying", problem=str(answer))
            return
        self.commit_due = 0.0
        for owned, end in sent.items():
            if self.uncommitted.get(owned) == end:
                del self.uncommitted[owned]

    def _offsets_to_commit(self) -> dict[Any, OffsetAndMetadata]:
        while self.indexer.committed:
            owned, end = self.indexer.committed.popleft()
            self.uncommitted[owned] = end
        self.uncommitted = {o: end for o, end in self.uncommitted.items() if self.ownership.is_current(o)}
        return {native([owned.partition])[0]: OffsetAndMetadata(end, "", -1) for owned, end in self.uncommitted.items()}

    def _pause_or_resume(self) -> None:
        """Pause partitions that have no position yet, and all partitions while the queue is full."""
        mine = self._assignment()
        paused = {Partition(*partition) for partition in self.consumer.paused()}
        waiting = self.indexer.queue.qsize() + len(self.backlog)
        # Pause at the capacity and resume at half of it, so that the state does not flap.
        refilling = waiting > self.capacity // 2 and bool(paused - self.unpositioned)
        if self.backlog or waiting >= self.capacity or refilling:
            pause = mine
        else:
            pause = {p for p in mine if p in self.unpositioned or self.ownership.get(p) is None}
        if pause - paused:
            self.consumer.pause(*native(pause - paused))
        if (paused & mine) - pause:
            self.consumer.resume(*native((paused & mine) - pause))
        self.indexer.metrics.paused.set(len(pause - self.unpositioned))

    def _measure_lag(self) -> None:
        """Measure the lag of every partition by the broker's offsets, which grow while a partition is paused."""
        if self.clock() < self.lag_due:
            return
        self.lag_due = self.clock() + _LAG_SECONDS
        ends = self._end_offsets()
        if ends is not None:
            self.indexer.metrics.lags(
                {(*owned.partition,): max(0, end - (owned.stored or 0)) for owned, end in ends.items()}
            )

    def _drained(self) -> bool:
        if not self.ownership.all() or self.unpositioned or self.backlog:
            return False
        if not self.indexer.idle() or self.indexer.committed:
            return False
        ends = self._end_offsets()
        if not ends:
            return False
        return all(owned.fetched >= end for owned, end in ends.items())

    def _end_offsets(self) -> dict[OwnedPartition, int] | None:
        """The broker's next offset of every owned partition; None when the broker does not answer."""
        held = self.ownership.all()
        try:
            ends = self.consumer.end_offsets(native(o.partition for o in held), timeout_ms=_ANSWER_MS) if held else {}
        except Exception as error:
            _log.debug("the end offsets cannot be read", problem=str(error))
            return None
        return {owned: ends[owned.partition] for owned in held}

    def _broker_answers(self) -> bool:
        try:
            first = native([Partition(self.kafka.segments, 0)])
            self.consumer.end_offsets(first, timeout_ms=_ANSWER_MS)
        except Exception as error:
            _log.warning("the broker does not answer; waiting for it", problem=str(error))
            return False
        return True

    def _assignment(self) -> set[Partition]:
        return {Partition(*partition) for partition in self.consumer.assignment()}

    def close(self) -> None:
        """Commit the last offsets to the group and leave it. Never raises: the position is kept in the store."""
        try:
            offsets = self._offsets_to_commit()
            if offsets:
                self.consumer.commit(offsets, timeout_ms=_CLOSE_MS)
        except Exception as error:
            _log.info("the last offsets were not committed to the group", problem=str(error))
        try:
            self.consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
        except Exception as error:
            _log.info("the group was not left in an orderly way", problem=str(error))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, poller: _Poller) -> None:
        self._poller = poller

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Called by kafka-python after partitions were assigned to this worker."""
        self._poller.assigned(assigned)

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Called by kafka-python before partitions are taken from this worker."""
        self._poller.revoked(revoked)
