"""The Kafka worker's second thread: takes records from a queue and has them indexed. It never calls the consumer.

    queue of records ─▶ a few decoders (parse, fetch, decode) ─▶ `ingest.segment_indexer` ─▶ committed offsets

Segments of many cameras share an encoder batch, which is bounded by its number of frames, and a commit, which is
bounded by its number of segments, by bytes and by time. A record that cannot be stored is retried a few times; then its
dead letter is written, and acknowledged by the broker, before the commit that advances the partition past it. Offsets
are returned to the consumer's thread only after the segments were committed and announced.

How segments are encoded, stored and scored is the business of `ingest.segment_indexer`; this module adds the thread,
fetching, dead letters and partition ownership.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
    wait_exponential_jitter,
)

from index.errors import (
    CommitFenced,
    KafkaProblem,
    MessageInvalid,
    MessageTooLarge,
    SightlineError,
    SourceDenied,
    SourceError,
    SourceNotFound,
    mask_url,
    shown_text,
)
from index.records import Segment, from_micros
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.footage_report import FootageReport
from ingest.kafka.dead_letters import attempt_of
from ingest.kafka.fetch import check_clock, read_segment
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership
from ingest.kafka.record_batches import UnreadableBatch
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import AlertMessage, DeadLetter, IndexedMessage, SegmentMessage, parse_segment
from ingest.outbox import Outbox, publish_alerts
from ingest.segment_indexer import CommittedBatch, DecodedSegment, SegmentIndexer
from ingest.segments.frames import SegmentFrames
from model.encoders.encoder import Encoders

__all__ = ["QUEUE_BYTES", "ConsumeReport", "KafkaIndexer", "SegmentRecord", "partition_of"]

_log = structlog.get_logger(__name__)
_IDLE_SECONDS = 0.1
QUEUE_BYTES = 256 * 2**20
"""Most bytes of the records that wait to be decoded; a single one may have more."""
_REPORTED = 100  # commits and segments whose durations a report keeps


class ConsumeReport(BaseModel):
    """What one worker did."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    segments: int = 0
    """Segments stored."""
    frames: int = 0
    """Frames stored."""
    dead_letters: int = 0
    """Dead letters written."""
    footage: FootageReport = Field(default_factory=FootageReport)
    """What was stored, what repeated and what was dropped to the dead letters, each with its seconds."""
    commits: int = 0
    """Commits to the store."""
    alerts: int = 0
    """Alerts raised and published."""
    fenced: int = 0
    """Commits refused because another worker owned a partition."""
    rebalances: int = 0
    """Assignments of partitions by the consumer group."""
    commit_seconds: list[float] = Field(default_factory=list)
    """Durations of the latest commits, in seconds."""
    late_seconds: list[float] = Field(default_factory=list)
    """Seconds from the end of a segment to its commit, of the latest segments."""


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One record of the segments topic."""

    owned: OwnedPartition
    """The assignment for which the record was fetched."""
    offset: int
    """The record's offset in its partition."""
    key: bytes | None
    """The record's key, the stream id."""
    value: bytes | None
    """The record's value, see `ingest.messages.SegmentMessage`; an `UnreadableBatch` in place of a batch that cannot be
    read."""
    headers: Sequence[tuple[str, bytes | None]] = ()
    """The record's headers."""


@dataclass(slots=True)
class _ReadResult:
    """A record after parsing, fetching and decoding."""

    record: SegmentRecord
    segment: DecodedSegment | None = None  # None when the message cannot be parsed
    error: SightlineError | None = None  # why it goes to the dead letter
    step: Literal["batch", "message", "clock", "fetch", "decode"] = "message"  # the step that raised `error`


