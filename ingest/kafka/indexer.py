"""The worker's second thread: segments in, frames in the store out. It never talks to the consumer group.

    queue of records ─▶ a few sandboxed decoders ─▶ one encoder batch of all cameras ─▶ one commit of all partitions

Many cameras share an encoder batch (by number of frames) and a commit (by number of segments, or by time). What cannot
be stored is tried a few times and written to the dead letter, and acknowledged there, before the commit that moves the
partition past it. What was stored is announced after its commit, and reported to the consumer only then.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import structlog
from pydantic import BaseModel, Field

from index.commits.offset import OffsetCommitter, OffsetSegment
from index.errors import (
    CommitFenced,
    KafkaProblem,
    MessageInvalid,
    MessageTooLarge,
    SightlineError,
    SourceDenied,
    SourceError,
    SourceNotFound,
    StoreError,
    mask_url,
)
from index.records import FrameRecords, Segment, from_micros
from index.store import Store
from ingest.alerts.scorer import AlertScorer
from ingest.decoding.limits import DecodeLimits
from ingest.embedding import records_of
from ingest.kafka.dead_letters import attempt_of
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import DeadLetter, IndexedMessage, SegmentMessage, parse_segment
from ingest.outbox import Outbox, publish_alerts
from ingest.segments.frames import SegmentFrames, check_clock, read_segment
from model.encoders.encoder import Encoders

__all__ = ["ConsumeReport", "SegmentIndexer", "SegmentRecord", "partition_of"]

_log = structlog.get_logger(__name__)
_IDLE = 0.1


class ConsumeReport(BaseModel):
    """What one worker did; `commit_seconds` and `late_seconds` are the last ones, from segment's end to stored."""

    segments: int = 0
    frames: int = 0
    dead_letters: int = 0
    commits: int = 0
    alerts: int = 0
    fenced: int = 0
    rebalances: int = 0
    commit_seconds: list[float] = Field(default_factory=list)
    late_seconds: list[float] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One record of the segments topic, read for `claim`."""

    claim: OwnedPartition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclass(slots=True)
class _Read:
    """A job that was read: `frames`, or else the error and the step that failed."""

    job: SegmentRecord
    message: SegmentMessage | None = None
    frames: SegmentFrames | None = None
    error: SightlineError | None = None
    where: Literal["message", "clock", "fetch", "decode"] = "message"
    records: FrameRecords | None = None


@dataclass(eq=False)
class SegmentIndexer:
    """A thread that stores what is put into its queue. `failure` is what ended it, None while all is well."""

    kafka: KafkaSettings
    settings: ConsumeSettings
    limits: DecodeLimits
    encoders: Encoders
    store: Store
    outbox: Outbox
    claims: PartitionOwnership
    group: str
    topic_id: str
    report: ConsumeReport = field(default_factory=ConsumeReport)
    metrics: ConsumerMetrics = field(default_factory=ConsumerMetrics)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.jobs: queue.Queue[SegmentRecord] = queue.Queue(self.settings.queue_segments)
        self.stored: deque[tuple[OwnedPartition, int]] = deque()  # claims and their next offsets, for the consumer
        self.fenced: deque[OwnedPartition] = deque()
        self.alerts = AlertScorer(self.store)
        self.writer = OffsetCommitter(self.store.tables)
        self.metrics.queue.set_function(self.jobs.qsize)
        self.metrics.queue_capacity.set(self.settings.queue_segments)
        self._stop, self._abandon = threading.Event(), threading.Event()
        self._day = datetime.now(UTC).date()
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)

    # ---- from the consumer's thread ------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def idle(self) -> bool:
        """Whether nothing is queued, decoded or uncommitted."""
        return self.jobs.unfinished_tasks == 0

    def stop(self, timeout: float = 30.0) -> None:
        """Finish what is decoded, leave the rest to whoever comes next, and return within `timeout` seconds."""
        self._stop.set()
        self._thread.join(timeout)
        self._abandon.set()
        self._thread.join(5.0)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(self.settings.decoders, thread_name_prefix="segment") as pool:
                self._loop(pool)
        except BaseException as error:
            self.failure = error

    def _loop(self, pool: ThreadPoolExecutor) -> None:
        ahead: deque[Future[_Read]] = deque()
        done: list[_Read] = []
        deadline = float("inf")
        while True:
            stopping = self._stop.is_set()
            while len(ahead) < self.settings.decoders and not stopping:
                job = self._next(wait=not ahead and not done)
                if job is None:
                    break
                if self.claims.holds(job.claim):
                    ahead.append(pool.submit(self._read, job))
                else:
                    self.jobs.task_done()
            if not ahead and not done:
                if stopping:
                    return
                continue
            if ahead:
                wait([ahead[0]], timeout=max(0.0, min(_IDLE, deadline - time.monotonic())))
                if ahead[0].done():
                    done.append(ahead.popleft().result())
                    deadline = min(deadline, time.monotonic() + self.settings.commit_seconds)
                self._encode(done, least=self.settings.batch_frames)
            full = len(done) >= self.settings.commit_segments
            if done and (full or time.monotonic() >= deadline or (stopping and not ahead)):
                self._encode(done, least=1)
                self._commit(done)
                for _ in done:
                    self.jobs.task_done()
                done, deadline = [], float("inf")
                self._seal()
            elif done and not ahead:
                time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))

    def _next(self, *, wait: bool) -> SegmentRecord | None:
        try:
            return self.jobs.get(timeout=_IDLE) if wait else self.jobs.get_nowait()
        except queue.Empty:
            return None

    # ---- reading -------------------------------------------------------------------------------------------------

    def _read(self, job: SegmentRecord) -> _Read:
        """Parse, fetch and decode, some times over where that may help. Runs in the pool."""
        read = _Read(job)
        try:
            read.message = parse_segment(job.value, job.key)
            read.where = "clock"
            self.metrics.read(read.message.stream, read.message.start_micros + round(read.message.duration * 1e6))
            check_clock(read.message, ahead_seconds=self.settings.ahead_seconds)
        except MessageInvalid as error:
            read.error = error
            return read
        for attempt in range(self.settings.attempts):
            try:
                read.frames = read_segment(read.message, settings=self.kafka, limits=self.limits)
                read.error = None
                return read
            except (SourceError, MessageInvalid) as error:
                read.error = error
                fetching = isinstance(error, (SourceNotFound, SourceDenied, MessageInvalid))
                read.where = "fetch" if fetching else "decode"
                final = isinstance(error, SourceDenied) or (
                    isinstance(error, MessageInvalid) and read.message.uri is None
                )
                if final or attempt + 1 == self.settings.attempts or not self.claims.holds(job.claim):
                    break
            self._stop.wait(random.uniform(0.5, 1.0) * min(5.0, 0.2 * 2**attempt))
        return read

    # ---- encoding ------------------------------------------------------------------------------------------------

    def _encode(self, done: Sequence[_Read], *, least: int) -> None:
        """Encode what is decoded and not encoded, all cameras in one batch, once there are `least` frames of it."""
        waiting = [read for read in done if read.frames is not None and read.records is None]
        if sum(len(read.frames.pixels) for read in waiting if read.frames) < least:
            return
        decoded = [
            (read.message.stream, read.message.clock, read.frames) for read in waiting if read.message and read.frames
        ]
        frames = sum(len(each.pixels) for _, _, each in decoded)
        for at in range(0, frames, self.settings.batch_frames):
            self.metrics.batch_frames.observe(min(self.settings.batch_frames, frames - at))
        encoded = records_of(self.encoders, decoded, batch_frames=self.settings.batch_frames)
        for read, records in zip(waiting, encoded, strict=True):
            read.records = records

    # ---- storing -------------------------------------------------------------------------------------------------

    def _commit(self, done: Sequence[_Read]) -> None:
        done = [read for read in done if self.claims.holds(read.job.claim)]
        if not done:
            return
        letters = [self._letter(read) for read in done if read.error is not None]
        if letters and not self._insist(lambda: self._post(letters)):
            return
        after: dict[OwnedPartition, int] = {}
        for read in done:
            after[read.job.claim] = read.job.offset + 1
        pieces = [piece for read in done if (piece := self._piece(read)) is not None]
        told = self.alerts.ready(piece.segment.stream_id for piece in pieces)
        began = time.monotonic()
        try:
            if not all(self.claims.holds(claim) for claim in after):  # revoked while the letters were posted
                raise CommitFenced("a partition was taken away while its segments were decoded")
            stored = self.writer.commit(pieces, {claim.partition.app: claim.step(end) for claim, end in after.items()})
        except CommitFenced as error:
            _log.warning("fenced, starting again from what the store says", problem=str(error))
            self.report.fenced += 1
            self.metrics.fenced.inc()
            self.writer.invalidate()
            self.alerts.forget()
            self.claims.drop([claim.partition for claim in after if self.claims.holds(claim)])
            self.fenced.extend(after)
            return
        for claim, end in after.items():
            claim.stored = end
        self.report.commits += 1
        self.report.segments += len(stored)
        self.report.frames += sum(segment.frames for segment in stored)
        self.report.dead_letters += len(letters)
        seconds = time.monotonic() - began
        self.report.commit_seconds = [*self.report.commit_seconds[-99:], seconds]
        self._count(done, pieces, stored, seconds)
        late = [time.time() - segment.end / 1e6 for segment in stored]
        self.report.late_seconds = [*self.report.late_seconds, *late][-100:]
        _log.info("stored", segments=len(stored), dead=len(letters), partitions=len(after))
        told += [alert for piece in pieces if piece.frames is not None for alert in self.alerts.score(piece.frames)]
        if self._insist(lambda: self.announce(stored)) and self._insist(
            lambda: publish_alerts(self.outbox, self.kafka.alerts, told)
        ):
            self.report.alerts += sum(alert.state == "raised" for alert in told)
            self.alerts.keep()
            self.stored.extend(after.items())
        else:
            self.alerts.forget()  # not told: whoever goes on begins before it

    def _count(
        self, done: Sequence[_Read], pieces: Sequence[OffsetSegment], stored: Sequence[Segment], seconds: float
    ) -> None:
        decoded = {(p.segment.source, p.segment.chunk): len(p.frames) for p in pieces if p.frames is not None}
        self.metrics.stored(stored, decoded, seconds)
        for piece in pieces:
            if piece.frames is not None and len(piece.frames):
                self.metrics.newest_frame(piece.segment.stream_id, int(piece.frames.captured_at[-1]))
        for read in done:
            if read.error is not None:
                self.metrics.dead_letters.labels(type(read.error).__name__, read.where).inc()

    def _seal(self) -> None:
        """Once a day, cover the days that are over with search shards; they are a cache, so their failure is no matter."""
        today = datetime.now(UTC).date()
        if today != self._day:
            self._day = today
            try:
                self.store.seal()
            except (StoreError, OSError) as error:
                _log.warning("yesterday was not sealed; `sightline reindex` does it", problem=str(error))

    def _piece(self, read: _Read) -> OffsetSegment | None:
        message, job = read.message, read.job
        if message is None:
            return None
        partition = job.claim.partition
        start = message.start_micros
        segment = Segment(
            stream_id=message.stream,
            source=f"{partition.app}@{self.topic_id}",
            chunk=job.offset,
            uri=mask_url(message.uri) if message.uri else f"kafka://{partition.app}/{job.offset}",
            start=start,
            end=start + round(message.duration * 1e6),
            frames=0 if read.records is None else len(read.records),
            decode_mode="all" if read.frames is None else read.frames.decode_mode,
            clock_source=message.clock,
            problem=None if read.frames is None else read.frames.problem,
        )
        return OffsetSegment(partition.app, segment, read.records, rejected=read.error is not None)

    def _letter(self, read: _Read) -> DeadLetter:
        job = read.job
        _log.warning("to the dead letter", message=f"{job.claim.partition.app}/{job.offset}", problem=str(read.error))
        return DeadLetter.of(
            job.value,
            topic=job.claim.partition.topic,
            partition=job.claim.partition.partition,
            offset=job.offset,
            key=job.key,
            failed_at=datetime.now(UTC),
            error=type(read.error).__name__,
            reason=mask_url(str(read.error))[:2000],
            where=read.where,
            attempt=attempt_of(job.headers) + 1,
            group=self.group,
        )

    def _post(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            try:
                self.outbox.send(self.kafka.deadletter, key=letter.origin, value=letter.to_bytes())
                self.outbox.flush()
            except MessageTooLarge:
                self.outbox.send(self.kafka.deadletter, key=letter.origin, value=letter.without_original().to_bytes())
        self.outbox.flush()

    def announce(self, stored: Sequence[Segment]) -> None:
        """Tell followers what was stored; at least once, by stream in order. Raises KafkaProblem."""
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
            self.outbox.send(self.kafka.indexed, key=segment.stream_id, value=message.to_bytes())
        self.outbox.flush()

    def _insist(self, act: Callable[[], None]) -> bool:
        """Do it until Kafka takes it; False when the worker is to stop before that."""
        for attempt in range(1_000_000):
            try:
                act()
                return True
            except KafkaProblem as error:
                _log.warning("Kafka does not take messages; trying again", problem=str(error))
            if self._abandon.wait(min(10.0, 0.5 * 2 ** min(attempt, 5))) or self._stop.is_set():
                return False
        return False


def partition_of(segment: Segment) -> Partition:
    """The partition that a stored segment's `source` names."""
    topic, _, number = segment.source.partition("@")[0].rpartition("/")
    return Partition(topic, int(number))
