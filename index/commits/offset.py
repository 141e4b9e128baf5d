"""Segments of many streams stored together with the offsets they were read at: exactly once, through crashes and
takeovers.

A batch is one commit in each of the three tables, `patches` first and `segments` last. Each commit carries, as an
application transaction, the next offset of every partition in the batch. `segments` is the authority: a batch must
begin at the offsets that `segments` holds, or it is refused, and a message is stored once `segments` is past it.

- A worker killed before the last commit leaves `patches` or `frames` ahead of `segments`. The next owner of the
  partition sees that from the offsets of those tables, deletes the rows of its messages and writes them again, in the
  same commit.
- Fencing: Delta refuses concurrent commits with the same application id but accepts a lower version without an error
  (deltalake 1.6.6). So each commit requires the versions that were read before.
- The application id is `topic/partition`. A topic that was deleted and created again counts from 0, so a second
  application, `topic/partition@topic-id`, advances with the first and identifies the topic that was read.

This module does not know Kafka: a source is a name with ascending offsets. It knows neither how frames were decoded nor
how often a batch is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from index.columns import frame_rows, segment_key, segment_row, sql_string, string_field
from index.commits.append import check_frames
from index.commits.deletion import ATTEMPTS, generations_for_append, requirement
from index.delta.row_filter import in_window
from index.delta.table import RequirementFailed
from index.errors import CommitFenced, StoreBusy, StoreError, mask_url
from index.records import FrameRecords, Segment
from index.schemas import SEGMENTS, check_stream_id
from index.second_grid import seconds_of
from index.tables import Tables

__all__ = ["OffsetAdvance", "OffsetCommitter", "OffsetSegment"]

_SECOND = 1_000_000


@dataclass(frozen=True, slots=True)
class OffsetSegment:
    """The footage of one message."""

    app: str
    """Application id of its partition."""

    segment: Segment
    """The segment; `segment.chunk` is the offset of the message."""

    frames: FrameRecords | None
    """Its frames, None if it has none."""

    rejected: bool = False
    """Whether the message is invalid: it gets no row, and rows that a killed worker wrote of it are deleted."""

    @property
    def key(self) -> str:
        """Its `segment_key`."""
        return segment_key(self.segment)


@dataclass(frozen=True, slots=True)
class OffsetAdvance:
    """How far one batch advances one application."""

    before: int | None
    """The stored offset that the batch begins at; None if nothing of this application was ever stored."""

    after: int
    """The next offset after the batch."""

    identity_app: str | None = None
    """A second application id that advances with the first and identifies the source; see the module's docstring."""


