"""Checks that a store agrees with itself: rows against segments, FAISS against Parquet, vectors against the identity.

`verify` reads every row once: a stream's day at a time, of frames, patches and shard together, so that memory is
bounded by a few days, in several threads. What was found of each day is written to a file of the user's caches. A run
that was stopped is continued: a day whose files have not changed since is not read again. `verify_quickly` compares
what the logs say with the files that there are and with the shards, and reads no rows of frames or patches.

The three tables are looked at in the order opposite to that of commits, so that what a writer commits meanwhile is
never missed in one of them. Nothing is repaired; each problem names the command that repairs it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from index.columns import digest, to_matrix
from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.delta.row_filter import on_day
from index.delta.snapshot import THREADS, TableSnapshot
from index.delta.table import StoreTable
from index.errors import StoreError, mask_url
from index.files import cache_folder
from index.maintenance.retention import unfinished_deletions
from index.records import EncoderPair
from index.schemas import ENCODERS_KEY
from index.search.faiss_shards import FaissShard
from index.search.vector_search import VectorSearch
from index.tables import Tables, is_remote

__all__ = ["verify", "verify_quickly"]

_WORKERS = min(THREADS, 4)  # days that are read at once; a day of 512 floats a frame is 180 MB
_AGAIN = "run the same ingest again"


class _Day(BaseModel):
    """What was found of one stream's day."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    signature: str
    """Digest of the files that were read, and of the shard."""
    problems: list[str] = []
    """Problems of the shard, and of files that cannot be read."""
    frames: dict[str, int] = {}
    """Number of frames by segment."""
    patches: dict[str, int] = {}
    """Number of rows of patches by segment."""
    frames_twice: int = 0
    """Frames that are stored twice."""
    patches_twice: int = 0
    """Frames whose patches are stored twice."""
    damaged: int = 0
    """Rows or chains of patches that cannot be decoded."""
    unread: bool = False
    """Whether a file could not be read, so that the counts are not those of the store."""


_Key = tuple[str, str]  # stream and UTC day


