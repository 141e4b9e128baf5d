"""Appending one segment: what of it the store lacks, and three commits that store it exactly once.

A segment is written to `patches`, then to `frames`, then to `segments`. So a frame that a reader sees has its patches,
and a segment that is listed is complete. Each commit carries the application transaction (digest of stream, source and
the stream's generation; chunk), and requires the generation of the stream: see `index.commits.deletion`. An append
that was killed between two commits is completed by the same append, which skips the tables that have the transaction
already.

`index.commits.bulk` commits many chunks at once with the same transactions; `index.commits.offset` commits segments
with the offsets of their source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.columns import frame_rows, segment_key, segment_row, sql_string, string_field
from index.commits.deletion import ATTEMPTS, generations_for_append, requirement
from index.delta.row_filter import in_window, of_segment
from index.delta.table import RequirementFailed
from index.errors import StoreBusy, UsageError, mask_url
from index.records import EncoderPair, FrameRecords, Segment
from index.schemas import GENERATION_KEY, SEGMENTS, check_stream_id
from index.tables import Tables

__all__ = ["NewSegment", "append", "check_frames", "find_new"]


@dataclass(frozen=True, slots=True)
class NewSegment:
    """The part of a segment that the store lacks."""

    app: str
    """Application id of its transactions; their version is `segment.chunk`."""

    generation: int
    """How often footage of the stream was deleted, which `app` depends on."""

    key: str
    """Its `segment_key`, the column `segment` of all tables."""

    segment: Segment
    """The segment, with the number of new frames."""

    frames: FrameRecords | None
    """The new frames; None if the store has them all, or nothing was decoded."""


def append(tables: Tables, segment: Segment, frames: FrameRecords | None) -> Segment | None:
    """Store one segment and its frames; see `Store.append`."""
    for _ in range(ATTEMPTS):
        new = find_new(tables, segment, frames)
        if new is None:
            return None
        try:
            _commit(tables, new)
        except RequirementFailed:  # footage of the stream was deleted in between
            continue
        return new.segment
    raise StoreBusy(
        f"{mask_url(tables.url)}: footage of {segment.stream_id} was deleted during each attempt to store more; try "
        "again later"
    )


def _commit(tables: Tables, new: NewSegment) -> None:
    version, requires = new.segment.chunk, requirement(new.segment.stream_id, new.generation)
    if new.frames is not None:
        tables.patches.append_if_new(tables.patch_store.rows(new.key, new.frames), new.app, version, requires)
        tables.frames.append_if_new(frame_rows(new.key, new.frames), new.app, version, requires)
    rows = pa.Table.from_pylist([segment_row(new.key, new.segment)], schema=SEGMENTS)
    tables.segments.append_if_new(rows, new.app, version, requires)


def find_new(tables: Tables, segment: Segment, frames: FrameRecords | None) -> NewSegment | None:
    """What of a segment the store lacks; None if it has the segment.

    Raises:
        UsageError: as `check_frames`, or an invalid name of a stream.
    """
    check_stream_id(segment.stream_id)
    key = segment_key(segment)
    generation = generations_for_append(tables, [segment.stream_id])[segment.stream_id]
    where = of_segment(segment.stream_id, key)
    if len(tables.segments.read(["segment"], where)):
        return None
    app = tables.application(segment.stream_id, segment.source, generation)
    _delete_old_leftovers(tables, segment, key, app)
    new = None
    if frames is not None and len(frames):
        check_frames(tables.encoders, segment, frames)
        some = frames.filter(_is_new(tables, segment.stream_id, key, frames.captured_at))
        new = some if len(some) else None
    _match_patches(tables, segment, key, app, generation, new)
    return NewSegment(app, generation, key, segment.model_copy(update={"frames": 0 if new is None else len(new)}), new)


def _delete_old_leftovers(tables: Tables, segment: Segment, key: str, app: str) -> None:
    """Delete what an append of an earlier version of Sightline left, if it was killed before footage was deleted.

    That version counted the deletions of all streams, so the transactions of those rows are not found any more.
    """
    if GENERATION_KEY not in tables.segments.newest_configuration():
        return
    where = of_segment(segment.stream_id, key)
    for table in (tables.frames, tables.patches):
        reached = table.transaction_versions([app])[app]
        if (reached is None or reached < segment.chunk) and len(table.read(["segment"], where)):
            table.delete(f"stream_id = {sql_string(segment.stream_id)} AND segment = '{key}'")


def _match_patches(
    tables: Tables, segment: Segment, key: str, app: str, generation: int, new: FrameRecords | None
) -> None:
    """Replace the patches of an append that was killed before it reached `frames`, if they are not those of `new`.

    Another source may have stored some of the frames since.
    """
    version = tables.patches.transaction_versions([app])[app]
    if version is None or version < segment.chunk:
        return
    frames_version = tables.frames.transaction_versions([app])[app]
    if frames_version is not None and frames_version >= segment.chunk:
        return
    where = of_segment(segment.stream_id, key)
    held = tables.patches.read(["captured_at"], where)["captured_at"].cast(pa.int64()).to_pylist()
    if sorted(held) != ([] if new is None else new.captured_at.tolist()):
        tables.patches.append_and_advance(
            tables.patches.schema.empty_table() if new is None else tables.patch_store.rows(key, new),
            {app: (version, version)},
            replace=f"stream_id = {sql_string(segment.stream_id)} AND segment = '{key}'",
            requires=requirement(segment.stream_id, generation),
        )


def check_frames(encoders: EncoderPair, segment: Segment, frames: FrameRecords) -> None:
    """Check that frames belong to a segment and to a store of these encoders.

    Raises:
        UsageError: another stream, another shape, or times that do not ascend.
    """
    if frames.stream_id != segment.stream_id:
        raise UsageError(f"frames of {frames.stream_id} in a segment of {segment.stream_id}")
    n = len(frames)
    for name, shape in (
        ("frame_vectors", (n, encoders.frame.dimension)),
        ("patch_pooled", (n, encoders.patch.dimension)),
        ("patches", (n, encoders.patches, encoders.patch.dimension)),
    ):
        got = getattr(frames, name).shape
        if got != shape:
            raise UsageError(f"{segment.stream_id}: expected {name} of shape {shape} for this store, got {got}")
    if n > 1 and not (np.diff(frames.captured_at) > 0).all():
        raise UsageError(f"{segment.stream_id}: captured_at must ascend strictly within a segment")


def _is_new(tables: Tables, stream_id: str, key: str, captured_at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[N]: which frames the stream does not have from another segment."""
    low, high = int(captured_at.min()), int(captured_at.max())
    where = in_window([stream_id], low, high + 1) & (string_field("segment") != key)
    held = tables.frames.read(["captured_at"], where)["captured_at"].cast(pa.int64()).to_numpy()
    return ~np.isin(captured_at, held)
