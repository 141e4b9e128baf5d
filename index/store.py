"""The store: three Delta tables and a folder of FAISS shards behind one interface.

    <url>/frames  <url>/patches  <url>/segments     Delta tables, the truth
    <url>/faiss/<stream>/<day>.{faiss,npz}          cache; for a remote store, in the user's cache folder
    <url>/ann/                                      cache, of all machines: the large index, see `index.search.ann`
    <url>/alerts/                                   standing questions, see `index.standing_questions`

`Store` opens a store, reads windows, patches and pictures, and calls the modules that do the rest:

    append                     `index.commits.append` (with offsets: `commits.offset`; for a large job: `commits.bulk`)
    search, seal, reindex      `index.search`
    verify, compact, forget    `index.maintenance`

What survives a power cut on a local disk: shards and standing questions do (`index.files`). Delta commits are atomic
and survive a killed process, but deltalake 1.6.6 does not sync what it writes: commits of the last seconds may be lost
or damaged. `verify` finds that; a source that still has the footage is then read again from the stored offset.

This module does not know how frames are decoded or encoded, nor what a question is.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.columns import digest
from index.commits.append import append
from index.commits.deletion import check_held
from index.commits.held import Hold
from index.delta.row_filter import in_window
from index.errors import EmptyWindow, StoreCorrupt, UsageError, mask_url
from index.files import cache_folder
from index.maintenance.compaction import TableCompaction, compact
from index.maintenance.expiry import Expired, apply_retention
from index.maintenance.holds import held_frames, list_holds, place, release
from index.maintenance.retention import finish_deletions, forget
from index.maintenance.rules import RetentionRule
from index.maintenance.verification import verify, verify_quickly
from index.patches.codec import PatchEncoding
from index.records import ClockFold, ClockSource, EncoderPair, FrameRecords, Segment, rfc3339
from index.schemas import compose_stream_id
from index.search.faiss_shards import FaissShards
from index.search.moments import Hit
from index.search.scores import ScoredFrames
from index.search.vector_search import VectorSearch
from index.search.windows import LargeWindow, most_rows, read_pictures, read_vectors, read_window
from index.stream_patterns import is_pattern, match_streams
from index.tables import Tables, is_remote, normalize_url, store_exists
from index.window import Window

__all__ = ["Store", "StreamSummary"]


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What the store has of one stream."""

    stream_id: str
    """Name of the stream."""

    frames: int
    """Number of frames."""

    first: int
    """Time of the first frame, UTC microseconds."""

    last: int
    """Time of the last frame, UTC microseconds."""


@dataclass(frozen=True, slots=True)
class StreamClock:
    """A stretch of one stream whose times have the same source."""

    stream_id: str
    """Name of the stream."""

    source: ClockSource
    """Source of the times."""

    zone: str | None
    """The zone in which times in names were read, see `Segment.clock_zone`."""

    fold: ClockFold | None
    """How a doubtful local time was read, see `Segment.clock_fold`."""

    first: int
    """Start of the first of its segments, UTC microseconds."""

    last: int
    """End of the last of its segments, UTC microseconds, exclusive."""

    segments: int
    """Number of segments."""


