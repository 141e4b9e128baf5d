"""The store: three Delta tables and a folder of FAISS shards behind one small interface.

    <url>/frames  <url>/patches  <url>/segments     Delta, the truth
    <url>/faiss/<stream>/<day>.{faiss,npz}          cache; in the user's cache folder when the store is remote

A segment is appended patches first, then frames, then its own row: a frame that can be seen has its patches, and a
segment that is listed is whole. Each of the three commits carries the Delta transaction (digest of stream and source,
chunk), so an append that was killed is finished by appending again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.columns import day_of, digest, frame_rows, matrix, segment_row, sql_time, text
from index.delta_table import StoreTable
from index.errors import (
    EmptyWindow,
    IdentityMismatch,
    StoreCorrupt,
    StoreNotFound,
    StoreVersion,
    UnknownStream,
    UsageError,
    mask_url,
)
from index.files import cache_folder
from index.moments import Hit
from index.patches.codec import PatchEncoding
from index.patches.store import PatchStore, patch_table
from index.records import EncoderPair, FrameRecords, Segment, rfc3339
from index.row_filter import in_window, of_streams
from index.schemas import ENCODERS_KEY, FORMAT, FORMAT_KEY, PATCHES_KEY, SEGMENTS, TABLES, check_stream_id
from index.search.faiss_shards import FaissShards
from index.search.vector_search import VectorSearch
from index.standing_questions import StandingQuestionStore
from index.window import Window

if TYPE_CHECKING:
    from index.maintenance.compaction import TableCompaction

__all__ = ["Store", "StreamSummary"]


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What the store holds of one stream; times in UTC microseconds of the first and last frame."""

    stream_id: str
    frames: int
    first: int
    last: int


