"""Whether a store agrees with itself: Parquet against the segments' record, against FAISS, against the identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.errors import StoreError
from index.row_filter import on_day
from index.schemas import ENCODERS_KEY, TABLES

if TYPE_CHECKING:
    from index.store import Store

__all__ = ["verify"]


def verify(store: Store) -> list[str]:
    """One sentence for each disagreement, with the stream and what to do; empty when all is well."""
    problems = _identity(store)
    try:
        keys = {name: _keys(store, name) for name in ("frames", "patches")}
        problems += _doubles(keys["frames"], "frames") + _doubles(keys["patches"], "patches")
        problems += _counts(store, keys["frames"], keys["patches"])
        problems += store._patches.problems()
        problems += _shards(store)
    except StoreError as error:
        problems.append(str(error))
    return problems


def _identity(store: Store) -> list[str]:
    problems: list[str] = []
    for name in TABLES:
        try:
            held = store._tables[name].configuration().get(ENCODERS_KEY)
        except StoreError as error:
            problems.append(str(error))
            continue
        if held != store.encoders.model_dump_json():
            problems.append(f"table {name}: says its vectors come from other encoders than the store's; ingest again")
    return problems


def _keys(store: Store, name: str) -> pa.Table:
    """The keys of every row; the widest column is read too, so that a damaged file shows."""
    wide = {"frames": "frame_vector", "patches": "patches"}[name]
    columns = ["stream_id", "captured_at", "segment"]
    parts = [
        pa.Table.from_batches([batch.select(columns)])
        for batch in store._tables[name].batches([*columns, wide], None, 2048)
        if len(batch)
    ]
    schema = pa.schema([TABLES[name][0].field(c) for c in columns])
    return pa.concat_tables(parts).cast(schema) if parts else schema.empty_table()


def _doubles(keys: pa.Table, name: str) -> list[str]:
    groups = keys.group_by(["stream_id", "captured_at"]).aggregate([("segment", "count")])
    twice = groups.filter(pc.greater(groups["segment_count"], 1))
    return [
        f"table {name}: {row['values']} has {row['counts']} frames that are stored twice; forget the stream and ingest again"
        for row in pc.value_counts(twice["stream_id"]).to_pylist()
    ]


def _counts(store: Store, frames: pa.Table, patches: pa.Table) -> list[str]:
    problems: list[str] = []
    tallies = []
    for table in (frames, patches):
        groups = table.group_by(["stream_id", "segment"]).aggregate([("captured_at", "count")])
        tallies.append({(r["stream_id"], r["segment"]): r["captured_at_count"] for r in groups.to_pylist()})
    seen, have_patches = tallies
    rows = store._tables["segments"].read(["stream_id", "segment", "frames", "uri"]).to_pylist()
    listed = {(r["stream_id"], r["segment"]): r for r in rows}
    again = "run the same ingest again"
    for key, row in listed.items():
        for name, tally in (("frames", seen), ("patches", have_patches)):
            got = tally.get(key, 0)
            if got != row["frames"]:
                problems.append(
                    f"{key[0]}: {row['uri']} should have {row['frames']} {name}, the store has {got}; {again}"
                )
    for key in sorted((seen.keys() | have_patches.keys()) - listed.keys()):
        problems.append(f"{key[0]}: {have_patches.get(key, 0)} frames of an ingest that did not finish; {again}")
    return problems


def _shards(store: Store) -> list[str]:
    problems: list[str] = []
    for stream, day in store._vectors.shards.days():
        shard = store._vectors.shards.open(stream, day)
        what = f"FAISS shard {stream} {day}"
        if shard is None:
            problems.append(f"{what}: does not read back; run `sightline reindex`")
            continue
        if shard.identity != store._vectors.identity:
            problems.append(f"{what}: holds vectors of another encoder; run `sightline reindex`")
            continue
        if len(store._tables["frames"].read(["segment"], on_day(stream, day))) == 0:
            problems.append(f"{what}: Parquet has no frames of that day; run `sightline reindex`")
            continue
        captured_at, vectors = store._vectors.of_day(stream, day, shard.segments)
        try:
            same = np.array_equal(captured_at, shard.captured_at) and np.array_equal(vectors, shard.vectors())
        except RuntimeError:  # how FAISS reports a damaged file
            same = False
        if not same:
            problems.append(f"{what}: differs from the vectors in Parquet; run `sightline reindex`")
    return problems
