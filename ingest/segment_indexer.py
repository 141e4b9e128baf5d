"""The segment indexer: encodes decoded segments, commits them to the store, scores alerts and announces the result.

    source ──▶ DecodedSegment ──▶ encode ──▶ commit (one transaction of offsets and rows) ──▶ announce

A source (the Kafka worker, the live cameras) decodes segments and numbers them with ascending offsets; this module does
everything that follows. The order of the steps carries the guarantees:

1. `commit` asks the alert scorer for alerts of frames that an earlier process stored and did not publish, then stores
   the rows and the new offsets of all sources in one commit.
2. `announce` scores the frames that were stored and passes stored segments and alerts to the source's `Announcer`.
3. Only after the announcer reports delivery does the scorer save its state. After a failure it discards the state, so
   the same alerts, with the same ids, are published by a later batch or by the next process.

A segment is therefore stored exactly once, and announced at least once. This module knows neither Kafka nor cameras.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import structlog

from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.errors import CommitFenced, StoreError
from index.records import ClockSource, FrameRecords, Segment
from index.store import Store
from ingest.alerts.scorer import AlertScorer
from ingest.chunks import BATCH_BYTES, concatenated
from ingest.decoding.frame import FrameBatch
from ingest.embedding import encode_records
from ingest.messages import AlertMessage
from ingest.segments.frames import PartEncoder, SegmentFrames
from ingest.shutdown import commit_under_way
from model.encoders.encoder import Encoders

__all__ = ["COMMIT_BYTES", "Announcer", "CommittedBatch", "DecodedSegment", "SegmentIndexer"]

_log = structlog.get_logger(__name__)

COMMIT_BYTES = 512 * 2**20
"""Bytes of encoded frames with which a commit is full; a single segment may have more."""


class Announcer(Protocol):
    """Publishes what was stored."""

    def __call__(self, stored: Sequence[Segment], alerts: Sequence[AlertMessage]) -> bool:
        """Publish segments and alerts. Returns True when both are delivered, False when they are given up for now."""
        ...


@dataclass(slots=True, eq=False)
class DecodedSegment:
    """One segment on its way from a source into the store."""

    app: str
    """Application id of the source in the store; `row.chunk` is the segment's offset within it."""
    row: Segment
    """The segment's row; its number of frames is set by the commit."""
    frames: SegmentFrames | None = None
    """The decoded frames; their pixels are released by `SegmentIndexer.encode`. None when nothing was decoded."""
    rejected: bool = False
    """True for a segment that gets no row: its source handled the failure, and only the offset moves past it."""
    records: FrameRecords | None = None
    """The encoded frames, set by `SegmentIndexer.encode`."""


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """The result of `SegmentIndexer.commit`, to be passed to `SegmentIndexer.announce`."""

    segments: Sequence[DecodedSegment]
    """All segments of the batch, rejected ones included."""
    stored: Sequence[Segment]
    """The rows as stored: `frames` counts the frames whose second was still free."""
    late_alerts: Sequence[AlertMessage]
    """Alerts of frames that were stored earlier and not published."""
    seconds: float
    """Duration of the commit."""

    @property
    def frames(self) -> int:
        """The number of frames stored."""
        return sum(segment.frames for segment in self.stored)