class KafkaIndexer:
    """A thread that indexes the records put into `queue`.

    Args:
        kafka: the connection and the topics.
        settings: the bounds of the worker.
        limits: the bounds of a decoder process.
        outbox: sends messages to Kafka.
        ownership: the partitions this worker owns, shared with the consumer's thread.
        group: the consumer group, for dead letters.
        topic_id: the id of the segments topic; empty when the broker gives none.

    Attributes:
        queue: records to be indexed.
        committed: partitions and their next offsets, for the consumer's thread to commit to the group.
        fenced: partitions whose commit was refused, for the consumer's thread to start again.
        failure: the exception that ended the thread; None while it works.
    """

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        *,
        kafka: KafkaSettings,
        settings: ConsumeSettings,
        limits: DecodeLimits,
        outbox: Outbox,
        ownership: PartitionOwnership,
        group: str,
        topic_id: str,
        metrics: ConsumerMetrics,
    ) -> None:
        self.kafka, self.settings, self.ownership, self.topic_id = kafka, settings, ownership, topic_id
        self.metrics, self.report = metrics, ConsumeReport()
        self.queue: queue.Queue[SegmentRecord] = queue.Queue(settings.queue_segments)
        self.committed: deque[tuple[OwnedPartition, int]] = deque()
        self.fenced: deque[OwnedPartition] = deque()
        self.failure: BaseException | None = None
        self.indexer = SegmentIndexer(
            store,
            encoders,
            self._announce,
            batch_frames=settings.batch_frames,
            decoders=settings.decoders,
            on_batch=metrics.batch_frames.observe,
        )
        self._limits, self._outbox, self._group = limits, outbox, group
        self._queued_bytes, self._counting = 0, threading.Lock()  # bytes of the records in the queue
        metrics.queue.set_function(self.queue.qsize)
        metrics.queue_capacity.set(settings.queue_segments)
        self._stop, self._abandon = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    # ---- called by the consumer's thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, record: SegmentRecord) -> bool:
        """Queue a record unless the queue is full, by number or by bytes; whether it was queued."""
        size = _record_bytes(record)
        with self._counting:
            if self.queue.full() or (self._queued_bytes and self._queued_bytes + size > QUEUE_BYTES):
                return False
            self._queued_bytes += size
        self.queue.put_nowait(record)  # this thread alone puts, so there is room
        return True

    def idle(self) -> bool:
        """Whether no record is queued, being decoded or uncommitted."""
        return self.queue.unfinished_tasks == 0

    def stop(self, timeout: float = 30.0) -> None:
        """Commit what is decoded, leave the rest to the partitions' next owners, and end the thread.

        Args:
            timeout: seconds after which waiting for Kafka is given up; the call returns within 5 s of that.
        """
        self._stop.set()
        self._thread.join(timeout)
        self._abandon.set()
        self._thread.join(5.0)

    def announce_segments(self, stored: Sequence[Segment]) -> None:
        """Publish stored segments to `sightline.indexed`, in order within a stream. Raises KafkaProblem."""
        for segment in stored:
            partition = partition_of(segment)
            message = IndexedMessage(
                stream=segment.stream_id,
                start=from_micros(segment.start),
                end=from_micros(segment.end),
                frames=segment.frames,
                decode_mode=segment.decode_mode,
                problem=segment.problem,
                topic=partition.topic,
                partition=partition.partition,
                offset=segment.chunk,
            )
            self._outbox.send(self.kafka.indexed, key=segment.stream_id, value=message.to_bytes())
        self._outbox.flush()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(self.settings.decoders, thread_name_prefix="segment") as pool:
                self._loop(pool)
        except BaseException as error:
            self.failure = error

    def _loop(self, pool: ThreadPoolExecutor) -> None:
        decoding: deque[Future[_ReadResult]] = deque()
        done: list[_ReadResult] = []
        deadline = float("inf")
        while True:
            stopping = self._stop.is_set()
            while len(decoding) < self.settings.decoders and not stopping:
                record = self._next(wait=not decoding and not done)
                if record is None:
                    break
                if self.ownership.is_current(record.owned):
                    decoding.append(pool.submit(self._read, record))
                else:
                    self.queue.task_done()
            if not decoding and not done:
                if stopping:
                    return
                continue
            if decoding:
                wait([decoding[0]], timeout=max(0.0, min(_IDLE_SECONDS, deadline - time.monotonic())))
                if decoding[0].done():
                    done.append(decoding.popleft().result())
                    deadline = min(deadline, time.monotonic() + self.settings.commit_seconds)
                self.indexer.encode(_segments(done), min_frames=self.settings.batch_frames)
            full = len(done) >= self.settings.commit_segments or self.indexer.full(_segments(done))
            if done and (full or time.monotonic() >= deadline or (stopping and not decoding)):
                self.indexer.encode(_segments(done))
                self._commit(done)
                for _ in done:
                    self.queue.task_done()
                done, deadline = [], float("inf")
                self.indexer.seal_finished_days()
            elif done and not decoding and self.queue.empty():
                time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))

    def _next(self, *, wait: bool) -> SegmentRecord | None:
        try:
            record = self.queue.get(timeout=_IDLE_SECONDS) if wait else self.queue.get_nowait()
        except queue.Empty:
            return None
        with self._counting:
            self._queued_bytes = max(0, self._queued_bytes - _record_bytes(record))
        return record

    # ---- reading -------------------------------------------------------------------------------------------------

    def _read(self, record: SegmentRecord) -> _ReadResult:
        """Parse, fetch and decode a record. Runs in the pool.

        Whatever the record makes a parser do becomes its error: nothing that is sent ends the worker. An OSError of
        this machine, such as a full disk, is raised; the record did not cause it.
        """
        result = _ReadResult(record)
        try:
            if isinstance(record.value, UnreadableBatch):
                result.step = "batch"
                raise MessageInvalid(record.value.reason)
            message = parse_segment(record.value, record.key)
            result.segment = self._segment(record, message, None)
            self.metrics.read(message.stream, message.start_micros + round(message.duration * 1e6), message.clock)
            result.step = "clock"
            check_clock(message, ahead_seconds=self.settings.ahead_seconds)
            result.step = "fetch"
            result.segment = self._segment(record, message, self._fetch(record, message))
        except (SourceError, MessageInvalid) as error:
            if result.step == "fetch" and not isinstance(error, (SourceNotFound, SourceDenied, MessageInvalid)):
                result.step = "decode"
            result.error = error
        except (OSError, MemoryError):
            raise
        except Exception as error:
            _log.exception("an unexpected error while reading a record")
            result.error = MessageInvalid(f"{type(error).__name__}: {shown_text(str(error))}; the message is kept")
        return result

    def _fetch(self, record: SegmentRecord, message: SegmentMessage) -> SegmentFrames:
        """Fetch and decode a segment, with retries where they may help. Raises SourceError or MessageInvalid."""

        def transient(error: BaseException) -> bool:
            if not self.ownership.is_current(record.owned):
                return False
            if isinstance(error, MessageInvalid):
                return message.uri is not None  # an object may be replaced; the message itself stays as it is
            return isinstance(error, SourceError) and not isinstance(error, SourceDenied)

        retrying = Retrying(
            retry=retry_if_exception(transient),
            stop=stop_after_attempt(self.settings.attempts),
            wait=wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.1),
            sleep=sleep_using_event(self._stop),
            reraise=True,
        )
        parts = self.indexer.parts(message.stream, message.clock)
        return retrying(read_segment, message, settings=self.kafka, limits=self._limits, parts=parts)

    def _segment(self, record: SegmentRecord, message: SegmentMessage, frames: SegmentFrames | None) -> DecodedSegment:
        partition = record.owned.partition
        start = message.start_micros
        row = Segment(
            stream_id=message.stream,
            source=f"{partition.app}@{self.topic_id}",
            chunk=record.offset,
            uri=mask_url(message.uri) if message.uri else f"kafka://{partition.app}/{record.offset}",
            start=start,
            end=start + round(message.duration * 1e6),
            frames=0,
            decode_mode="all" if frames is None else frames.decode_mode,
            clock_source=message.clock,
            clock_zone=message.clock_zone,
            clock_fold=message.clock_fold,
            problem=None if frames is None else frames.problem,
        )
        return DecodedSegment(partition.app, row, frames, rejected=frames is None)

    # ---- storing -------------------------------------------------------------------------------------------------

    def _commit(self, done: Sequence[_ReadResult]) -> None:
        done = [result for result in done if self.ownership.is_current(result.record.owned)]
        if not done:
            return
        letters = [self._letter(result) for result in done if result.error is not None]
        if letters and not self._deliver(lambda: self._post(letters)):
            return
        ends: dict[OwnedPartition, int] = {}
        for result in done:
            ends[result.record.owned] = result.record.offset + 1
        try:
            batch = self.indexer.commit(
                _segments(done),
                {owned.partition.app: owned.advance_to(end) for owned, end in ends.items()},
                # A partition may have been revoked while the dead letters were written.
                is_owner=lambda: all(self.ownership.is_current(owned) for owned in ends),
            )
        except CommitFenced as error:
            _log.warning("fenced; starting again from the store's offsets", problem=str(error))
            self.report.fenced += 1
            self.metrics.fenced.inc()
            self.ownership.release([owned.partition for owned in ends if self.ownership.is_current(owned)])
            self.fenced.extend(ends)
            return
        for owned, end in ends.items():
            owned.stored = end
        self._count(done, batch, dead_letters=len(letters))
        _log.info("stored", segments=len(batch.stored), dead=len(letters), partitions=len(ends))
        if self.indexer.announce(batch):
            self.report.alerts = self.indexer.alerts_raised
            self.committed.extend(ends.items())

    def _count(self, done: Sequence[_ReadResult], batch: CommittedBatch, *, dead_letters: int) -> None:
        report = self.report
        report.commits += 1
        report.segments += len(batch.stored)
        report.frames += batch.frames
        report.dead_letters += dead_letters
        report.commit_seconds = [*report.commit_seconds, batch.seconds][-_REPORTED:]
        late = [time.time() - segment.end / 1e6 for segment in batch.stored]
        report.late_seconds = [*report.late_seconds, *late][-_REPORTED:]
        decoded: dict[tuple[str, int], int] = {}
        for each in batch.segments:
            if each.records is not None and len(each.records):
                decoded[each.row.source, each.row.chunk] = len(each.records)
                newest = int(each.records.captured_at[-1])
                self.metrics.newest_frame(each.row.stream_id, newest, each.row.clock_source)
        self.metrics.stored(batch.stored, decoded, batch.seconds)
        repeated = [s for s in batch.stored if not s.frames and decoded.get((s.source, s.chunk))]
        report.footage.add("stored", segments=len(batch.stored) - len(repeated), frames=batch.frames)
        report.footage.add("repeated", segments=len(repeated), frames=sum(decoded.values()) - batch.frames)
        for result in done:
            if result.error is not None:
                row = None if result.segment is None else result.segment.row
                report.footage.add("dropped", segments=1, seconds=0.0 if row is None else (row.end - row.start) / 1e6)
                self.metrics.dead_letters.labels(type(result.error).__name__, result.step).inc()

    # ---- messages ------------------------------------------------------------------------------------------------

    def _announce(self, stored: Sequence[Segment], alerts: Sequence[AlertMessage]) -> bool:
        return self._deliver(lambda: self.announce_segments(stored)) and self._deliver(
            lambda: publish_alerts(self._outbox, self.kafka.alerts, alerts)
        )

    def _letter(self, result: _ReadResult) -> DeadLetter:
        record = result.record
        partition = record.owned.partition
        _log.warning(
            "to the dead letters", message=f"{partition.app}/{record.offset}", problem=shown_text(str(result.error))
        )
        return DeadLetter.of(
            record.value,
            topic=partition.topic,
            partition=partition.partition,
            offset=record.offset,
            key=record.key,
            headers=record.headers or (),
            failed_at=datetime.now(UTC),
            error=type(result.error).__name__,
            reason=str(result.error),
            where=result.step,
            attempt=attempt_of(record.headers) + 1,
            group=self._group,
        )

    def _post(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            try:
                self._outbox.send(self.kafka.deadletter, key=letter.origin, value=letter.to_bytes())
                self._outbox.flush()
            except MessageTooLarge:
                self._outbox.send(self.kafka.deadletter, key=letter.origin, value=letter.without_original().to_bytes())
        self._outbox.flush()

    def _deliver(self, send: Callable[[], None]) -> bool:
        """Call `send` until Kafka accepts the messages. Returns False when the worker is stopped before that."""
        retrying = Retrying(
            retry=retry_if_exception_type(KafkaProblem),
            stop=stop_when_event_set(self._stop),
            wait=wait_exponential(multiplier=0.5, max=10.0),
            sleep=sleep_using_event(self._abandon),
            before_sleep=_log_refused,
        )
        try:
            for attempt in retrying:
                if attempt.retry_state.attempt_number > 1 and self._stop.is_set():
                    return False
                with attempt:
                    send()
        except RetryError:
            return False
        return True


def _log_refused(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    _log.warning("Kafka does not accept messages; retrying", problem=str(error), attempt=state.attempt_number)


def _record_bytes(record: SegmentRecord) -> int:
    return len(record.value or b"") + sum(len(value or b"") for _, value in record.headers)


def _segments(done: Sequence[_ReadResult]) -> list[DecodedSegment]:
    return [result.segment for result in done if result.segment is not None]


def partition_of(segment: Segment) -> Partition:
    """The partition that the `source` of a stored segment names."""
    topic, _, number = segment.source.partition("@")[0].rpartition("/")
    return Partition(topic, int(number))
