"""The worker's first thread: a member of the consumer group that polls, pauses and seeks, and never does the work.

- Poll goes on whatever the work takes, with partitions paused while the queue is full, so that the group never evicts a
  worker for being busy, and memory holds a queue of segments and no more.
- A new assignment is only noted in the listener, which must not block; before a record of it is read, the worker asks
  the store where to begin and seeks there. The group's own offsets are committed for lag tools and never believed.
- A partition that is revoked is dropped at once. What was decoded of it is thrown away; its next owner does it again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import structlog

from index.errors import KafkaProblem
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.clients import Sender, end_offsets, make_topics, native, new_consumer, translate_errors
from ingest.kafka.indexer import ConsumeReport, SegmentIndexer, SegmentRecord
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership, read_ownership
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from model.encoders.encoder import Encoders

__all__ = ["consume"]

_log = structlog.get_logger(__name__)
_POLL_MS = 200
_MEASURE_SECONDS = 5.0


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
) -> ConsumeReport:
    """Store the segments of Kafka as a member of `group`, until `stop` is set.

    Args:
        drain: return once every assigned partition is stored up to its end, or none was assigned within
            `kafka.connect_seconds`.
        accept_recreated, accept_expired: see `ingest.kafka.ownership.read_ownership`.
        metrics: told what happens, where somebody reads it.

    Raises:
        BrokerUnavailable, TopicMissing, TopicRecreated, OffsetsExpired, KafkaProblem: Kafka cannot be used.
        StoreError: the store cannot take the frames; nothing is lost, the next worker goes on where it ends.
    """
    stop = stop or threading.Event()
    topic_id = make_topics(kafka)[kafka.segments]
    claims = PartitionOwnership()
    with Sender(kafka) as sender:
        embedder = SegmentIndexer(
            kafka,
            settings or ConsumeSettings(),
            limits or DecodeLimits(),
            encoders,
            store,
            sender,
            claims,
            group,
            topic_id,
            metrics=metrics or ConsumerMetrics(),
        )
        accept = {"accept_recreated": accept_recreated, "accept_expired": accept_expired}
        worker = _Worker(store, kafka, group, embedder, accept)
        embedder.start()
        try:
            worker.run(stop, drain=drain)
        finally:
            embedder.stop()
            worker.close()
        if embedder.failure is not None:
            raise embedder.failure
        return embedder.report


# kafka-python 3.0.12 parks what is left of a fetch when its partition is paused, and where others go on being fetched it
# never takes it up again. A poll that takes all that was fetched leaves nothing to park.
_EVERYTHING = 1_000_000


class _Worker:
    def __init__(
        self, store: Store, kafka: KafkaSettings, group: str, embedder: SegmentIndexer, accept: dict[str, bool]
    ) -> None:
        from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

        self.store, self.kafka, self.embedder, self.accept = store, kafka, embedder, accept
        self.claims, self.report = embedder.claims, embedder.report
        self.unsettled: set[Partition] = set()
        self.backlog: deque[SegmentRecord] = (
            deque()
        )  # polled and not yet in the queue; at most one poll's, bounded by its bytes
        self.measure_at = 0.0
        self.room = embedder.settings.queue_segments
        self.consumer = new_consumer(
            kafka,
            group_id=group,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            max_poll_records=_EVERYTHING,
            session_timeout_ms=round(kafka.session_seconds * 1000),
            heartbeat_interval_ms=round(min(3000, kafka.session_seconds * 1000 / 4)),
            max_poll_interval_ms=round(kafka.poll_seconds * 1000),
        )
        self.consumer.subscribe([kafka.segments], listener=_listener(self))
        # Known before the group is joined: a leader that does not know the topic yet deals nobody anything.
        with translate_errors(kafka):
            self.consumer.partitions_for_topic(kafka.segments)

    # ---- called by the listener, which must not block ------------------------------------------------------------

    def assigned(self, partitions: Iterable[Any]) -> None:
        added = [Partition(*p) for p in partitions]
        for partition in native(added):
            self.consumer.seek(partition, 0)  # a position of ours, so that the group's is not asked for
            self.consumer.pause(partition)
        self.claims.drop(added)
        self.unsettled.update(added)
        self.report.rebalances += 1
        self.embedder.metrics.rebalances.inc()

    def revoked(self, partitions: Iterable[Any]) -> None:
        gone = [Partition(*p) for p in partitions]
        self.claims.drop(gone)
        self.unsettled.difference_update(gone)
        _log.info("revoked", partitions=[partition.app for partition in gone])

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, drain: bool) -> None:
        """Poll until told to stop, drained, or something failed."""
        lonely = time.monotonic()
        while not stop.is_set() and self.embedder.failure is None:
            self._poll()
            self._settle()
            self._offer()
            self._collect()
            self._balance()
            self._measure()
            if self.claims.all() or self.unsettled:
                lonely = time.monotonic()
            if drain and (self._drained() or time.monotonic() - lonely > self.kafka.connect_seconds):
                return

    def _poll(self) -> None:
        from kafka import errors

        try:
            with translate_errors(self.kafka):
                found = self.consumer.poll(timeout_ms=_POLL_MS)
        except KafkaProblem as error:
            cause = error.__cause__
            if isinstance(cause, (errors.OffsetOutOfRangeError, errors.NoOffsetForPartitionError)):
                self._unsettle([Partition(*p) for p in self.consumer.assignment()])
                return
            if isinstance(cause, (errors.AuthorizationError, errors.SaslAuthenticationFailedError)):
                raise
            _log.warning("polling failed; trying again", problem=str(error))
            time.sleep(0.5)
            return
        for partition, records in found.items():
            claim = self.claims.of(Partition(*partition))
            for record in records:
                if claim is None or record.offset < claim.fetched:
                    continue  # read for an assignment that is over
                claim.fetched = record.offset + 1
                self.backlog.append(SegmentRecord(claim, record.offset, record.key, record.value, record.headers))

    def _settle(self) -> None:
        """Ask the store where to begin in every partition that is new, and go there."""
        from kafka import errors

        if not self.unsettled:
            return
        here = sorted(self.unsettled & {Partition(*p) for p in self.consumer.assignment()})
        try:
            with translate_errors(self.kafka):
                spans = {Partition(*p): span for p, span in end_offsets(self.consumer, here).items()} if here else {}
                found = read_ownership(self.embedder.writer, spans, self.embedder.topic_id, **self.accept)
                self._announce_again(found)
                for claim in found:
                    self.consumer.seek(*native([claim.partition]), claim.fetched)
        except KafkaProblem as error:
            if error.__cause__ is None or isinstance(error.__cause__, errors.AuthorizationError):
                raise
            _log.warning("cannot learn where to begin; trying again", problem=str(error))
            time.sleep(0.5)
            return
        self.embedder.writer.invalidate()
        self.embedder.alerts.forget()
        self.claims.take(found)
        self.unsettled.difference_update(here)
        _log.info("settled", partitions={claim.partition.app: claim.fetched for claim in found})

    def _announce_again(self, found: Iterable[OwnedPartition]) -> None:
        """What was stored and perhaps not announced: from the group's offset, which follows the announcement."""
        from kafka import OffsetAndMetadata

        for claim in found:
            (partition,) = native([claim.partition])
            told = self.consumer.committed(partition, timeout_ms=10_000)
            if told is None:
                self.consumer.commit({partition: OffsetAndMetadata(claim.fetched, "", -1)}, timeout_ms=10_000)
            elif claim.stored is not None and told < claim.stored:
                missed = [
                    segment
                    for segment in self.store.segments()
                    if segment.source == f"{claim.partition.app}@{self.embedder.topic_id}"
                    and told <= segment.chunk < claim.stored
                ]
                self.embedder.announce(missed)
                self.embedder.stored.append((claim, claim.stored))

    def _unsettle(self, partitions: Iterable[Partition]) -> None:
        """Begin again with partitions that are still ours."""
        mine = {Partition(*p) for p in self.consumer.assignment()} & set(partitions)
        self.claims.drop(mine)
        if mine:
            self.consumer.pause(*native(mine))
        self.unsettled.update(mine)

    def _offer(self) -> None:
        while self.backlog and not self.embedder.jobs.full():
            job = self.backlog.popleft()
            if self.claims.holds(job.claim):
                self.embedder.jobs.put_nowait(job)

    def _collect(self) -> None:
        """Commit the group's offsets of what is stored and announced, and begin again where a commit was fenced."""
        from kafka import OffsetAndMetadata

        offsets: dict[Any, Any] = {}
        while self.embedder.stored:
            claim, end = self.embedder.stored.popleft()
            if self.claims.holds(claim):
                offsets[native([claim.partition])[0]] = OffsetAndMetadata(end, "", -1)
        if offsets:
            self.consumer.commit_async(offsets)  # for lag tools; the store has the truth
        fenced = []
        while self.embedder.fenced:
            fenced.append(self.embedder.fenced.popleft().partition)
        if fenced:
            self._unsettle(p for p in fenced if self.claims.of(p) is None)

    def _balance(self) -> None:
        """Pause what must not be read now: what is not settled, and everything while the queue is full."""
        mine = {Partition(*p) for p in self.consumer.assignment()}
        paused = {Partition(*p) for p in self.consumer.paused()}
        waiting = self.embedder.jobs.qsize() + len(self.backlog)
        # Full at the bound, open again at half of it, so that it does not flutter.
        if self.backlog or waiting >= self.room or (waiting > self.room // 2 and paused - self.unsettled):
            stay = mine
        else:
            stay = {p for p in mine if p in self.unsettled or self.claims.of(p) is None}
        if stay - paused:
            self.consumer.pause(*native(stay - paused))
        if (paused & mine) - stay:
            self.consumer.resume(*native((paused & mine) - stay))
        self.embedder.metrics.paused.set(len(stay - self.unsettled))

    def _measure(self) -> None:
        """How far behind every partition is, by the broker: one that is paused goes on growing."""
        if time.monotonic() < self.measure_at:
            return
        self.measure_at = time.monotonic() + _MEASURE_SECONDS
        held = self.claims.all()
        try:
            ends = self.consumer.end_offsets(native(claim.partition for claim in held)) if held else {}
        except Exception as error:  # the broker is away: what was known last stands
            _log.debug("cannot ask for the ends", problem=str(error))
            return
        self.embedder.metrics.lags(
            {(*claim.partition,): max(0, ends[claim.partition] - (claim.stored or 0)) for claim in held}
        )

    def _drained(self) -> bool:
        held = self.claims.all()
        if not held or self.unsettled or self.backlog or not self.embedder.idle() or self.embedder.stored:
            return False
        try:
            ends = self.consumer.end_offsets(native(claim.partition for claim in held))
        except Exception as error:  # the broker is away: not drained as far as anybody knows
            _log.debug("cannot ask for the ends", problem=str(error))
            return False
        return all(claim.fetched >= ends[claim.partition] for claim in held)

    def close(self) -> None:
        """Tell the group what is stored and leave it. Never raises: the store has the truth."""
        from kafka import OffsetAndMetadata

        try:
            last = {
                native([claim.partition])[0]: OffsetAndMetadata(end, "", -1)
                for claim, end in self.embedder.stored
                if self.claims.holds(claim)
            }
            if last:
                self.consumer.commit(last, timeout_ms=5000)
        except Exception as error:
            _log.info("the group was not told the last offsets", problem=str(error))
        try:
            self.consumer.close(autocommit=False, timeout_ms=5000)
        except Exception as error:
            _log.info("the group was not left in order", problem=str(error))


def _listener(worker: _Worker) -> Any:
    from kafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Any) -> None:
            worker.assigned(assigned)

        def on_partitions_revoked(self, revoked: Any) -> None:
            worker.revoked(revoked)

    return Listener()