class SegmentIndexer:
    """Indexes the segments of one source process. For one thread, except `forget` and the encoders that `parts` makes,
    which any thread may call.

    Args:
        store: the store; its encoder identity must be that of `encoders`.
        encoders: the frame and the patch encoder.
        announce: publishes what was stored.
        batch_frames: the largest number of frames in one encoder batch.
        decoders: how many segments are decoded at the same time; their parts together hold at most `BATCH_BYTES`.
        on_batch: called with the number of frames of each encoder batch.
    """

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        announce: Announcer,
        *,
        batch_frames: int,
        decoders: int = 1,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.store, self.encoders, self.batch_frames = store, encoders, batch_frames
        self.committer = OffsetCommitter(store.tables)
        self.alerts_raised = 0
        self._announce, self._on_batch, self._decoders = announce, on_batch, decoders
        self._encoding = threading.Lock()  # the encoders are for one thread at a time
        self._scorer = AlertScorer(store)
        self._day = datetime.now(UTC).date()

    def forget(self) -> None:
        """Discard what is remembered of streams, because another process may have written them."""
        self.committer.invalidate()
        self._scorer.forget()

    def parts(self, stream_id: str, clock: ClockSource) -> PartEncoder:
        """The encoder of the parts of a segment that is longer than one batch, for `decode_segment`."""

        def encode(frames: FrameBatch) -> FrameRecords:
            return self._encoded([(stream_id, clock, frames)])[0]

        return PartEncoder(
            encode,
            max_frames=self.batch_frames,
            max_bytes=BATCH_BYTES // self._decoders,
            clip_frames=self.encoders.pair.clip_frames,
        )

    def _encoded(self, inputs: Sequence[tuple[str, ClockSource, FrameBatch]]) -> list[FrameRecords]:
        with self._encoding:
            return encode_records(self.encoders, inputs, batch_frames=self.batch_frames, on_batch=self._on_batch)

    def encode(self, segments: Iterable[DecodedSegment], *, min_frames: int = 1) -> None:
        """Encode the segments that are decoded and not encoded yet, once they have `min_frames` frames together, or
        `BATCH_BYTES` bytes of pixels.

        Frames of all streams share the encoder batches.
        """
        waiting = [(each, each.frames) for each in segments if each.frames is not None and each.records is None]
        frames = sum(len(decoded.pixels) for _, decoded in waiting)
        if frames < min_frames and sum(pixels.nbytes for _, each in waiting for pixels in each.pixels) < BATCH_BYTES:
            return
        encoded = self._encoded([(each.row.stream_id, each.row.clock_source, decoded) for each, decoded in waiting])
        for (each, decoded), records in zip(waiting, encoded, strict=True):
            each.records = concatenated([*decoded.encoded, records])
            decoded.encoded.clear()

    @staticmethod
    def full(segments: Iterable[DecodedSegment]) -> bool:
        """Whether the encoded frames of `segments` have `COMMIT_BYTES`, so that they must be committed before more."""
        held = 0
        for each in segments:
            done = each.frames.encoded if each.records is None and each.frames is not None else [each.records]
            held += sum(records.nbytes for records in done if records is not None)
        return held >= COMMIT_BYTES

    def commit(
        self,
        segments: Sequence[DecodedSegment],
        advances: Mapping[str, OffsetAdvance],
        *,
        is_owner: Callable[[], bool] = lambda: True,
    ) -> CommittedBatch:
        """Encode what is not encoded yet, and store `segments` together with the offsets of `advances`.

        Args:
            segments: ascending in offset within each application.
            advances: the offsets before and after this batch, for every application of the batch.
            is_owner: checked immediately before the commit.

        Raises:
            CommitFenced: an application's offset in the store is not where its advance begins, or `is_owner` is False.
            StoreError: see `index.errors`. After any error nothing of the batch counts as stored.
        """
        with commit_under_way():
            return self._commit(segments, advances, is_owner)

    def _commit(
        self,
        segments: Sequence[DecodedSegment],
        advances: Mapping[str, OffsetAdvance],
        is_owner: Callable[[], bool],
    ) -> CommittedBatch:
        self.encode(segments)
        late_alerts = self._scorer.prepare(each.row.stream_id for each in segments)
        rows = [OffsetSegment(each.app, each.row, each.records, rejected=each.rejected) for each in segments]
        began = time.monotonic()
        try:
            if not is_owner():
                raise CommitFenced("the ownership of a source was lost while its segments were decoded")
            stored = self.committer.commit(rows, advances)
        except BaseException:
            self.forget()  # the late alerts are found again by the next commit
            raise
        return CommittedBatch(segments, stored, late_alerts, time.monotonic() - began)

    def announce(self, batch: CommittedBatch) -> bool:
        """Score the frames of `batch`, then publish its segments and alerts. Returns True when they are delivered.

        When they are not delivered, the alerts are published with a later batch of these streams or by the next
        process.
        """
        alerts = list(batch.late_alerts)
        for each in batch.segments:
            if each.records is not None:
                alerts += self._scorer.score(each.records)
        if not self._announce(batch.stored, alerts):
            self._scorer.forget()
            return False
        self.alerts_raised += sum(alert.state == "raised" for alert in alerts)
        self._scorer.save()
        return True

    def seal_finished_days(self) -> None:
        """Cover finished days with search shards, once per UTC day. They are a cache: a failure is only logged."""
        today = datetime.now(UTC).date()
        if today == self._day:
            return
        self._day = today
        try:
            self.store.seal()
        except (StoreError, OSError) as error:
            _log.warning("the finished days have no search shards; `sightline reindex` builds them", problem=str(error))
