"""The sink of live segments that stores them: reads files of the spool, decodes them and has them indexed.

The position of a stream in the store is the application `live/STREAM`, whose offset is one past the start time of its
last segment in microseconds. It advances in the commit that stores the segment, so a segment that is passed again after
a crash is recognised and skipped.

Alerts are published after the commit. When that fails, storing continues, and they are published with the next segments
or by the next process. Encoding, storing and scoring are done by `ingest.segment_indexer`; this module knows nothing of
cameras.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import structlog

from index.commits.offset import OffsetAdvance
from index.errors import CommitFenced, KafkaProblem, MessageInvalid, SourceError
from index.records import Segment, rfc3339
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.footage_report import FootageReport
from ingest.kafka.settings import ConsumeSettings
from ingest.live.spool import SpooledSegment
from ingest.messages import AlertMessage
from ingest.segment_indexer import CommittedBatch, DecodedSegment, SegmentIndexer
from ingest.segments.frames import SegmentFrames, decode_segment
from model.encoders.encoder import Encoders

__all__ = ["StoreSink"]

_log = structlog.get_logger(__name__)
_EXTRA_SECONDS = 2.0  # that a segment may last beyond the duration in its name


class StoreSink:
    """Stores segments; see `ingest.live.supervisor.SegmentSink`.

    Args:
        store: the store; its encoder identity must be that of `encoders`.
        encoders: the frame and the patch encoder.
        settings: the sizes of batches and commits, and the number of decoders.
        limits: the bounds of a decoder process.
        on_alerts: publishes alerts; may raise KafkaProblem, and then receives them again with a later commit.

    Attributes:
        frames: the number of frames stored.
        commits: the number of commits.
        footage: what was stored, repeated and dropped; what no camera sent is not in it.
        late: seconds from capture to commit of the latest frames, at most 100,000.
    """

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        settings: ConsumeSettings,
        limits: DecodeLimits,
        *,
        on_alerts: Callable[[Sequence[AlertMessage]], None] = lambda _: None,
    ) -> None:
        self.settings, self.limits = settings, limits
        self.gather_seconds, self.max_segments = settings.commit_seconds, settings.commit_segments
        self.late: deque[float] = deque(maxlen=100_000)
        self.frames = self.commits = 0
        self.footage, self._footage_lock = FootageReport(), threading.Lock()
        self._on_alerts = on_alerts
        self._indexer = SegmentIndexer(
            store, encoders, self._announce, batch_frames=settings.batch_frames, decoders=settings.decoders
        )
        self._offsets: dict[str, int | None] = {}

    @property
    def alerts(self) -> int:
        """The number of alerts raised and published."""
        return self._indexer.alerts_raised

    def write(self, segments: Sequence[SpooledSegment]) -> None:
        """Store segments; those that are stored already are skipped.

        Raises:
            CommitFenced: another process stores the same streams.
            StoreError: see `index.errors`; nothing of `segments` counts as stored, and writing them again is safe.
        """
        for decoded in self._decode_all(sorted(segments, key=lambda each: (each.segment.stream, each.segment.start))):
            try:
                self._commit(decoded)
            except CommitFenced:
                # Also raised when the reply to a successful commit was lost. Read the offsets and try once more.
                self._offsets.clear()
                self._commit(decoded)

    def drop(self, spooled: SpooledSegment) -> None:
        """Count a segment that the full spool dropped; for any thread."""
        with self._footage_lock:
            self.footage.add("dropped", segments=1, seconds=spooled.segment.duration)

    def report(self) -> dict[str, Any]:
        """Counts of frames, commits and alerts, the footage, and the median and 95th percentile of `late` in
        seconds."""
        late = sorted(self.late)
        at = {f"late_p{p}": round(late[min(len(late) - 1, len(late) * p // 100)], 3) for p in (50, 95)} if late else {}
        return {"frames": self.frames, "commits": self.commits, "alerts": self.alerts, "footage": self.footage, **at}

    def _commit(self, segments: Sequence[DecodedSegment]) -> None:
        unknown = [app for app in {each.app for each in segments} if app not in self._offsets]
        if unknown:
            self._offsets.update(self._indexer.committer.offsets(unknown))
        new = [each for each in segments if each.row.chunk >= (self._offsets[each.app] or 0)]
        with self._footage_lock:
            for each in segments:
                if each.row.chunk < (self._offsets[each.app] or 0):
                    self.footage.add("repeated", segments=1, seconds=(each.row.end - each.row.start) / 1e6)
        if not new:
            return
        ends = {each.app: each.row.chunk + 1 for each in new}
        batch = self._indexer.commit(new, {app: OffsetAdvance(self._offsets[app], end) for app, end in ends.items()})
        self._offsets.update(ends)
        now = time.time()
        for each in new:
            if each.records is not None:
                self.late.extend(now - at / 1e6 for at in each.records.captured_at.tolist())
        self.commits += 1
        self.frames += batch.frames
        self._count(batch)
        _log.info("stored", segments=len(batch.stored), frames=batch.frames)
        self._indexer.announce(batch)

    def _count(self, batch: CommittedBatch) -> None:
        """Count the footage of a commit, as a Kafka worker does; what does not decode is dropped."""
        segments = {(each.row.source, each.row.chunk): each for each in batch.segments}
        with self._footage_lock:
            for stored in batch.stored:
                decoded = segments[stored.source, stored.chunk]
                if decoded.records is None or not len(decoded.records):
                    seconds = 0.0 if decoded.frames is not None else (stored.end - stored.start) / 1e6
                    self.footage.add("stored" if decoded.frames else "dropped", segments=1, seconds=seconds)
                    continue
                self.footage.add("stored" if stored.frames else "repeated", segments=1, frames=stored.frames)
                self.footage.add("repeated", frames=len(decoded.records) - stored.frames)

    def _announce(self, stored: Sequence[Segment], alerts: Sequence[AlertMessage]) -> bool:
        try:
            if alerts:
                self._on_alerts(alerts)
        except KafkaProblem as error:
            _log.warning("alerts are not published; retrying later", alerts=len(alerts), problem=str(error))
            return False
        return True

    # ---- decoding ------------------------------------------------------------------------------------------------

    def _decode_all(self, segments: Sequence[SpooledSegment]) -> Iterator[list[DecodedSegment]]:
        """Decode a few segments at a time and encode whenever a batch is full, so that one batch of pixels is held.

        Yields the segments of each commit: usually all of them, fewer where their encoded frames have many bytes.
        """
        decoded: list[DecodedSegment] = []
        for spooled, result in self._results(segments):
            if isinstance(result, str):
                _log.warning("a segment does not decode", segment=spooled.segment.name, problem=result)
            decoded.append(_decoded_segment(spooled, result))
            self._indexer.encode(decoded, min_frames=self.settings.batch_frames)
            if self._indexer.full(decoded):
                yield decoded
                decoded = []
        if decoded:
            yield decoded

    def _results(self, segments: Sequence[SpooledSegment]) -> Iterator[tuple[SpooledSegment, SegmentFrames | str]]:
        """Each segment with its frames, or with the reason why it has none, in the order of `segments`."""
        decoding: deque[tuple[SpooledSegment, Future[SegmentFrames | str]]] = deque()
        with ThreadPoolExecutor(self.settings.decoders, thread_name_prefix="segment") as pool:
            for spooled in segments:
                decoding.append((spooled, pool.submit(self._decode, spooled)))
                if len(decoding) >= self.settings.decoders:
                    first, future = decoding.popleft()
                    yield first, future.result()
            for first, future in decoding:
                yield first, future.result()

    def _decode(self, spooled: SpooledSegment) -> SegmentFrames | str:
        segment = spooled.segment
        name = f"{segment.stream} at {rfc3339(segment.start)}"
        try:
            return decode_segment(
                spooled.path,
                name=name,
                start=segment.start,
                duration=segment.duration + _EXTRA_SECONDS,
                limits=self.limits,
                parts=self._indexer.parts(segment.stream, "arrival"),
            )
        except (SourceError, MessageInvalid) as error:
            return str(error)


def _decoded_segment(spooled: SpooledSegment, result: SegmentFrames | str) -> DecodedSegment:
    segment = spooled.segment
    app = f"live/{segment.stream}"
    frames, problem = (None, result) if isinstance(result, str) else (result, result.problem)
    row = Segment(
        stream_id=segment.stream,
        source=app,
        chunk=segment.start,
        uri=f"live://{segment.name}",
        start=segment.start,
        end=segment.end,
        frames=0,
        decode_mode="all" if frames is None else frames.decode_mode,
        clock_source="arrival",
        problem=problem,
    )
    return DecodedSegment(app, row, frames)
