"""Pieces of many streams and the offsets they were read at, stored together: exactly once, whoever dies when.

Each of the three tables takes one commit a batch, patches first and `segments` last, and each commit carries the next
offset of every partition in the batch as a Delta transaction. `segments` is the authority: a batch begins where it says
its partitions stand, or not at all, and a partition's messages are stored when it says so.

- Killed before the last commit: patches or frames are ahead of `segments`. Whoever takes over finds that by their own
  offsets, removes what was left of its messages, and writes them anew in the same way.
- Fenced: Delta refuses a concurrent commit with the same application id, but takes a lower version without a word
  (deltalake 1.6.6), so each commit demands the very version that was read before.
- The application id is `topic/partition`. A topic that was deleted and made again goes on counting from 0, so a second
  one, `topic/partition@topic-id`, moves with it and says which topic of that name the store has read from.

This module knows nothing of Kafka: a source is a name and offsets that ascend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from index.columns import digest, frame_rows, segment_row, text
from index.errors import CommitFenced, StoreError, mask_url
from index.records import FrameRecords, Segment
from index.row_filter import in_window, of_streams
from index.schemas import SEGMENTS, TABLES, check_stream_id
from index.second_grid import seconds_of

if TYPE_CHECKING:
    from index.store import Store

__all__ = ["OffsetAdvance", "OffsetCommitter", "OffsetSegment"]

_SECOND = 1_000_000
_TRIM_EVERY = 200  # batches; about seven minutes of a busy worker


@dataclass(frozen=True, slots=True)
class OffsetSegment:
    """One message's footage. `segment.chunk` is its offset in `app`; a `void` piece could not be stored and gets no row."""

    app: str
    segment: Segment
    frames: FrameRecords | None
    void: bool = False

    @property
    def key(self) -> str:
        return digest(self.segment.stream_id, self.segment.source, self.segment.chunk)


@dataclass(frozen=True, slots=True)
class OffsetAdvance:
    """How far a batch moves one application: from `before` (None: never seen) to `after`; `also` moves with it."""

    before: int | None
    after: int
    also: str | None = None


