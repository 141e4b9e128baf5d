"""Building the large index: a codebook from a sample of the store, then shards of the files that no shard contains.

Building is incremental and may be stopped at any moment: a shard that is written stays, and the next build goes on with
the files that are missing. Each build also

- writes shards anew whose rows were deleted (`forget`) or moved to other files (`compact`), without those rows;
- merges small shards, without computing a code again.

Memory is bounded by the size of a shard, about 130 bytes a row, and by the sample of 1 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import StoreUnavailable
from index.search.ann.catalog import Catalog
from index.search.ann.codebook import Codebook, SampleOfFrames, ShardLists, lists_for, train
from index.search.ann.shard import IndexedRows, Shard
from index.search.ann.vectors import VectorReader

__all__ = ["SHARD_ROWS", "Built", "ShardPlan", "build", "write_planned"]

SHARD_ROWS = 4_000_000
"""Most rows of a shard, unless one file has more."""
_SMALL = 4  # a shard with less than a quarter of SHARD_ROWS is merged …
_SMALL_SHARDS = 4  # … as soon as there are so many
_SAMPLED_GROUPS = 16_384
_HELD_OUT = 8  # one row group of so many is not trained with
_ENCODED_AT_ONCE = 4_096
_RETRAIN_GROWTH = 16  # the store has grown by this factor since the codebook was trained …
_RETRAIN_FAR = 0.2  # … or so many of the rows, which each search looks at, are in far lists …
_RETRAIN_FAR_GROWTH = 1.25  # … and it has grown by this factor, so that a training can change that


@dataclass(frozen=True, slots=True)
class Built:
    """What a build did."""

    rows: int
    """Frames that were added."""
    shards: int
    """Shards that were written."""
    removed: int
    """Rows that were removed, because their frames were deleted or are in other files."""
    trained: bool
    """Whether a codebook was trained."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard that is to be written."""

    codebook: str
    """Key of the codebook."""
    files: tuple[tuple[str, str], ...]
    """Path and stream of each of its files."""
    rows: int
    """Number of its rows."""


def write_planned(catalog: Catalog, reader: VectorReader, plan: ShardPlan) -> str:
    """Write a planned shard; returns its name. Written twice, it is the same.

    Raises:
        StoreUnavailable: the codebook of the plan is not there.
        StoreCorrupt: a file cannot be read.
        OSError: the shard cannot be written.
    """
    codebook = catalog.codebook
    if codebook is None or codebook.key != plan.codebook:
        raise StoreUnavailable(
            f"{catalog.place}: the codebook of this build is not visible here, or another build replaced it; the store "
            "must be at a place that all workers share"
        )
    return catalog.add(_encoded(plan.files, plan.rows, reader, codebook), codebook)