class Store:
    """An opened store. Any number of processes may read and append at once."""

    def __init__(
        self,
        url: str,
        encoders: EncoderPair,
        encoding: PatchEncoding,
        tables: dict[str, StoreTable],
        shards: FaissShards,
    ) -> None:
        self.url, self.encoders, self.encoding = url, encoders, encoding
        self._tables = tables
        self._patches = PatchStore(tables["patches"], encoders, encoding, url)
        self._vectors = VectorSearch(
            tables["frames"], shards, identity=encoders.frame.model_dump_json(), dimension=encoders.frame.dimension
        )

    # ---- opening -----------------------------------------------------------------------------------------------

    @staticmethod
    def _place(url: str | Path) -> tuple[str, dict[str, StoreTable], FaissShards]:
        text = str(url).removeprefix("file://").rstrip("/")
        if "://" in text:
            cache = cache_folder() / digest(text)
        else:
            text = str(Path(text).expanduser().absolute())
            cache = Path(text)
        return text, {name: StoreTable(f"{text}/{name}", name) for name in TABLES}, FaissShards(cache / "faiss")

    @classmethod
    def create(cls, url: str | Path, encoders: EncoderPair, encoding: PatchEncoding | None = None) -> Store:
        """Make an empty store for vectors of `encoders`, fp16 unless `encoding` says otherwise.

        One that is there already is opened and checked.
        """
        text, tables, _ = cls._place(url)
        if "://" not in text:
            try:
                Path(text).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreNotFound(
                    f"{text}: cannot make a store there ({error.strerror}); choose another --store"
                ) from error
        chosen = encoding or PatchEncoding()
        tables["patches"] = patch_table(f"{text}/patches", encoders, chosen)
        configuration = {FORMAT_KEY: "1", ENCODERS_KEY: encoders.model_dump_json()}
        if chosen.kind != "fp16":
            configuration |= {FORMAT_KEY: str(FORMAT), PATCHES_KEY: chosen.model_dump_json()}
        for table in tables.values():  # `segments` comes last: a store without it is not there yet
            table.create(configuration)
        return cls.open(url, encoders=encoders, encoding=encoding)

    @classmethod
    def open(
        cls, url: str | Path, *, encoders: EncoderPair | None = None, encoding: PatchEncoding | None = None
    ) -> Store:
        """Open a store.

        Raises:
            StoreNotFound: nothing there.
            StoreVersion: written by a newer Sightline.
            IdentityMismatch: `encoders` are not those whose vectors it holds.
            UsageError: it keeps patches otherwise than `encoding` says.
            StoreCorrupt: a table that does not read.
        """
        text, tables, shards = cls._place(url)
        shown = mask_url(text)
        if not tables["segments"].exists():
            raise StoreNotFound(f"{shown}: no store there; `sightline ingest … --store {shown}` makes one")
        configuration = tables["segments"].configuration()
        version = int(configuration.get(FORMAT_KEY, "0"))
        if version > FORMAT:
            raise StoreVersion(f"{shown}: format {version}, this Sightline reads up to {FORMAT}; install a newer one")
        try:
            held = EncoderPair.model_validate_json(configuration[ENCODERS_KEY])
            kept = PatchEncoding.model_validate_json(configuration.get(PATCHES_KEY, "{}"))
        except (KeyError, ValueError):
            raise StoreCorrupt(
                f"{shown}: the store does not say whose vectors it holds; restore its first log entry"
            ) from None
        if encoders is not None and encoders != held:
            raise IdentityMismatch(
                f"{shown}: holds vectors of {held.frame.name} and {held.patch.name}, asked with {encoders.frame.name} and "
                f"{encoders.patch.name} of other weights or settings; use the profile that wrote it, or ingest the footage "
                "again into a new store"
            )
        if encoding is not None and str(encoding) != str(kept):  # ε says nothing about the others
            raise UsageError(
                f"{shown}: keeps patches as {kept}, asked for {encoding}; that is chosen when a store is made: leave it "
                "out, or ingest into a new store"
            )
        tables["patches"] = patch_table(f"{text}/patches", held, kept)
        return cls(text, held, kept, tables, shards)

    @classmethod
    def open_or_create(cls, url: str | Path, encoders: EncoderPair, encoding: PatchEncoding | None = None) -> Store:
        """Open the store at `url`, or make it. Raises what `open` raises."""
        _, tables, _ = cls._place(url)
        found = tables["segments"].exists()
        return cls.open(url, encoders=encoders, encoding=encoding) if found else cls.create(url, encoders, encoding)

    # ---- writing -----------------------------------------------------------------------------------------------

    def append(self, segment: Segment, frames: FrameRecords | None) -> bool:
        """Store one segment and its frames; False when it was stored before.

        Frames whose (stream_id, captured_at) the store has already are left out. `frames` is None for a segment in
        which nothing could be decoded.

        Raises:
            UsageError: frames of another stream or with vectors of another shape.
            StoreFull: no space; the store stays as it was, and the same append completes it later.
        """
        new = self._new(segment, frames)
        if new is None:
            return False
        app, key, segment, kept = new
        if kept is not None:
            self._tables["patches"].append_once(self._patches.rows(key, kept), app, segment.chunk)
            self._tables["frames"].append_once(frame_rows(key, kept), app, segment.chunk)
        rows = pa.Table.from_pylist([segment_row(key, segment)], schema=SEGMENTS)
        self._tables["segments"].append_once(rows, app, segment.chunk)
        return True

    def _new(
        self, segment: Segment, frames: FrameRecords | None
    ) -> tuple[str, str, Segment, FrameRecords | None] | None:
        """What of a segment the store lacks: application, key, the segment with its number of frames, and the frames.

        None when it has the whole segment; no frames when it has them all. Raises UsageError as `append`.
        """
        check_stream_id(segment.stream_id)
        key = digest(segment.stream_id, segment.source, segment.chunk)
        where = of_streams([segment.stream_id]) & (text("segment") == key)
        if len(self._tables["segments"].read(["segment"], where)):
            return None
        app = digest(segment.stream_id, segment.source, self._generation())
        kept = None
        if frames is not None and len(frames):
            self._check(segment, frames)
            some = frames.where(self._new_rows(segment.stream_id, key, frames.captured_at))
            kept = some if len(some) else None
        return app, key, segment.model_copy(update={"frames": 0 if kept is None else len(kept)}), kept

    def _generation(self) -> str:
        """Changes with every `forget`: footage that was forgotten may come again, and is then new."""
        return self._tables["segments"].configuration().get("sightline.generation", "0")

    def _new_rows(self, stream_id: str, key: str, captured_at: NDArray[np.int64]) -> NDArray[np.bool_]:
        low, high = int(captured_at.min()), int(captured_at.max())
        where = in_window([stream_id], low, high + 1) & (text("segment") != key)
        held = self._tables["frames"].read(["captured_at"], where)["captured_at"].cast(pa.int64()).to_numpy()
        return ~np.isin(captured_at, held)

    def _check(self, segment: Segment, frames: FrameRecords) -> None:
        if frames.stream_id != segment.stream_id:
            raise UsageError(f"frames of {frames.stream_id} in a segment of {segment.stream_id}")
        pair, n = self.encoders, len(frames)
        for name, shape in (
            ("frame_vectors", (n, pair.frame.dimension)),
            ("patch_pooled", (n, pair.patch.dimension)),
            ("patches", (n, pair.patches, pair.patch.dimension)),
        ):
            got = getattr(frames, name).shape
            if got != shape:
                raise UsageError(f"{segment.stream_id}: {name} should be {shape} for this store, got {got}")
        if n > 1 and not (np.diff(frames.captured_at) > 0).all():
            raise UsageError(
                f"{segment.stream_id}: frames of a segment must ascend in time, each at its own microsecond"
            )

    # ---- reading -----------------------------------------------------------------------------------------------

    def segments(self, stream_id: str | None = None) -> list[Segment]:
        """What was ingested, by stream, source and chunk."""
        where = None if stream_id is None else of_streams([stream_id])
        rows = self._tables["segments"].read([n for n in SEGMENTS.names if n != "segment"], where)
        for name in ("start", "end"):
            rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(pa.int64()))
        found = [Segment.model_validate(row) for row in rows.to_pylist()]
        return sorted(found, key=lambda s: (s.stream_id, s.source, s.chunk))

    def streams(self) -> list[StreamSummary]:
        """Every stream that has frames, by name."""
        rows = self._tables["frames"].read(["stream_id", "captured_at"])
        groups = rows.group_by("stream_id").aggregate(
            [("captured_at", "count"), ("captured_at", "min"), ("captured_at", "max")]
        )
        result = [
            StreamSummary(name, count, first, last)
            for name, count, first, last in zip(
                groups["stream_id"].to_pylist(),
                groups["captured_at_count"].to_pylist(),
                groups["captured_at_min"].cast(pa.int64()).to_pylist(),
                groups["captured_at_max"].cast(pa.int64()).to_pylist(),
                strict=True,
            )
        ]
        return sorted(result, key=lambda s: s.stream_id)

    def last(self, stream_id: str) -> int | None:
        """UTC microseconds of a stream's last frame, None when it has none."""
        rows = self._tables["frames"].read(["captured_at"], of_streams([stream_id]))
        found: int | None = pc.max(rows["captured_at"].cast(pa.int64())).as_py()
        return found

    def _scope(self, streams: Sequence[str] | None, start: int | None, end: int | None) -> list[str]:
        if start is not None and end is not None and start >= end:
            raise UsageError(f"the window ends ({rfc3339(end)}) before it begins ({rfc3339(start)})")
        known = self._tables["frames"].partition_values("stream_id")
        for name in streams or ():
            if name not in known:
                listed = ", ".join(known[:8]) or "none"
                raise UnknownStream(f"{name}: the store has no such stream; it has {listed}")
        return sorted(set(streams)) if streams else known

    def window(self, streams: Sequence[str] | None = None, start: int | None = None, end: int | None = None) -> Window:
        """All frames of `streams` (every one when None) with start ≤ captured_at < end, in UTC microseconds.

        Raises:
            UnknownStream: a name the store does not have.
            EmptyWindow: no frames there; the message says what there is.
            UsageError: the window ends before it begins.
        """
        names = self._scope(streams, start, end)
        columns = ["stream_id", "captured_at", "pts_seconds", "frame_vector"]
        rows = self._tables["frames"].read(columns, in_window(names, start, end))
        if len(rows) == 0:
            held = [s for s in self.streams() if s.stream_id in names]
            there = (
                ", ".join(f"{s.stream_id} {rfc3339(s.first)} to {rfc3339(s.last)}" for s in held[:4])
                or "nothing at all"
            )
            raise EmptyWindow(f"no frames in that time; the store has {there}")
        which = pc.index_in(rows["stream_id"], pa.array(names)).to_numpy().astype(np.int32)
        captured_at = rows["captured_at"].cast(pa.int64()).to_numpy()
        order = np.lexsort((captured_at, which))
        vectors = matrix(rows["frame_vector"], self.encoders.frame.dimension)
        sorted_already = bool((order == np.arange(len(order))).all())
        return Window(
            names,
            which[order],
            captured_at[order],
            rows["pts_seconds"].to_numpy()[order],
            vectors if sorted_already else vectors[order],
        )

    def patches(self, window: Window, out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """float16[N, M, Dp] in the window's row order, read side by side into the one result array.

        `out`, float16[N, M, Dp], is filled and returned where it is given: memory that is pinned, or used again.

        Exact in a store of fp16 patches; see `index.patches.codec` for the others.

        Raises:
            StoreCorrupt: a frame without patches, or patches that cannot be rebuilt.
            UsageError: `out` of another shape or dtype.
        """
        result, missing = self._patches.read(window, out)
        self._refuse_missing(window, missing, "patches")
        return result

    def pictures(self, window: Window) -> list[bytes]:
        """The JPEG of every frame, in the window's row order. Raises StoreCorrupt where one is missing."""
        result = [b""] * len(window)
        missing = np.ones(len(window), bool)
        if len(window):
            where = in_window(window.streams, int(window.captured_at.min()), int(window.captured_at.max()) + 1)
            for part in self._tables["frames"].batches(["stream_id", "captured_at", "picture"], where, 1024):
                times = part.column("captured_at").cast(pa.int64()).to_numpy()
                rows = window.locate(part.column("stream_id"), times).tolist()
                for row, picture in zip(rows, part.column("picture"), strict=True):
                    if row >= 0:
                        result[row] = picture.as_py()
                        missing[row] = False
        self._refuse_missing(window, missing, "picture")
        return result

    def _refuse_missing(self, window: Window, missing: NDArray[np.bool_], what: str) -> None:
        if missing.any():
            i = int(np.flatnonzero(missing)[0])
            raise StoreCorrupt(
                f"{window.stream_ids[window.stream_index[i]]} at {rfc3339(window.captured_at[i])}: no {what} for this frame "
                f"({int(missing.sum())} in all); run `sightline verify`"
            )

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
        """The `top` frames nearest to `query` (float32[Df], unit norm), exact, over sealed shards and the flat tail.

        Raises:
            UnknownStream, UsageError: as `window`.
        """
        if top < 1:
            raise UsageError(f"top must be at least 1, got {top}")
        return self._vectors.search(query, self._scope(streams, start, end), start, end, top)

    def seal(self, *, today: str | None = None) -> int:
        """Write a shard for each day that is over and has frames no shard covers; how many were written.

        Args:
            today: the UTC day that still grows and stays unsealed; the real one when None.
        """
        return self._vectors.seal(today or datetime.now(UTC).strftime("%Y-%m-%d"))

    def reindex(self) -> int:
        """Rebuild every shard from Parquet; how many were written."""
        return self._vectors.rebuild()

    # ---- care --------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """Everything about the store that does not agree with itself, one sentence each; empty when all is well."""
        from index.maintenance.verification import verify

        return verify(self)

    def compact(self, streams: Sequence[str] | None = None, *, dry_run: bool = False) -> list[TableCompaction]:
        """Merge small files and clean the logs, beside whoever appends. Raises what `index.maintenance.compaction.compact` raises."""
        from index.maintenance.compaction import compact

        return compact(self, streams, dry_run=dry_run)

    def forget(self, stream_id: str, before: int | None = None) -> int:
        """Remove a stream's frames captured before `before` (all when None) from tables, old versions and shards.

        Returns how many frames were removed. Footage that was forgotten whole may be ingested again.

        Raises:
            UnknownStream: the store has no such stream.
        """
        check_stream_id(stream_id)
        if all(s.stream_id != stream_id for s in self.segments(stream_id)):
            raise UnknownStream(f"{stream_id}: the store has no such stream; `sightline streams` lists those it has")
        mine = f"stream_id = '{stream_id}'"
        earlier = mine if before is None else f"{mine} AND captured_at < {sql_time(before)}"
        if before is not None:
            self._patches.cut(stream_id, before)
        removed = self._tables["frames"].delete(earlier)
        self._tables["patches"].delete(earlier)
        if before is None:
            self._tables["segments"].delete(mine)
        else:
            self._tables["segments"].delete(f'{mine} AND "end" <= {sql_time(before)}')
            left = self._tables["frames"].read(["segment"], of_streams([stream_id]))["segment"]
            counts = {row["values"]: row["counts"] for row in pc.value_counts(left).to_pylist()}
            for segment in self.segments(stream_id):
                if segment.start < before:
                    key = digest(segment.stream_id, segment.source, segment.chunk)
                    self._tables["segments"].update({"frames": str(counts.get(key, 0))}, f"segment = '{key}'")
        generation = {"sightline.generation": str(int(self._generation()) + 1)}
        self._tables["segments"].open().alter.set_table_properties(generation, raise_if_not_exists=False)
        for table in self._tables.values():
            table.purge(stream_id, None if before is None else day_of(before))
            if "://" not in self.url:  # the partition's folders keep the stream's name after their files are gone
                for folder in sorted(Path(table.uri, f"stream_id={stream_id}").glob("**/"), reverse=True):
                    if not any(folder.iterdir()):
                        folder.rmdir()
        self._vectors.shards.drop(stream_id)
        StandingQuestionStore(self.url).drop(stream_id)
        # A backfill that was stopped leaves embedded frames there; the next one makes them anew.
        files, staging = fsspec.core.url_to_fs(f"{self.url}/staging")
        if files.exists(staging):
            files.rm(staging, recursive=True)
        return removed
