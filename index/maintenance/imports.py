"""Import of frame vectors and their metadata, in the layout of clip-retrieval that `index.maintenance.export` writes.

    FOLDER/img_emb/*.npy           float16 or float32[n, Df], unit norm
    FOLDER/metadata/*.parquet      n rows: row i describes vector i of the file of the same place in the order of names
    FOLDER/export.json             encoder and number of frames; without it the encoder must be given

`stream_id` and `captured_at` are required. `pts_seconds`, `clock_source`, `frame_norm`, `picture` (JPEG) and `segment`,
which keeps frames together, are taken where they are there; other columns are ignored.

1. Every file is checked: nothing is written before all of them are valid.
2. The frames are stored by segments, exactly once: an import that was stopped, or is repeated, adds what is missing.

There are no patches in this layout, so an import makes a store of its own kind, with one empty patch a frame and the
patch encoder `none`. It can be searched, exported and maintained. A question needs patches, and is refused because the
encoders differ. What is imported is exported again with the same vectors and metadata, but new names of segments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from index.columns import digest
from index.commits import bulk
from index.errors import IdentityMismatch, UsageError, mask_url, validation_message
from index.files import DAMAGED_ARRAYS, load_array
from index.patches.codec import PatchEncoding
from index.records import ClockSource, EncoderIdentity, EncoderPair, FrameRecords, Segment
from index.schemas import check_stream_id
from index.tables import Tables, store_exists

__all__ = ["NO_PATCHES", "ImportPart", "check_import", "encoders_to_search", "import_vectors", "imported_encoders"]

NO_PATCHES = EncoderIdentity(
    name="none", revision="none", weights_digest="none", preprocessing_digest="none", dimension=1
)
"""The patch encoder of stores without patches."""

_COMMITTED = 64  # segments of a commit
_BLOCK = 65_536
_NORM_ERROR = 2e-3  # float16 has 11 bits, and 512 of them are rounded
_SECOND = 1_000_000
_HOUR = 3600 * _SECOND
_REQUIRED = ("stream_id", "captured_at")
_OPTIONAL = ("pts_seconds", "clock_source", "frame_norm", "picture", "segment")


@dataclass(frozen=True, slots=True)
class ImportPart:
    """A file of vectors and its metadata."""

    number: int
    """Its position."""
    vectors: Path
    """The `.npy` file."""
    metadata: Path
    """The Parquet file."""
    rows: int
    """Number of frames."""


def imported_encoders(folder: Path, frame: EncoderIdentity | None = None) -> EncoderPair:
    """The encoders of a store for the vectors in a folder.

    Args:
        folder: the export.
        frame: the encoder that made the vectors; that of `export.json` when None.

    Raises:
        UsageError: there is no valid `export.json`, and no encoder is given.
        IdentityMismatch: `export.json` names another encoder than the given one.
    """
    about = _about(folder)
    if about is not None:
        try:
            told = EncoderIdentity.model_validate(about["encoder"])
        except (KeyError, TypeError):
            raise UsageError(f"{folder / 'export.json'}: names no encoder; export the vectors again") from None
        except ValidationError as error:
            raise UsageError(f"{folder / 'export.json'}: encoder: {validation_message(error)}") from None
        if frame is not None and frame != told:
            raise IdentityMismatch(
                f"{folder}: has vectors of {told.name}, not of {frame.name} of these weights and settings"
            )
        frame = told
    if frame is None:
        raise UsageError(
            f"{folder}: has no export.json that names the encoder; give the profile whose encoder made the vectors"
        )
    return EncoderPair(frame=frame, patch=NO_PATCHES, patches=1)


def encoders_to_search(held: EncoderPair, mine: EncoderPair) -> EncoderPair:
    """The encoders to open a store of `held` with, for a search by `mine`: its own, if it lacks patches alone."""
    return held if held.patch == NO_PATCHES and held.frame == mine.frame else mine


def check_import(folder: Path, dimension: int) -> list[ImportPart]:
    """Check all files of an import; reads everything once.

    Args:
        folder: the export.
        dimension: Df.

    Raises:
        UsageError: a file is missing or unreadable, has another shape, type or number of rows, or invalid values.
    """
    vectors, metadata = (
        sorted((folder / name).glob(pattern)) for name, pattern in (("img_emb", "*.npy"), ("metadata", "*.parquet"))
    )
    if not vectors or len(vectors) != len(metadata):
        raise UsageError(
            f"{folder}: {len(vectors)} files in img_emb/*.npy and {len(metadata)} in metadata/*.parquet; there must be "
            "as many of each, and at least one"
        )
    parts = [
        ImportPart(number, array, table, _check_part(array, table, dimension))
        for number, (array, table) in enumerate(zip(vectors, metadata, strict=True))
    ]
    about, rows = _about(folder), sum(part.rows for part in parts)
    if about is not None and about.get("frames") != rows:
        raise UsageError(f"{folder}: export.json says {about.get('frames')} frames, the files have {rows}")
    return parts


def import_vectors(
    url: str,
    folder: Path,
    *,
    frame: EncoderIdentity | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Store the frames of a folder; returns the number of those that the store did not have.

    Args:
        url: the store, as `index.tables.normalize_url` returns it; created if there is none.
        folder: the export.
        frame: see `imported_encoders`.
        on_progress: called with the number of frames that are done, and of all.

    Raises:
        UsageError: as `check_import` and `imported_encoders`; nothing was written.
        IdentityMismatch: the store has vectors of other encoders, or has patches; nothing was written.
        StoreFull: no space is left; the same import continues.
        StoreError: the store cannot be opened or written.
    """
    pair = imported_encoders(folder, frame)
    parts = check_import(folder, pair.frame.dimension)
    if store_exists(url):
        held = Tables.open(url).encoders
        if held.frame == pair.frame and held != pair:
            raise IdentityMismatch(
                f"{mask_url(url)}: has patches of {held.patch.name}, which an import lacks; import into another store"
            )
    else:
        Tables.create(url, pair, PatchEncoding())
    tables = Tables.open(url, encoders=pair)
    total, done, added, waiting = sum(part.rows for part in parts), 0, 0, list[bulk.WrittenChunk]()
    for part in parts:
        for segment, frames in _segments(folder, part):
            written = bulk.write(tables, segment, frames)
            if written is not None:
                waiting.append(written)
                added += written.segment.frames
            if len(waiting) == _COMMITTED:
                bulk.commit(tables, waiting)
                waiting = []
            done += len(frames)
            on_progress(done, total)
    if waiting:
        bulk.commit(tables, waiting)
    return added