def build(
    catalog: Catalog,
    reader: VectorReader,
    files: dict[str, tuple[str, int]],
    *,
    shard_rows: int = SHARD_ROWS,
    lists: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    elsewhere: Callable[[Sequence[ShardPlan]], None] | None = None,
) -> Built:
    """Bring the index up to date with the files of a version of the store.

    Args:
        catalog: the index.
        reader: reads the files.
        files: stream and number of rows of each file, by path.
        shard_rows: most rows of a shard.
        lists: number of lists of a new codebook; `lists_for` the rows when None.
        on_progress: called with the rows that are done and their number.
        elsewhere: calls `write_planned` for each plan, in any order and any number of times, for example on the
            machines of a cluster; this process does it when None.

    Raises:
        StoreBusy: another process builds this index.
        StoreCorrupt, StoreUnavailable: a file cannot be read.
        OSError: the index cannot be written.
    """
    total = sum(rows for _, rows in files.values())
    with catalog.building():
        catalog.clean(whole=True)
        codebook, trained = catalog.codebook, False
        if codebook is None or _outgrown(codebook, catalog.shards(), total):
            codebook = _train(catalog, reader, files, total, lists)
            catalog.set_codebook(codebook)
            trained = True
        removed = written = 0
        seen: set[str] = set()
        for shard in catalog.shards():
            alive = np.array([path in files and path not in seen for path in shard.files], bool)
            seen.update(shard.files)
            if not alive.all():
                if not shard.ready():
                    seen.difference_update(shard.files)
                    catalog.remove([shard.name])
                    continue
                kept = _taken(shard, np.flatnonzero(alive[shard.file]))
                if len(kept.row):
                    catalog.add(kept, codebook)
                    written += 1
                removed += len(shard) - len(kept.row)
                catalog.remove([shard.name])
        held = {path for shard in catalog.shards() for path in shard.files}
        fresh = sorted(
            (path for path in files if path not in held), key=lambda path: (_day(path), files[path][0], path)
        )
        done, wanted = 0, sum(files[path][1] for path in fresh)
        plans = [
            ShardPlan(codebook.key, tuple((path, files[path][0]) for path in part), sum(files[p][1] for p in part))
            for part in _parts(fresh, files, shard_rows)
        ]
        if elsewhere is not None and plans:
            elsewhere(plans)
        for plan in plans if elsewhere is None else ():
            write_planned(catalog, reader, plan)
            done += plan.rows
            on_progress(done, wanted)
        written += len(plans)
        written += _merge(catalog, codebook, shard_rows)
    return Built(wanted, written, removed, trained)


def _outgrown(codebook: Codebook, shards: Sequence[Shard], total: int) -> bool:
    """Whether the store has become too large, or too different, for the codebook."""
    growth = total / max(1, codebook.trained_rows)
    far = sum(shard.far for shard in shards)
    many = far > _RETRAIN_FAR * sum(map(len, shards))
    return growth > _RETRAIN_GROWTH or (many and growth > _RETRAIN_FAR_GROWTH)


