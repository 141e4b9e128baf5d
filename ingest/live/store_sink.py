"""Cameras' segments into the store: decoded in the sandbox, one encoder batch and one commit for all cameras.

The position of a stream is `live/STREAM` in the store, the time behind its last segment's start. It moves in the very
commit that stores the segment, so one that is handed over again after a crash is known and passed over.

What standing questions find is told after the commit. Where it cannot be told, storing goes on, and it is told with the
next segments or by the next process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.errors import CommitFenced, KafkaProblem, MessageInvalid, SourceError, StoreError
from index.records import FrameRecords, Segment, rfc3339
from index.store import Store
from ingest.alerts.scorer import AlertScorer
from ingest.decoding.limits import DecodeLimits
from ingest.embedding import records_of
from ingest.kafka.settings import ConsumeSettings
from ingest.live.spool import SpooledSegment
from ingest.messages import AlertMessage
from ingest.segments.frames import SegmentFrames, decode_segment
from model.encoders.encoder import Encoders

__all__ = ["StoreSink"]

_log = structlog.get_logger(__name__)
_SPARE = 2.0  # seconds that a segment may be longer than its name says


class StoreSink:
    """Stores segments and tells `tell` what standing questions found; it may raise KafkaProblem.

    `late` are the last seconds from capture to stored of single frames, `frames` and `alerts` all there were.
    """

    def __init__(
        self,
        store: Store,
        encoders: Encoders,
        settings: ConsumeSettings,
        limits: DecodeLimits,
        *,
        tell: Callable[[Sequence[AlertMessage]], None] = lambda _: None,
    ) -> None:
        self.store, self.encoders, self.settings, self.limits = store, encoders, settings, limits
        self.gather, self.most = settings.commit_seconds, settings.commit_segments
        self.late: deque[float] = deque(maxlen=100_000)
        self.frames = self.commits = self.alerts = 0
        self._tell, self._standing = tell, AlertScorer(store)
        self._writer = OffsetCommitter(store.tables)
        self._offsets: dict[str, int | None] = {}

    def take(self, segments: Sequence[SpooledSegment]) -> None:
        """Store them.

        Raises:
            CommitFenced: another process stores the same streams. StoreError: see `index.errors`.
        """
        pieces = list(self._pieces(segments))
        for last in (False, True):
            try:
                return self._write(pieces)
            except StoreError as error:
                self._standing.forget()  # what was to be told is told with the next try
                if not isinstance(error, CommitFenced):
                    raise
                # A commit whose answer was lost looks the same; then the store's word is that it is done.
                self._offsets.clear()
                self._writer.invalidate()
                if last:
                    raise

    def report(self) -> dict[str, float | int]:
        """Frames, commits, alerts, and the median and 95th percentile of seconds from capture to stored."""
        late = sorted(self.late)
        at = {f"late_p{p}": round(late[min(len(late) - 1, len(late) * p // 100)], 3) for p in (50, 95)} if late else {}
        return {"frames": self.frames, "commits": self.commits, "alerts": self.alerts, **at}

    def _write(self, pieces: Sequence[OffsetSegment]) -> None:
        unknown = [app for app in {piece.app for piece in pieces} if app not in self._offsets]
        if unknown:
            self._offsets.update(self._writer.offsets(unknown))
        new = [piece for piece in pieces if piece.segment.chunk >= (self._offsets[piece.app] or 0)]
        if not new:
            return
        after: dict[str, int] = {}
        for piece in new:
            after[piece.app] = piece.segment.chunk + 1
        told = self._standing.ready(piece.segment.stream_id for piece in new)
        stored = self._writer.commit(new, {app: OffsetAdvance(self._offsets[app], end) for app, end in after.items()})
        self._offsets.update(after)
        now = time.time()
        for piece in new:
            if piece.frames is not None:
                self.late.extend(now - at / 1e6 for at in piece.frames.captured_at.tolist())
        self.commits += 1
        self.frames += sum(segment.frames for segment in stored)
        _log.info("stored", segments=len(stored), frames=sum(segment.frames for segment in stored))
        self._alert([*told, *(a for p in new if p.frames is not None for a in self._standing.score(p.frames))])

    def _alert(self, told: Sequence[AlertMessage]) -> None:
        try:
            if told:
                self._tell(told)
        except KafkaProblem as error:
            _log.warning("alerts are late", alerts=len(told), problem=str(error))
            self._standing.forget()  # the next segments begin with the state before these
            return
        self.alerts += sum(alert.state == "raised" for alert in told)
        self._standing.keep()

    def _pieces(self, segments: Sequence[SpooledSegment]) -> Iterator[OffsetSegment]:
        """Decoded a few at a time, encoded as soon as a batch is full: pixels of one batch are held, no more."""
        held: list[tuple[SpooledSegment, SegmentFrames]] = []
        ready: dict[SpooledSegment, OffsetSegment] = {}

        def encode() -> None:
            reads = [(one.segment.stream, "arrival", frames) for one, frames in held]
            records = records_of(self.encoders, reads, batch_frames=self.settings.batch_frames)  # type: ignore[arg-type]
            for (one, frames), each in zip(held, records, strict=True):
                ready[one] = _piece(one, each, frames.decode_mode, frames.problem)
            held.clear()

        for one, read in self._decoded(segments):
            if isinstance(read, str):
                _log.warning("a segment does not decode", segment=one.segment.name, problem=read)
                ready[one] = _piece(one, None, "all", read)
            else:
                held.append((one, read))
            if sum(len(frames.pixels) for _, frames in held) >= self.settings.batch_frames:
                encode()
        encode()
        return (ready[one] for one in sorted(segments, key=lambda one: (one.segment.stream, one.segment.start)))

    def _decoded(self, segments: Sequence[SpooledSegment]) -> Iterator[tuple[SpooledSegment, SegmentFrames | str]]:
        ahead: deque[tuple[SpooledSegment, Future[SegmentFrames | str]]] = deque()
        with ThreadPoolExecutor(self.settings.decoders, thread_name_prefix="segment") as pool:
            for one in segments:
                ahead.append((one, pool.submit(self._decode, one)))
                if len(ahead) >= self.settings.decoders:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for first, future in ahead:
                yield first, future.result()

    def _decode(self, one: SpooledSegment) -> SegmentFrames | str:
        """Its frames, or what is wrong with it."""
        segment = one.segment
        name = f"{segment.stream} at {rfc3339(segment.start)}"
        try:
            return decode_segment(
                one.path, name=name, start=segment.start, duration=segment.duration + _SPARE, limits=self.limits
            )
        except (SourceError, MessageInvalid) as error:
            return str(error).replace(str(one.path), name)


def _piece(one: SpooledSegment, records: FrameRecords | None, mode: str, problem: str | None) -> OffsetSegment:
    segment = one.segment
    app = f"live/{segment.stream}"
    row = Segment(
        stream_id=segment.stream,
        source=app,
        chunk=segment.start,
        uri=f"live://{segment.name}",
        start=segment.start,
        end=segment.end,
        frames=0 if records is None else len(records),
        decode_mode=mode,
        clock_source="arrival",
        problem=problem,
    )
    return OffsetSegment(app, row, records)