@dataclass(slots=True)
class OffsetCommitter:
    """Writes batches into one store and remembers, stream by stream, the last second that is held.

    The memory spares a look into the tables for every batch; it is right as long as this writer alone writes these
    streams, so `forget` it for every stream that may have changed hands.
    """

    store: Store
    _last: dict[str, int] = field(default_factory=dict)
    _batches: int = 0

    def forget(self, streams: Iterable[str] | None = None) -> None:
        """Look again next time; all streams when None."""
        for stream in list(self._last) if streams is None else streams:
            self._last.pop(stream, None)

    def offsets(self, apps: Sequence[str]) -> dict[str, int | None]:
        """The next offset of every application, None for one that never stored anything."""
        return self.store._tables["segments"].versions(apps)

    def restart(self, apps: Sequence[str]) -> None:
        """Put applications back to 0, on purpose: their source was made again."""
        for table in self.store._tables.values():
            held = {app: version for app, version in table.versions(apps).items() if version}
            if held:
                table.append_from(table.schema.empty_table(), {app: (version, 0) for app, version in held.items()})

    def write(self, pieces: Sequence[OffsetSegment], steps: Mapping[str, OffsetAdvance]) -> list[Segment]:
        """Store `pieces` and move the applications; the segments as they were stored, void ones left out.

        Args:
            pieces: ascending in offset within each application, streams each within one application.
            steps: for every application of the batch.

        Raises:
            CommitFenced: an application is not where its step begins; nothing of this batch counts.
            UsageError: frames that do not fit the store.
            StoreFull: no space; nothing of this batch counts.
        """
        for piece in pieces:
            check_stream_id(piece.segment.stream_id)
            if piece.frames is not None and len(piece.frames):
                self.store._check(piece.segment, piece.frames)
        apps = [app for name, step in steps.items() for app in (name, step.also) if app is not None]
        marks = {name: self.store._tables[name].versions(apps) for name in TABLES}
        for app, step in steps.items():
            if marks["segments"][app] != step.before:
                raise CommitFenced(
                    f"{mask_url(self.store.url)}: {app} stands at {marks['segments'][app]}, this worker left it at "
                    f"{step.before}: another one has taken it over; start again from what the store says"
                )
        stored = self._kept([piece for piece in pieces if not piece.void])
        for name, rows_of in (("patches", self.store._patches.rows), ("frames", frame_rows)):
            rows = [rows_of(key, frames) for _, key, frames in stored if frames is not None]
            table = self.store._tables[name]
            left = any(piece.segment.chunk < (marks[name][piece.app] or 0) for piece in pieces)
            if rows or left:
                table.append_from(
                    pa.concat_tables(rows) if rows else table.schema.empty_table(),
                    self._moves(steps, marks[name], forward=True),
                    replace=_rows_of(pieces) if left else "",
                )
        listed = [segment_row(key, s) for s, key, _ in stored]
        rows = [pa.Table.from_pylist(listed, schema=SEGMENTS) if listed else SEGMENTS.empty_table()]
        self.store._tables["segments"].append_from(rows[0], self._moves(steps, marks["segments"], forward=False))
        for segment, _, frames in stored:
            if frames is not None:
                last = int(seconds_of(frames.captured_at[-1:])[0])
                self._last[segment.stream_id] = max(last, self._last.get(segment.stream_id, last))
        self._batches += 1
        if self._batches % _TRIM_EVERY == 0:
            self.trim()
        return [segment for segment, _, _ in stored]

    def trim(self) -> None:
        """Keep the logs short: whoever writes for months does it, so that nobody needs to. A failure is no matter."""
        for table in self.store._tables.values():
            with suppress(StoreError, CommitFailedError):  # the next time will do
                table.trim()

    @staticmethod
    def _moves(
        steps: Mapping[str, OffsetAdvance], marks: Mapping[str, int | None], *, forward: bool
    ) -> dict[str, tuple[int | None, int]]:
        """`forward`: never below what is there, which marks messages that a killed worker has left behind."""
        moves: dict[str, tuple[int | None, int]] = {}
        for name, step in steps.items():
            for app in (name, step.also):
                if app is not None:
                    before = marks[app]
                    moves[app] = (before, max(before or 0, step.after) if forward else step.after)
        return moves

    # ---- one frame a second --------------------------------------------------------------------------------------

    def _kept(self, pieces: Sequence[OffsetSegment]) -> list[tuple[Segment, str, FrameRecords | None]]:
        """Every piece with the frames whose second is still free, its key, and its segment with their number."""
        held = self._held(pieces)
        result: list[tuple[Segment, str, FrameRecords | None]] = []
        for piece in pieces:
            frames = piece.frames if piece.frames is not None and len(piece.frames) else None
            if frames is not None:
                taken = held[piece.segment.stream_id]
                seconds = seconds_of(frames.captured_at)
                first = np.r_[True, np.diff(seconds) > 0]
                keep = first & np.array([second not in taken for second in seconds.tolist()])
                taken.update(seconds[keep].tolist())
                frames = frames.where(keep) if keep.any() else None
            count = 0 if frames is None else len(frames)
            result.append((piece.segment.model_copy(update={"frames": count}), piece.key, frames))
        return result

    def _held(self, pieces: Sequence[OffsetSegment]) -> dict[str, set[int]]:
        """The seconds that are held already, of each stream, where its pieces may touch them."""
        spans: dict[str, tuple[int, int]] = {}
        for piece in pieces:
            if piece.frames is not None and len(piece.frames):
                times, stream = piece.frames.captured_at, piece.segment.stream_id
                low, high = spans.get(stream, (int(times[0]), int(times[-1])))
                spans[stream] = (min(low, int(times[0])), max(high, int(times[-1])))
        self._read_last([stream for stream in spans if stream not in self._last])
        last = dict(self._last)  # another thread may `forget`
        held: dict[str, set[int]] = {stream: {last[stream]} if stream in last else set() for stream in spans}
        behind = {
            stream: span
            for stream, span in spans.items()
            if stream in last and int(seconds_of(np.array([span[0]]))[0]) < last[stream]
        }
        if behind:
            times_of = (in_window([s], low - _SECOND, high + 2 * _SECOND).rows for s, (low, high) in behind.items())
            others = ~text("segment").isin([piece.key for piece in pieces])
            where = of_streams(list(behind)) & reduce(or_, times_of) & others
            rows = self.store._tables["frames"].read(["stream_id", "captured_at"], where)
            names, times = rows["stream_id"].to_pylist(), rows["captured_at"].cast(pa.int64()).to_numpy()
            for stream in behind:
                held[stream] = set()
            for name, second in zip(names, seconds_of(times).tolist(), strict=True):
                held[name].add(second)
        return held

    def _read_last(self, streams: Sequence[str]) -> None:
        if not streams:
            return
        rows = self.store._tables["frames"].read(["stream_id", "captured_at"], of_streams(streams))
        groups = rows.group_by("stream_id").aggregate([("captured_at", "max")])
        times = groups["captured_at_max"].cast(pa.int64()).to_numpy()
        for name, second in zip(groups["stream_id"].to_pylist(), seconds_of(times).tolist(), strict=True):
            self._last[name] = second


def _rows_of(pieces: Sequence[OffsetSegment]) -> str:
    """The predicate of all rows of `pieces`; names are checked and keys are hex, so nothing needs quoting."""
    streams = ", ".join(sorted({f"'{piece.segment.stream_id}'" for piece in pieces}))
    keys = ", ".join(f"'{piece.key}'" for piece in pieces)
    return f"stream_id IN ({streams}) AND segment IN ({keys})"