def _about(folder: Path) -> dict[str, Any] | None:
    """The content of `export.json`, None if there is none."""
    path = folder / "export.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: is not an object")
    return found


def _vectors(path: Path) -> NDArray[np.generic]:
    try:
        found = load_array(path, mapped=True)
    except DAMAGED_ARRAYS as error:
        raise UsageError(f"{path}: is not a valid .npy file ({error})") from None
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{path}: is not a valid .npy file")
    return found


def _table(path: Path) -> pa.Table:
    """The columns that are used."""
    try:
        file = pq.ParquetFile(path)
        found = file.read([name for name in (*_REQUIRED, *_OPTIONAL) if name in file.schema_arrow.names])
        found.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: is not a valid Parquet file ({type(error).__name__})") from None
    return found


def _check_part(array: Path, table: Path, dimension: int) -> int:
    """Check a file of vectors and its metadata; returns the number of rows."""
    vectors, rows = _vectors(array), _table(table)
    if vectors.dtype not in (np.float16, np.float32):
        raise UsageError(f"{array}: has {vectors.dtype}; float16 or float32 is expected")
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise UsageError(f"{array}: has the shape {vectors.shape}; vectors of {dimension} floats are expected")
    if len(vectors) != len(rows):
        raise UsageError(f"{array}: has {len(vectors)} vectors, but {table.name} has {len(rows)} rows")
    for at in range(0, len(vectors), _BLOCK):
        some = np.asarray(vectors[at : at + _BLOCK], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            wrong = ~(np.abs(np.linalg.norm(some, axis=1) - 1) <= _NORM_ERROR)  # also where it is not a number
        if wrong.any():
            raise UsageError(f"{array}: vector {at + int(np.argmax(wrong))} is not finite and of unit norm")
    for name in _REQUIRED:
        if name not in rows.column_names:
            raise UsageError(f"{table}: has no column {name}")
        if rows[name].null_count:
            raise UsageError(f"{table}: {name}: row {_first(pc.is_null(rows[name]))} is null")
    for name in _names(rows, "stream_id", table).unique().to_pylist():
        try:
            check_stream_id(name)
        except UsageError as error:
            raise UsageError(f"{table}: stream_id: {error}") from None
    _times(rows, table)
    if "clock_source" in rows.column_names:
        known = pa.array(get_args(ClockSource))
        wrong_clock = pc.invert(pc.is_in(_names(rows, "clock_source", table), known))
        if pc.any(wrong_clock).as_py():
            raise UsageError(
                f"{table}: clock_source: row {_first(wrong_clock)} is not one of {', '.join(known.to_pylist())}"
            )
    for name in ("pts_seconds", "frame_norm"):
        if name in rows.column_names:
            _floats(rows, name, table)
    if "picture" in rows.column_names and not pa.types.is_binary(rows.schema.field("picture").type):
        raise UsageError(f"{table}: picture: has the type {rows.schema.field('picture').type}; binary is expected")
    if "segment" in rows.column_names:
        _names(rows, "segment", table)
    return len(vectors)


def _names(rows: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    """A column of strings."""
    try:
        return rows[name].cast(pa.string())
    except pa.ArrowException:
        raise UsageError(f"{path}: {name}: has the type {rows.schema.field(name).type}; text is expected") from None


def _times(rows: pa.Table, path: Path) -> NDArray[np.int64]:
    """`captured_at`, UTC microseconds."""
    kind = rows.schema.field("captured_at").type
    try:
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            found = rows["captured_at"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        elif pa.types.is_int64(kind):
            found = rows["captured_at"]
        else:
            raise UsageError(
                f"{path}: captured_at: has the type {kind}; timestamps with a time zone, or int64 of microseconds UTC, "
                "are expected"
            )
    except pa.ArrowException as error:
        raise UsageError(f"{path}: captured_at: {error}") from None
    return found.to_numpy()  # type: ignore[no-any-return]


def _floats(rows: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    """A column of numbers; NaN where it is null."""
    try:
        return rows[name].cast(pa.float64()).to_numpy()  # type: ignore[no-any-return]
    except pa.ArrowException:
        raise UsageError(f"{path}: {name}: has the type {rows.schema.field(name).type}; numbers are expected") from None


def _first(wrong: pa.ChunkedArray) -> int:
    return int(pc.index(wrong, True).as_py())


def _segments(folder: Path, part: ImportPart) -> Iterator[tuple[Segment, FrameRecords]]:
    """The segments of a file, by stream and time."""
    vectors, rows = _vectors(part.vectors), _table(part.metadata)
    times, streams = _times(rows, part.metadata), _names(rows, "stream_id", part.metadata).to_pylist()
    count, names = len(rows), rows.column_names
    groups: Sequence[str]
    if "segment" in names:
        groups = ["" if each is None else each for each in _names(rows, "segment", part.metadata).to_pylist()]
    else:
        groups = [str(each) for each in (times // _HOUR).tolist()]
    clocks = _names(rows, "clock_source", part.metadata).to_pylist() if "clock_source" in names else ["given"] * count
    pts = _floats(rows, "pts_seconds", part.metadata) if "pts_seconds" in names else np.full(count, np.nan)
    norms = _floats(rows, "frame_norm", part.metadata) if "frame_norm" in names else np.full(count, np.nan)
    pictures = rows["picture"].to_pylist() if "picture" in names else [None] * count
    held: dict[tuple[str, str, ClockSource], list[int]] = {}
    for row, key in enumerate(zip(streams, groups, clocks, strict=True)):
        held.setdefault(key, []).append(row)
    for (stream, group, clock), members in held.items():
        chosen = np.array(members)[np.argsort(times[members], kind="stable")]
        at = times[chosen]
        frames = FrameRecords(
            stream_id=stream,
            clock_source=clock,
            captured_at=at,
            pts_seconds=np.where(np.isnan(pts[chosen]), (at - at[0]) / _SECOND, pts[chosen]),
            frame_vectors=np.asarray(vectors[chosen], np.float32),
            patch_pooled=np.zeros((len(chosen), 1), np.float32),
            patches=np.zeros((len(chosen), 1, 1), np.float16),
            pictures=[pictures[row] or b"" for row in chosen.tolist()],
            frame_norms=None if np.isnan(norms[chosen]).any() else norms[chosen].astype(np.float32),
        )
        segment = Segment(
            stream_id=stream,
            source=digest("import", folder.name, stream, group, clock),
            chunk=part.number,
            uri=f"import:{part.vectors.name}",
            start=int(at[0]),
            end=int(at[-1]) + 1,
            frames=len(frames),
            decode_mode="all",
            clock_source=clock,
        )
        yield segment, frames