@dataclass(slots=True)
class OffsetCommitter:
    """Commits batches to one store and caches the last stored second of each stream.

    The cache saves a read of the tables for each batch. It is valid while this committer alone writes these streams, so
    `invalidate` must be called for streams whose owner may have changed.
    """

    tables: Tables
    """The store."""

    clean_every: int = 200
    """Batches between two `clean_logs`; 200 are about seven minutes of a busy worker."""

    _last: dict[str, int] = field(default_factory=dict)
    _generations: dict[str, int] = field(default_factory=dict)
    _batches: int = 0

    def invalidate(self, streams: Iterable[str] | None = None) -> None:
        """Discard the cached seconds of these streams, of all when None."""
        for stream in list(self._last) if streams is None else streams:
            self._last.pop(stream, None)

    def offsets(self, apps: Sequence[str]) -> dict[str, int | None]:
        """The next offset of each application, None for one that never stored anything.

        Looks for commits of others, in all tables: a batch begins at what was found here.
        """
        self.tables.patches.transaction_versions(apps)
        self.tables.frames.transaction_versions(apps)
        return self.tables.segments.transaction_versions(apps)

    def reset(self, apps: Sequence[str]) -> None:
        """Set applications back to offset 0, because their source was created again."""
        for table in self.tables.all():
            held = {app: version for app, version in table.transaction_versions(apps).items() if version}
            if held:
                resets = {app: (version, 0) for app, version in held.items()}
                table.append_and_advance(table.schema.empty_table(), resets)

    def commit(self, batch: Sequence[OffsetSegment], advances: Mapping[str, OffsetAdvance]) -> list[Segment]:
        """Store a batch and advance the applications.

        Args:
            batch: ascending in offset within each application; all segments of a stream belong to one application.
            advances: for every application of the batch; may contain others, whose messages held no footage.

        Returns:
            The segments as they were stored, without the rejected ones.

        Raises:
            CommitFenced: an application is not at `before`; nothing of this batch is stored.
            UsageError: frames do not fit the store.
            StoreFull: no space is left; nothing of this batch is stored.
        """
        for each in batch:
            check_stream_id(each.segment.stream_id)
            if each.frames is not None and len(each.frames):
                check_frames(self.tables.encoders, each.segment, each.frames)
        for attempt in range(ATTEMPTS):
            try:
                return self._commit(batch, advances, update=attempt > 0)
            except RequirementFailed:  # footage of a stream was deleted in between: its rows of this batch are too
                continue
            except CommitFenced:
                if attempt:
                    raise
                # The last look of this process may only be old, and with it what it knows of these streams.
                self.invalidate({each.segment.stream_id for each in batch})
        raise StoreBusy(
            f"{mask_url(self.tables.url)}: footage was deleted during each attempt to store more; try again later"
        )

    def _commit(
        self, batch: Sequence[OffsetSegment], advances: Mapping[str, OffsetAdvance], *, update: bool
    ) -> list[Segment]:
        """Store a batch.

        Without `update` it begins at the versions of this process's last look or commit: Delta compares each commit
        with those of others since, and refuses what does not fit. That saves a worker most of its requests.
        """
        requires = self._require_generations(batch, update=update)
        apps = [app for name, step in advances.items() for app in (name, step.identity_app) if app is not None]
        tables = self.tables
        reached = {table.name: table.transaction_versions(apps, update=update) for table in tables.all()}
        for app, step in advances.items():
            stored = reached["segments"][app]
            if stored != step.before:
                raise CommitFenced(
                    f"{mask_url(tables.url)}: {app} is at {stored}, this worker expected {step.before}: another worker "
                    "has committed it; start again from the stored offset"
                )
        new = self._new_frames([each for each in batch if not each.rejected])
        for table, rows_of in ((tables.patches, tables.patch_store.rows), (tables.frames, frame_rows)):
            rows = [rows_of(key, frames) for _, key, frames in new if frames is not None]
            leftovers = any(each.segment.chunk < (reached[table.name][each.app] or 0) for each in batch)
            if rows or leftovers:
                table.append_and_advance(
                    pa.concat_tables(rows) if rows else table.schema.empty_table(),
                    _versions(advances, reached[table.name], never_back=True),
                    replace=_rows_of(batch) if leftovers else "",
                    requires=requires,
                    update=False,
                )
        listed = [segment_row(key, segment) for segment, key, _ in new]
        segment_rows = pa.Table.from_pylist(listed, schema=SEGMENTS) if listed else SEGMENTS.empty_table()
        versions = _versions(advances, reached["segments"], never_back=False)
        tables.segments.append_and_advance(segment_rows, versions, requires=requires, update=False)
        for segment, _, frames in new:
            if frames is not None:
                last = int(seconds_of(frames.captured_at[-1:])[0])
                self._last[segment.stream_id] = max(last, self._last.get(segment.stream_id, last))
        self._batches += 1
        if self._batches % self.clean_every == 0:
            self.clean_logs()
        return [segment for segment, _, _ in new]

    def _require_generations(self, batch: Sequence[OffsetSegment], *, update: bool) -> dict[str, str]:
        """The properties that the commits of a batch require; seconds of streams with deleted footage are forgotten."""
        requires: dict[str, str] = {}
        streams = {each.segment.stream_id for each in batch}
        for stream, generation in generations_for_append(self.tables, streams, update=update).items():
            requires |= requirement(stream, generation)
            if generation != self._generations.get(stream, generation):
                self._last.pop(stream, None)
            self._generations[stream] = generation
        return requires

    def clean_logs(self) -> None:
        """Shorten the logs of all tables, so that a worker needs no other process for it. Failures are ignored."""
        for table in self.tables.all():
            with suppress(StoreError, CommitFailedError):  # the next attempt will do
                table.clean_log()

    # ---- one frame a second --------------------------------------------------------------------------------------

    def _new_frames(self, batch: Sequence[OffsetSegment]) -> list[tuple[Segment, str, FrameRecords | None]]:
        """Of each segment, the frames whose second is free: the segment with their number, its key, and the frames."""
        held = self._held_seconds(batch)
        result: list[tuple[Segment, str, FrameRecords | None]] = []
        for each in batch:
            frames = each.frames if each.frames is not None and len(each.frames) else None
            if frames is not None:
                taken = held[each.segment.stream_id]
                seconds = seconds_of(frames.captured_at)
                first = np.r_[True, np.diff(seconds) > 0]
                keep = first & np.array([second not in taken for second in seconds.tolist()])
                taken.update(seconds[keep].tolist())
                frames = frames.filter(keep) if keep.any() else None
            count = 0 if frames is None else len(frames)
            result.append((each.segment.model_copy(update={"frames": count}), each.key, frames))
        return result

    def _held_seconds(self, batch: Sequence[OffsetSegment]) -> dict[str, set[int]]:
        """The seconds that the store has of each stream of the batch, as far as the batch may overlap them."""
        spans: dict[str, tuple[int, int]] = {}
        for each in batch:
            if each.frames is not None and len(each.frames):
                times, stream = each.frames.captured_at, each.segment.stream_id
                low, high = spans.get(stream, (int(times[0]), int(times[-1])))
                spans[stream] = (min(low, int(times[0])), max(high, int(times[-1])))
        self._read_last([stream for stream in spans if stream not in self._last])
        last = dict(self._last)  # another thread may call `invalidate`
        held: dict[str, set[int]] = {stream: {last[stream]} if stream in last else set() for stream in spans}
        behind = {
            stream: span
            for stream, span in spans.items()
            if stream in last and int(seconds_of(np.array([span[0]]))[0]) < last[stream]
        }
        if behind:
            times_of = (in_window([s], low - _SECOND, high + 2 * _SECOND).rows for s, (low, high) in behind.items())
            others = ~string_field("segment").isin([each.key for each in batch])
            low, high = (f(span[i] for span in behind.values()) for i, f in enumerate((min, max)))
            where = in_window(list(behind), low - _SECOND, high + 2 * _SECOND) & reduce(or_, times_of) & others
            rows = self.tables.frames.read(["stream_id", "captured_at"], where)
            names, times = rows["stream_id"].to_pylist(), rows["captured_at"].cast(pa.int64()).to_numpy()
            for stream in behind:
                held[stream] = set()
            for name, second in zip(names, seconds_of(times).tolist(), strict=True):
                held[name].add(second)
        return held

    def _read_last(self, streams: Sequence[str]) -> None:
        """Cache the last stored second of each of these streams."""
        if not streams:
            return
        for found in self.tables.frames.snapshot().summaries(streams):
            self._last[found.stream_id] = int(seconds_of(np.array([found.last]))[0])


def _versions(
    advances: Mapping[str, OffsetAdvance], reached: Mapping[str, int | None], *, never_back: bool
) -> dict[str, tuple[int | None, int]]:
    """Expected and new version of each application in one table.

    Args:
        never_back: keep a higher version, which marks messages that a killed worker wrote to this table only.
    """
    versions: dict[str, tuple[int | None, int]] = {}
    for name, step in advances.items():
        for app in (name, step.identity_app):
            if app is not None:
                before = reached[app]
                versions[app] = (before, max(before or 0, step.after) if never_back else step.after)
    return versions


def _rows_of(batch: Sequence[OffsetSegment]) -> str:
    """The predicate of all rows of a batch. Keys are hex."""
    streams = ", ".join(sorted({sql_string(each.segment.stream_id) for each in batch}))
    keys = ", ".join(f"'{each.key}'" for each in batch)
    return f"stream_id IN ({streams}) AND segment IN ({keys})"