class Store:
    """An opened store. Any number of processes may read and append at the same time.

    Open one with `open`, `create` or `open_or_create`.

    Attributes:
        tables: its Delta tables.
        vectors: its frame vectors and FAISS shards.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        folder = cache_folder() / digest(tables.url) if is_remote(tables.url) else Path(tables.url)
        self.vectors = VectorSearch(
            tables.frames,
            FaissShards(folder / "faiss"),
            identity=tables.encoders.frame.model_dump_json(),
            dimension=tables.encoders.frame.dimension,
        )

    @property
    def url(self) -> str:
        """An absolute path, or the URL of an object store."""
        return self.tables.url

    @property
    def encoders(self) -> EncoderPair:
        """The encoders whose vectors the store holds."""
        return self.tables.encoders

    @property
    def encoding(self) -> PatchEncoding:
        """How patches are stored."""
        return self.tables.encoding

    # ---- opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, url: str | Path, encoders: EncoderPair, encoding: PatchEncoding | None = None) -> Store:
        """Create an empty store, or open and check the one that exists.

        Args:
            url: a path, or the URL of an object store.
            encoders: the encoders whose vectors it will hold.
            encoding: how patches are stored; fp16 when None.

        Raises:
            StoreNotFound: the folder cannot be created.
            IdentityMismatch, UsageError, StoreVersion, StoreCorrupt: as `open`, for a store that exists.
        """
        place = normalize_url(url)
        Tables.create(place, encoders, encoding or PatchEncoding())
        return cls(Tables.open(place, encoders=encoders, encoding=encoding))

    @classmethod
    def open(
        cls, url: str | Path, *, encoders: EncoderPair | None = None, encoding: PatchEncoding | None = None
    ) -> Store:
        """Open a store.

        Args:
            url: a path, or the URL of an object store.
            encoders: those whose vectors the caller will read or write; not checked when None.
            encoding: the patch encoding that the caller expects; not checked when None.

        Raises:
            StoreNotFound: there is no store at `url`.
            StoreVersion: a newer Sightline wrote it.
            IdentityMismatch: it holds vectors of other encoders.
            UsageError: it has another patch encoding.
            StoreCorrupt: a table cannot be read.
        """
        return cls(Tables.open(normalize_url(url), encoders=encoders, encoding=encoding))

    @classmethod
    def open_or_create(cls, url: str | Path, encoders: EncoderPair, encoding: PatchEncoding | None = None) -> Store:
        """Open the store at `url`, or create it. Raises what `open` and `create` raise."""
        if store_exists(normalize_url(url)):
            return cls.open(url, encoders=encoders, encoding=encoding)
        return cls.create(url, encoders, encoding)

    # ---- writing -----------------------------------------------------------------------------------------------

    def append(self, segment: Segment, frames: FrameRecords | None) -> Segment | None:
        """Store one segment and its frames exactly once.

        Frames whose (stream_id, captured_at) the store has already are left out.

        Args:
            segment: the segment; its number of frames is corrected.
            frames: its frames, None if nothing could be decoded.

        Returns:
            The segment as it was stored, with the number of frames that were new; None if the store has it already.

        Raises:
            UsageError: frames of another stream, or vectors of another shape than the store's.
            StoreFull: no space is left; readers see nothing of the segment, and the same append completes it later.
        """
        return append(self.tables, segment, frames)

    # ---- reading -----------------------------------------------------------------------------------------------

    def segments(self, stream_id: str | None = None) -> list[Segment]:
        """The segments of a stream (of all streams when None), by stream, source and chunk."""
        return self.tables.read_segments(stream_id)

    def streams(self, names: Sequence[str] | None = None) -> list[StreamSummary]:
        """The streams that have frames, by name: those of these ids, all when None."""
        return [
            StreamSummary(each.stream_id, each.rows, each.first, each.last)
            for each in self.tables.frames.snapshot().summaries(names)
        ]

    def clocks(self, streams: Sequence[str] | None = None) -> list[StreamClock]:
        """The sources of the times of `streams` (of all when None), by stream and start."""
        groups: dict[tuple[str, ClockSource, str | None, ClockFold | None], list[Segment]] = {}
        for each in self.segments():
            if streams is None or each.stream_id in streams:
                key = (each.stream_id, each.clock_source, each.clock_zone, each.clock_fold)
                groups.setdefault(key, []).append(each)
        found = [
            StreamClock(*key, min(s.start for s in group), max(s.end for s in group), len(group))
            for key, group in groups.items()
        ]
        return sorted(found, key=lambda clock: (clock.stream_id, clock.first))

    def last_captured_at(self, stream_id: str) -> int | None:
        """Time of a stream's last frame, UTC microseconds; None if it has no frames."""
        found = self.tables.frames.snapshot().summaries([stream_id])
        return found[0].last if found else None

    def window(self, streams: Sequence[str] | None = None, start: int | None = None, end: int | None = None) -> Window:
        """The frames of `streams` (of all when None) with start ≤ captured_at < end, in UTC microseconds.

        Raises:
            UnknownStream: the store has no such stream.
            EmptyWindow: there are no frames in that time; the message lists what there is.
            UsageError: the window ends before it begins.
        """
        names = self.check_scope(streams, start, end)
        found = read_window(self.tables.frames.snapshot(), names, start, end, self.encoders.frame.dimension)
        if len(found):
            return found
        raise self._empty_window(names)

    def large_window(
        self, streams: Sequence[str] | None = None, start: int | None = None, end: int | None = None, *, above: int = 0
    ) -> LargeWindow | None:
        """A window without its vectors, which are read in parts; None if it has at most `above` frames.

        Raises:
            UnknownStream, EmptyWindow, UsageError: as `window`.
        """
        names, files = self.check_scope(streams, start, end), self.tables.frames.snapshot()
        most = most_rows(files, names, start, end)
        if most is not None and most <= above:
            return None
        found = LargeWindow.open(files, names, start, end, self.encoders.frame.dimension)
        if len(found.window) == 0:
            raise self._empty_window(names)
        return found if len(found.window) > above else None

    def patches(self, window: Window, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """The patch tokens of a window's frames, float16[N, M, Dp], in its row order.

        Exact in a store of fp16 patches; `index.patches.codec` gives the error of the other encodings.

        Args:
            window: the frames.
            out: float16[N, M, Dp] to fill and return, for example pinned memory; allocated when None.

        Raises:
            StoreCorrupt: a frame has no patches, or they cannot be decoded.
            UsageError: `out` has another shape or dtype.
        """
        result, missing = self.tables.patch_store.read(window, out)
        _require_all(window, missing, "patches")
        return result

    def frame_features(self, window: Window) -> NDArray[np.float32]:
        """Embeddings of a window's frames before they were scaled to unit norm, float32[N, Df], in its row order.

        Raises:
            UsageError: the norms of some frames are not stored, because an earlier version stored the frames.
        """
        norms = self.vectors.norms(window)
        if lacking := int(np.isnan(norms).sum()):
            raise UsageError(
                f"{mask_url(self.url)}: has no norms of frame vectors for {lacking} of {len(norms)} frames, which "
                "`single_token` weights need: an earlier version stored them; ingest the footage again into a new store"
            )
        return self.with_vectors(window).frame_vectors * norms[:, None]

    def with_vectors(self, window: Window) -> Window:
        """The same frames with their vectors; a window that has them is returned as it is. Raises StoreCorrupt."""
        files, width = self.tables.frames.snapshot(), self.encoders.frame.dimension
        has = window.frame_vectors.shape[1] == width
        return window if has else replace(window, frame_vectors=read_vectors(files, window, width))

    def pictures(self, window: Window) -> list[bytes]:
        """The picture of each of a window's frames, JPEG, in its row order. Raises StoreCorrupt if one is missing."""
        result, missing = read_pictures(self.tables.frames.snapshot(), window)
        _require_all(window, missing, "picture")
        return result

    def check_window(
        self, streams: Sequence[str] | None = None, start: int | None = None, end: int | None = None
    ) -> None:
        """Raise what `window` raises for these arguments, without reading vectors."""
        names = self.check_scope(streams, start, end)
        if not self.tables.frames.snapshot().has_rows(in_window(names, start, end)):
            raise self._empty_window(names)

    def check_scope(
        self, streams: Sequence[str] | None = None, start: int | None = None, end: int | None = None
    ) -> list[str]:
        """The names of the streams that are meant, ascending; all when None.

        Args:
            streams: names, and patterns such as `gate-*` (see `index.stream_patterns`).
            start, end: the window, UTC microseconds.

        Raises:
            UnknownStream: a name or pattern matches no stream; the message has a similar name, if there is one.
            UsageError: the window ends before it begins.
        """
        _check_order(start, end)
        known = self.tables.frames.partition_values("stream_id")
        names = [unicodedata.normalize("NFC", name) for name in streams or ()]
        return match_streams(names, known) if names else known

    def _empty_window(self, names: Sequence[str]) -> EmptyWindow:
        held = self.streams(names) if names else []
        there = ", ".join(f"{s.stream_id} {rfc3339(s.first)} to {rfc3339(s.last)}" for s in held[:4])
        if not there:
            return EmptyWindow(f"{mask_url(self.url)}: nothing yet: the store has no frames; ingest some footage first")
        return EmptyWindow(f"no frames in that time; the store has {there}")

    # ---- searching ---------------------------------------------------------------------------------------------

    def search(
        self,
        query: NDArray[np.float32],
        *,
        top: int,
        streams: Sequence[str] | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> list[Hit]:
        """The `top` frames most similar to `query` (float32[Df], unit norm), best first; see `VectorSearch`.

        Raises:
            UnknownStream, EmptyWindow, UsageError: as `window`; UsageError also if `top` is less than 1.
        """
        if top < 1:
            raise UsageError(f"top must be at least 1, got {top}")
        names = self.check_scope(streams, start, end)
        hits = self.vectors.search(query, names, start, end, top)
        if not hits:
            raise self._empty_window(names)
        return hits

    def score(
        self,
        query: NDArray[np.float32],
        streams: Sequence[str],
        *,
        start: int | None = None,
        end: int | None = None,
    ) -> list[ScoredFrames]:
        """Every frame of a window with its score, one entry for each stream, by name; exact.

        Args:
            query: float32[Df], unit norm.
            streams: ids of streams, no patterns; other streams are neither read nor named.
            start, end: the window, UTC microseconds.

        Raises:
            EmptyWindow: these streams have no frames in that time; the message lists what they have.
            UsageError: the window ends before it begins, or has too many frames.
        """
        _check_order(start, end)
        found = self.vectors.score(query, streams, start, end) if streams else []
        if not found:
            raise self._empty_window(streams)
        return found

    def seal(self, *, today: str | None = None) -> int:
        """Write a FAISS shard for each finished day with frames that no shard contains; returns their number.

        Args:
            today: the UTC day, YYYY-MM-DD, that still receives frames and is not sealed; the current day when None.
        """
        return self.vectors.seal(today or datetime.now(UTC).strftime("%Y-%m-%d"))

    def reindex(self) -> int:
        """Delete all FAISS shards and build them again from Parquet; returns the number that was written."""
        return self.vectors.rebuild()

    # ---- maintenance -------------------------------------------------------------------------------------------

    def verify(
        self,
        *,
        quick: bool = False,
        resume: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """The problems of the store, one sentence each; see `index.maintenance.verification`.

        Args:
            quick: look at the logs and the sizes of files only.
            resume: continue a run that was stopped.
            on_progress: called with the number of stream's days that were checked, and with that of all.
        """
        if quick:
            return verify_quickly(self.tables, self.vectors)
        found = verify(self.tables, self.vectors, resume=resume, on_progress=on_progress)
        return found + self.vectors.large.catalog.damage()

    def compact(
        self, streams: Sequence[str] | None = None, *, dry_run: bool = False, most_bytes: int | None = None
    ) -> list[TableCompaction]:
        """Complete stopped deletions, merge small files and clean the logs; see `index.maintenance.compaction`."""
        if not dry_run:
            finish_deletions(self.tables, self.vectors.shards)
        held = self.tables.segments.partition_values("stream_id")
        names = match_streams(streams, held) if streams else None
        report = compact(self.tables, names, dry_run=dry_run, most_bytes=most_bytes)
        if not dry_run:
            self.vectors.large.follow()
        return report

    def expire(
        self, rules: Mapping[str, RetentionRule], now: int | None = None, *, dry_run: bool = False
    ) -> list[Expired]:
        """Delete what the rules do not allow; see `index.maintenance.expiry.apply_retention`.

        Args:
            rules: rules by pattern of streams.
            now: the present, UTC microseconds; read from the clock when None.
            dry_run: delete nothing.
        """
        present = time.time_ns() // 1000 if now is None else now
        return apply_retention(self.tables, self.vectors.shards, rules, present, dry_run=dry_run)

    def forgettable(self, streams: Sequence[str]) -> list[str]:
        """The streams that `forget` is asked to delete: names as they are, because a name without frames may have a
        deletion to complete, and patterns replaced by the streams that match.

        Raises:
            UnknownStream: a pattern matches no stream.
        """
        held = sorted({name for table in self.tables.all() for name in table.partition_values("stream_id")})
        names = [n for name in streams for n in (match_streams([name], held) if is_pattern(name) else [name])]
        return list(dict.fromkeys(names))

    def forget(self, stream_id: str, before: int | None = None, *, keep_held: bool = False) -> int:
        """Delete a stream's frames for good; see `index.maintenance.retention.forget`."""
        return forget(self.tables, self.vectors.shards, stream_id, before, keep_held=keep_held)

    def check_held(self, stream_id: str, before: int | None = None, *, keep_held: bool = False) -> None:
        """Raise FootageHeld where `forget` with these arguments would, before anything else is deleted."""
        check_held(self.tables.segments.configuration(), compose_stream_id(stream_id), before, keep_held=keep_held)

    def held_seconds(self, stream_id: str, before: int | None = None) -> int:
        """Number of frames, one a second, before `before` (UTC microseconds) that evidence locks keep."""
        return held_frames(self.tables, compose_stream_id(stream_id), before)

    def holds(self, stream_id: str | None = None) -> list[Hold]:
        """The evidence locks of a stream, of all streams when None; by stream and start."""
        return list_holds(self.tables, stream_id)

    def hold(self, stream_id: str, start: int, end: int, *, reason: str, placed_by: str) -> Hold:
        """Protect footage from deletion; see `index.maintenance.holds.place`."""
        return place(self.tables, stream_id, start, end, reason=reason, placed_by=placed_by)

    def release(self, hold_id: str, *, reason: str) -> Hold:
        """End a hold; see `index.maintenance.holds.release`."""
        return release(self.tables, hold_id, reason=reason)


def _check_order(start: int | None, end: int | None) -> None:
    """Raise UsageError if a window, UTC microseconds, ends before it begins."""
    if start is not None and end is not None and start >= end:
        raise UsageError(f"the window ends ({rfc3339(end)}) before it begins ({rfc3339(start)})")


def _require_all(window: Window, missing: NDArray[np.bool_], what: str) -> None:
    """Raise StoreCorrupt, which names the first such frame, if `missing`, bool[N], has any."""
    if missing.any():
        i = int(np.flatnonzero(missing)[0])
        raise StoreCorrupt(
            f"{window.stream_ids[window.stream_index[i]]} at {rfc3339(window.captured_at[i])}: no {what} for this "
            f"frame ({int(missing.sum())} in all); run `sightline verify`"
        )