def _train(
    catalog: Catalog, reader: VectorReader, files: dict[str, tuple[str, int]], total: int, lists: int | None
) -> Codebook:
    """A codebook from row groups that are spread evenly over the files."""
    lists = lists_for(total) if lists is None else lists
    paths = sorted(files, key=lambda path: (_day(path), path))
    step = max(1, -(-len(paths) // _SAMPLED_GROUPS))
    chosen = paths[::step]
    each = max(1, _SAMPLED_GROUPS // max(1, len(chosen)))
    sample, read = SampleOfFrames(lists, reader.dimension), 0
    for path in chosen:
        count = reader.groups(path)
        groups = np.unique(np.linspace(0, count - 1, min(count, each)).round().astype(np.int64)).tolist()
        for rows in reader.file(path, groups, places=False):
            read += 1
            (sample.add if read % _HELD_OUT else sample.hold_out)(rows.vectors)
    return train(sample, lists, identity=catalog.identity, rows=total)


def _parts(paths: Sequence[str], files: dict[str, tuple[str, int]], most: int) -> Iterator[list[str]]:
    """Files in their order, in parts of at most `most` rows."""
    part: list[str] = []
    rows = 0
    for path in paths:
        if part and rows + files[path][1] > most:
            yield part
            part, rows = [], 0
        part.append(path)
        rows += files[path][1]
    if part:
        yield part


def _encoded(
    files: Sequence[tuple[str, str]], rows_in_all: int, reader: VectorReader, codebook: Codebook
) -> IndexedRows:
    """The rows of some files, paths and streams, with their codes, sorted."""
    streams = sorted({stream for _, stream in files})
    found: dict[str, list[NDArray[np.generic]]] = {
        name: [] for name in ("stream", "captured_at", "file", "row", "offset", "lists", "codes")
    }
    chosen, waiting, count = ShardLists(codebook, rows_in_all), list[NDArray[np.float32]](), 0

    def encode() -> None:
        """Assign and encode the vectors that wait; few at a time cost several times as much a vector."""
        nonlocal count
        rotated = codebook.rotated(np.concatenate(waiting))
        lists = chosen.assign(rotated)
        found["lists"].append(lists.astype(np.int32))
        found["codes"].append(codebook.encode(rotated, lists))
        waiting.clear()
        count = 0

    for number, (path, name) in enumerate(files):
        stream = streams.index(name)
        for rows in reader.file(path):
            found["stream"].append(np.full(len(rows.row), stream, np.int32))
            found["captured_at"].append(rows.captured_at)
            found["file"].append(np.full(len(rows.row), number, np.int32))
            found["row"].append(rows.row)
            found["offset"].append(rows.offset)
            waiting.append(rows.vectors)
            count += len(rows.row)
            if count >= _ENCODED_AT_ONCE:
                encode()
    if waiting:
        encode()
    held = {name: np.concatenate(values) for name, values in found.items()}
    numbers, rotated = chosen.rest()
    if len(numbers):
        lists = codebook.assign_far(rotated)
        held["lists"][numbers] = lists
        held["codes"][numbers] = codebook.encode(rotated, lists)
    return _sorted(streams, [path for path, _ in files], held)


def _sorted(streams: Sequence[str], paths: Sequence[str], held: dict[str, NDArray[np.generic]]) -> IndexedRows:
    order = np.lexsort((held["captured_at"], held["stream"]))
    if (order != np.arange(len(order))).any():
        held = {name: values[order] for name, values in held.items()}
    arrays: dict[str, NDArray[np.generic]] = held
    return IndexedRows(streams=streams, files=list(paths), **arrays)  # type: ignore[arg-type]


def _taken(shard: Shard, rows: NDArray[np.int64]) -> IndexedRows:
    """Some rows of a shard, ascending, with their codes; files and streams that have none are left out."""
    lists, codes = shard.entries()
    stream = shard.stream_of(rows)
    streams, stream = np.unique(stream, return_inverse=True)
    files, file = np.unique(shard.file[rows], return_inverse=True)
    return IndexedRows(
        [shard.streams[i] for i in streams.tolist()],
        stream.astype(np.int32),
        np.array(shard.captured_at[rows]),
        [shard.files[i] for i in files.tolist()],
        file.astype(np.int32),
        np.array(shard.row[rows]),
        np.array(shard.offset[rows]),
        lists[rows],
        codes[rows],
    )


def _merge(catalog: Catalog, codebook: Codebook, most: int) -> int:
    """Merge small shards if there are many; returns the number of shards that were written."""
    small = [shard for shard in catalog.shards() if len(shard) < most // _SMALL and shard.ready()]
    if len(small) < _SMALL_SHARDS:
        return 0
    written, group = 0, list[Shard]()
    for shard in [*sorted(small, key=lambda shard: shard.begin), None]:
        if shard is None or sum(map(len, group)) + len(shard) > most:
            if len(group) > 1:
                catalog.add(_joined(group), codebook)
                catalog.remove([each.name for each in group])
                written += 1
            group = []
        if shard is not None:
            group.append(shard)
    return written


def _joined(shards: Sequence[Shard]) -> IndexedRows:
    """The rows of several shards as one."""
    parts = [_taken(shard, np.arange(len(shard))) for shard in shards]
    streams = sorted({stream for part in parts for stream in part.streams})
    paths = [path for part in parts for path in part.files]
    before = np.cumsum([0, *(len(part.files) for part in parts)])
    held = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PLAIN}
    held["stream"] = np.concatenate(
        [np.array([streams.index(name) for name in part.streams], np.int32)[part.stream] for part in parts]
    )
    held["file"] = np.concatenate(
        [part.file + np.int32(first) for part, first in zip(parts, before[:-1].tolist(), strict=True)]
    )
    return _sorted(streams, paths, held)


_PLAIN = ("captured_at", "row", "offset", "lists", "codes")


def _day(path: str) -> str:
    """The UTC day in the path of a file, `…/date=YYYY-MM-DD/…`."""
    return path.partition("date=")[2][:10]
