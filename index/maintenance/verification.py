"""Checks that a store agrees with itself: rows against segments, FAISS against Parquet, vectors against the identity.

Every row is read once. Nothing is repaired; each problem names the command that repairs it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.delta.row_filter import on_day
from index.delta.table import StoreTable
from index.errors import StoreError
from index.maintenance.retention import unfinished_deletions
from index.records import EncoderPair
from index.schemas import ENCODERS_KEY, TABLES
from index.search.vector_search import VectorSearch
from index.tables import Tables

__all__ = ["verify"]


def verify(tables: Tables, vectors: VectorSearch) -> list[str]:
    """The problems of a store, one sentence each, with the stream and what to do; empty if there are none."""
    problems = _identity_problems(tables)
    try:
        unfinished = unfinished_deletions(tables)
        problems += [
            f"{stream}: footage was deleted with `forget`, which did not finish; run `sightline forget {stream}` as "
            "before, or `sightline compact`"
            for stream in unfinished
        ]
        frames, patches = _read_keys(tables.frames, "frame_vector"), _read_keys(tables.patches, "patches")
        problems += _duplicates(frames, "frames") + _duplicates(patches, "patches")
        problems += _count_problems(tables, frames, patches, unfinished)
        problems += tables.patch_store.problems()
        problems += _shard_problems(tables, vectors)
    except StoreError as error:
        problems.append(str(error))
    return problems


def _identity_problems(tables: Tables) -> list[str]:
    problems: list[str] = []
    for table in tables.all():
        try:
            held = table.configuration().get(ENCODERS_KEY)
        except StoreError as error:
            problems.append(str(error))
            continue
        if held is None or not _names(held, tables.encoders):
            problems.append(f"table {table.name}: its vectors are of other encoders than the store's; ingest again")
    return problems


def _names(held: str, encoders: EncoderPair) -> bool:
    """Whether the JSON that a table holds is `encoders`; stores of older versions leave out what has a default."""
    try:
        return EncoderPair.model_validate_json(held) == encoders
    except ValueError:
        return False


def _read_keys(table: StoreTable, widest: str) -> pa.Table:
    """The keys of all rows. The widest column is read too, which finds damaged files."""
    columns = ["stream_id", "captured_at", "segment"]
    parts = [
        pa.Table.from_batches([batch.select(columns)])
        for batch in table.read_batches([*columns, widest], None, 2048)
        if len(batch)
    ]
    schema = pa.schema([TABLES[table.name][0].field(c) for c in columns])
    return pa.concat_tables(parts).cast(schema) if parts else schema.empty_table()


def _duplicates(keys: pa.Table, name: str) -> list[str]:
    groups = keys.group_by(["stream_id", "captured_at"]).aggregate([("segment", "count")])
    twice = groups.filter(pc.greater(groups["segment_count"], 1))
    return [
        f"table {name}: {row['values']} has {row['counts']} frames that are stored twice; forget the stream and ingest "
        "again"
        for row in pc.value_counts(twice["stream_id"]).to_pylist()
    ]


def _count_problems(tables: Tables, frames: pa.Table, patches: pa.Table, unfinished: Collection[str]) -> list[str]:
    """Segments with a wrong number of frames or patches, and rows of no segment; not of the streams `unfinished`."""
    problems: list[str] = []
    counts = []
    for table in (frames, patches):
        groups = table.group_by(["stream_id", "segment"]).aggregate([("captured_at", "count")])
        counts.append({(r["stream_id"], r["segment"]): r["captured_at_count"] for r in groups.to_pylist()})
    frame_counts, patch_counts = counts
    rows = tables.segments.read(["stream_id", "segment", "frames", "uri"]).to_pylist()
    listed = {(r["stream_id"], r["segment"]): r for r in rows if r["stream_id"] not in unfinished}
    again = "run the same ingest again"
    for key, row in listed.items():
        for name, count_of in (("frames", frame_counts), ("patches", patch_counts)):
            got = count_of.get(key, 0)
            if got != row["frames"]:
                problems.append(
                    f"{key[0]}: {row['uri']} should have {row['frames']} {name}, the store has {got}; {again}"
                )
    unlisted = (frame_counts.keys() | patch_counts.keys()) - listed.keys()
    for key in sorted(key for key in unlisted if key[0] not in unfinished):
        problems.append(f"{key[0]}: {patch_counts.get(key, 0)} frames of an ingest that did not finish; {again}")
    return problems


def _shard_problems(tables: Tables, vectors: VectorSearch) -> list[str]:
    problems: list[str] = []
    parts = tables.frames.snapshot().by_day()
    for stream, day in vectors.shards.days():
        shard = vectors.shards.open(stream, day)
        what = f"FAISS shard {stream} {day}"
        if shard is None:
            problems.append(f"{what}: cannot be read; run `sightline reindex`")
            continue
        if shard.identity != vectors.identity:
            problems.append(f"{what}: holds vectors of another encoder; run `sightline reindex`")
            continue
        files = parts.get((stream, day))
        if files is None or not files.has_rows(on_day(stream, day)):
            problems.append(f"{what}: Parquet has no frames of that day; run `sightline reindex`")
            continue
        captured_at, expected = vectors.of_day(stream, day, shard.segments, files)
        try:
            same = np.array_equal(captured_at, shard.captured_at) and np.array_equal(expected, shard.vectors())
        except RuntimeError:  # FAISS's error for a damaged file
            same = False
        if not same:
            problems.append(f"{what}: differs from the vectors in Parquet; run `sightline reindex`")
    return problems