def verify(
    tables: Tables,
    vectors: VectorSearch,
    *,
    resume: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """The problems of a store, one sentence each, with the stream and what to do; empty if there are none.

    Args:
        tables: the store.
        vectors: its frame vectors and FAISS shards.
        resume: continue a run that was stopped; days whose files have not changed since are not read again.
        on_progress: called with the number of days that were checked, and with that of all.
    """
    problems = _identity_problems(tables)
    try:
        unfinished = unfinished_deletions(tables)
        problems += _deletion_problems(unfinished)
        listed = tables.segments.snapshot()
        frames, patches = tables.frames.snapshot().by_day(), tables.patches.snapshot().by_day()
        keys = sorted(frames.keys() | patches.keys())
        progress = cache_folder() / digest(tables.url) / "verify.jsonl"
        known = _read_progress(progress) if resume else {}
        found: dict[_Key, _Day] = {}
        progress.parent.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(_WORKERS)
        with progress.open("w", encoding="utf-8") as file, _stopping(pool):

            def note(key: _Key, day: _Day) -> None:
                """Write down what was found of a day."""
                file.write(json.dumps([*key, day.model_dump()]) + "\n")
                file.flush()

            for key, day in known.items():
                note(key, day)

            def check(key: _Key) -> tuple[_Key, _Day]:
                """Check one day, unless it was."""
                of_frames, of_patches, shard = frames.get(key), patches.get(key), vectors.shards.open(*key)
                signature = _signature(of_frames, of_patches, shard)
                if key in known and known[key].signature == signature:
                    return key, known[key]
                return key, _check_day(tables, vectors, key, of_frames, of_patches, shard, signature)

            for key, day in pool.map(check, keys):
                found[key] = day
                if known.get(key) is not day:
                    note(key, day)
                on_progress(len(found), len(keys))
        problems += _day_problems(found)
        problems += _lone_shard_problems(vectors, frames.keys())
        problems += _count_problems(listed, tables.segments, found, unfinished)
        progress.unlink(missing_ok=True)
    except StoreError as error:
        problems.append(str(error))
    return problems


def verify_quickly(tables: Tables, vectors: VectorSearch) -> list[str]:
    """The problems of a store that its logs, the sizes of its files and the headers of its shards show.

    It finds files that are gone or cut short, days with frames and no patches, segments that lack frames, unfinished
    deletions and shards that do not fit. It does not find changed bytes.
    """
    problems = _identity_problems(tables)
    try:
        unfinished = unfinished_deletions(tables)
        problems += _deletion_problems(unfinished)
        for table in tables.all():
            problems += _file_problems(table.snapshot())
        first = _count_difference(tables)
        if first:  # or a writer committed in between
            again = _count_difference(tables)
            problems += [text for name, text in first.items() if again.get(name) == text and name not in unfinished]
        frames = tables.frames.snapshot().by_day()
        for key in vectors.shards.days():
            shard, files = vectors.shards.open(*key), frames.get(key)
            if shard is None:
                continue  # one of `_lone_shard_problems`
            problem = _shard_header_problem(vectors, key, shard)
            if problem is None and files is not None and shard.files == frozenset(files.paths):
                rows = files.rows
                if rows is not None and rows != len(shard.captured_at):
                    problem = f"{_shard(key)}: has {len(shard.captured_at)} frames of {rows}; run `sightline reindex`"
            problems += [] if problem is None else [problem]
        problems += _lone_shard_problems(vectors, frames.keys())
    except StoreError as error:
        problems.append(str(error))
    return problems


@contextmanager
def _stopping(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Stop a pool at the end of the block; what has not begun by then, as after Ctrl-C, is left out."""
    try:
        yield
    finally:
        pool.shutdown(cancel_futures=True)


# ---- identity and deletions ------------------------------------------------------------------------------------------


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


def _deletion_problems(unfinished: Iterable[str]) -> list[str]:
    return [
        f"{stream}: footage was deleted with `forget`, which did not finish; run `sightline forget {stream}` as "
        "before, or `sightline compact`"
        for stream in unfinished
    ]


# ---- one day ---------------------------------------------------------------------------------------------------------


def _signature(frames: TableSnapshot | None, patches: TableSnapshot | None, shard: FaissShard | None) -> str:
    paths = [path for files in (frames, patches) for path in ("", *sorted([] if files is None else files.paths))]
    if shard is None:
        return digest(*paths)
    with suppress(OSError):
        return digest(*paths, shard.path.stat().st_mtime_ns, shard.path.stat().st_size)
    return digest(*paths, "gone")


def _check_day(
    tables: Tables,
    vectors: VectorSearch,
    key: _Key,
    frames: TableSnapshot | None,
    patches: TableSnapshot | None,
    shard: FaissShard | None,
    signature: str,
) -> _Day:
    day = _Day(signature=signature)
    try:
        if frames is not None:
            rows = frames.read(["captured_at", "segment", "frame_vector"], on_day(*key))
            day.frames, day.frames_twice = _counts(rows), _twice(rows)
            problem = _shard_header_problem(vectors, key, shard) if shard is not None else None
            if problem is None and shard is not None and not _same(rows, shard, tables.encoders.frame.dimension):
                problem = f"{_shard(key)}: differs from the vectors in Parquet; run `sightline reindex`"
            day.problems += [] if problem is None else [problem]
    except StoreError as error:
        day.problems.append(str(error))
        day.unread = True
    try:
        if patches is not None:
            rows, day.damaged = tables.patch_store.damaged(patches, on_day(*key))
            day.patches, day.patches_twice = _counts(rows), _twice(rows)
    except StoreError as error:
        day.problems.append(str(error))
        day.unread = True
    return day


def _counts(rows: pa.Table) -> dict[str, int]:
    """Number of rows by segment."""
    found = pc.value_counts(rows["segment"].combine_chunks().cast(pa.string()))
    return {each["values"]: each["counts"] for each in found.to_pylist()}


def _twice(rows: pa.Table) -> int:
    """Number of times that more than one row has."""
    _, counts = np.unique(rows["captured_at"].cast(pa.int64()).to_numpy(), return_counts=True)
    return int((counts > 1).sum())


def _same(rows: pa.Table, shard: FaissShard, dimension: int) -> bool:
    """Whether a shard has the frames of its segments, and their vectors."""
    segments = pa.array(sorted(shard.segments), pa.string())
    held = rows.filter(pc.is_in(rows["segment"].cast(pa.string()), segments)).sort_by("captured_at")
    if not np.array_equal(held["captured_at"].cast(pa.int64()).to_numpy(), shard.captured_at):
        return False
    try:
        return bool(np.array_equal(to_matrix(held["frame_vector"], dimension), shard.vectors()))
    except RuntimeError:  # FAISS's error for a damaged file
        return False


def _shard(key: _Key) -> str:
    return f"FAISS shard {key[0]} {key[1]}"


def _shard_header_problem(vectors: VectorSearch, key: _Key, shard: FaissShard) -> str | None:
    if shard.identity != vectors.identity:
        return f"{_shard(key)}: holds vectors of another encoder; run `sightline reindex`"
    return None


def _lone_shard_problems(vectors: VectorSearch, days: Collection[_Key]) -> list[str]:
    """Shards of days without frames, and those that cannot be opened."""
    problems = []
    for key in vectors.shards.days():
        if vectors.shards.open(*key) is None:
            problems.append(f"{_shard(key)}: cannot be read; run `sightline reindex`")
        elif key not in days:
            problems.append(f"{_shard(key)}: Parquet has no frames of that day; run `sightline reindex`")
    return problems


# ---- days and segments -----------------------------------------------------------------------------------------------


def _day_problems(days: Mapping[_Key, _Day]) -> list[str]:
    problems = [problem for day in days.values() for problem in day.problems]
    for name in ("frames", "patches"):
        twice = Counter[str]()
        for (stream, _), day in days.items():
            twice[stream] += day.frames_twice if name == "frames" else day.patches_twice
        problems += [
            f"table {name}: {stream} has {count} frames that are stored twice; forget the stream and ingest again"
            for stream, count in sorted(twice.items())
            if count
        ]
    damaged = Counter[str]()
    for (stream, _), day in days.items():
        damaged[stream] += day.damaged
    problems += [
        f"{stream}: {count} rows or chains of patches cannot be decoded; forget the stream and ingest again"
        for stream, count in sorted(damaged.items())
        if count
    ]
    return problems


def _count_problems(
    listed: TableSnapshot, segments: StoreTable, days: Mapping[_Key, _Day], unfinished: Collection[str]
) -> list[str]:
    """Segments with a wrong number of frames or patches, and rows of no segment; not of the streams `unfinished`, nor
    of those with files that cannot be read."""
    counts = {"frames": Counter[_Key](), "patches": Counter[_Key]()}
    skipped = {*unfinished, *(stream for (stream, _), day in days.items() if day.unread)}
    for (stream, _), day in days.items():
        for name, found in (("frames", day.frames), ("patches", day.patches)):
            counts[name].update({(stream, segment): count for segment, count in found.items()})
    problems: list[str] = []
    for row in listed.read(["stream_id", "segment", "frames", "uri"]).to_pylist():
        if row["stream_id"] in skipped:
            continue
        for name, found_of in counts.items():
            got = found_of[row["stream_id"], row["segment"]]
            if got != (expected := row["frames"]):
                what = f"{row['uri']} should have {expected} {name}, the store has {got}"
                problems.append(f"{row['stream_id']}: {what}; {_AGAIN}")
    newest = segments.snapshot().read(["stream_id", "segment"])  # what was being committed is listed by now
    known = set(zip(newest["stream_id"].to_pylist(), newest["segment"].to_pylist(), strict=True))
    unlisted = (counts["frames"].keys() | counts["patches"].keys()) - known
    for key in sorted(key for key in unlisted if key[0] not in skipped):
        problems.append(f"{key[0]}: {counts['patches'][key]} frames of an ingest that did not finish; {_AGAIN}")
    return problems


# ---- without reading rows --------------------------------------------------------------------------------------------


def _file_problems(files: TableSnapshot) -> list[str]:
    """Files that the log lists and that are gone, or have another size."""
    with translate_errors(files.uri):
        if is_remote(files.uri):
            system, root = file_system(files.uri)
            there = {str(path): int(info["size"]) for path, info in system.find(root, detail=True).items()}
        else:
            root, there = files.uri, None
        problems = []
        for path, size in zip(files.paths, files.listed["size_bytes"].to_pylist(), strict=True):
            got = _size(Path(root, path)) if there is None else there.get(f"{root}/{path}")
            if got != size:
                what = "is gone" if got is None else f"has {got} bytes instead of {size}"
                problems.append(
                    f"{mask_url(files.uri)}/{path}: {what}; restore it, or forget the stream and ingest again"
                )
    return problems


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _count_difference(tables: Tables) -> dict[str, str]:
    """One sentence for each stream whose frames, patches and segments do not have the same number of frames."""
    segments = tables.segments.snapshot()
    frames, patches = tables.frames.snapshot(), tables.patches.snapshot()
    rows = segments.read(["stream_id", "frames"]).group_by("stream_id").aggregate([("frames", "sum")])
    counts = [dict(zip(rows["stream_id"].to_pylist(), rows["frames_sum"].to_pylist(), strict=True))]
    counts += [found.row_counts() for found in (frames, patches)]
    streams: Iterator[str] = iter(sorted({name for found in counts for name in found}))
    return {
        name: f"{name}: the segments have {of[0]} frames, the tables {of[1]}, with {of[2]} rows of patches; run "
        "`sightline verify`, which names the segments"
        for name in streams
        for of in [[found.get(name, 0) for found in counts]]
        if len(set(of)) > 1
    }


def _read_progress(path: Path) -> dict[_Key, _Day]:
    """The days that a run which was stopped has checked; what is damaged there is checked again."""
    found: dict[_Key, _Day] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, ValidationError, TypeError):
                stream, date, day = json.loads(line)
                found[stream, date] = _Day.model_validate(day)
    return found
