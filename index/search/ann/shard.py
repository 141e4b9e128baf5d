"""A shard of the large index: codes of the frames of some files, in inverted lists, immutable and memory-mapped.

    <name>/lists.bin       for each list its codes, then its row numbers (int64)
    <name>/sizes.npy       int64[L]: the number of rows in each list
    <name>/captured_at.npy int64[N]: UTC microseconds; rows are sorted by stream and time
    <name>/file.npy        int32[N]: the file of the table `frames`, as an index into the manifest's list
    <name>/row.npy         int32[N]: the row in that file
    <name>/offset.npy      int64[N]: the byte of that file where the vector begins; −1 where it is not in one piece
    <name>/manifest.json   what the shard contains, with size and checksums of each file; written last

A shard is complete or absent: the manifest is written last, the folder gets its name after that, and opening a shard
compares the sizes and a checksum of samples of each file; `damage` reads them whole. No file is parsed by FAISS: the
lists are raw memory whose sizes this module has checked. Does not know which of its rows still exist.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.columns import digest
from index.files import DAMAGED_ARRAYS, PART, load_array, write_atomically
from index.search.ann.codebook import Codebook

__all__ = ["MANIFEST", "IndexedRows", "Shard", "described_shard", "open_shard", "publish", "write_shard"]

MANIFEST = "manifest.json"
"""The file of a shard that says what it contains; written last."""

_FORMAT = 1
_ARRAYS = {"sizes": np.int64, "captured_at": np.int64, "file": np.int32, "row": np.int32, "offset": np.int64}
_PIECE, _PIECES = 1 << 16, 32
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class IndexedRows:
    """Rows to write into a shard, sorted by stream and time; row i of every array is one frame."""

    streams: Sequence[str]
    """The streams, ascending."""
    stream: NDArray[np.int32]
    """int32[N]: index into `streams`, ascending."""
    captured_at: NDArray[np.int64]
    """int64[N]: UTC microseconds, ascending in each stream."""
    files: Sequence[str]
    """Paths of files below the table `frames`."""
    file: NDArray[np.int32]
    """int32[N]: index into `files`."""
    row: NDArray[np.int32]
    """int32[N]: row in the file."""
    offset: NDArray[np.int64]
    """int64[N]: byte of the file where the vector begins, −1 if it is not in one piece."""
    lists: NDArray[np.int32]
    """int32[N]: the list of each row."""
    codes: NDArray[np.uint8]
    """uint8[N, code_size]."""


class Shard:
    """An opened shard. Any number of threads may search it.

    Attributes:
        name: name of its folder.
        streams: its streams, ascending.
        first: int64[S + 1], the first row of each stream, and the number of rows.
        files: the files whose frames it has.
        captured_at, file, row, offset: see the module.
        begin, end: times of the first and the last frame, UTC microseconds, inclusive.
        far: number of rows in far lists.

    `captured_at`, `file`, `row`, `offset`, `sizes` and what needs them exist after `ready`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        codebook: Codebook,
        fetch: Callable[[], None] | None = None,
    ) -> None:
        self.name, self._folder, self.codebook = folder.name, folder, codebook
        self._sums: Mapping[str, Any] = manifest["files"]
        self.streams: list[str] = list(manifest["streams"])
        self._place = {stream: place for place, stream in enumerate(self.streams)}
        self.files: list[str] = list(manifest["paths"])
        self.first = np.asarray(manifest["first"], np.int64)
        self.begin, self.end = int(manifest["begin"]), int(manifest["end"])
        self.far = int(manifest["far"])
        self._fetch, self._lock = fetch, threading.Lock()
        if fetch is None:
            self._open()

    def ready(self) -> bool:
        """Make its arrays usable, by fetching them if they are in an object store; False if it is damaged or gone."""
        with self._lock:
            if self._fetch is not None:
                try:
                    self._fetch()
                    self._open()
                except DAMAGED_ARRAYS:
                    return False
                self._fetch = None
            return True

    def _open(self) -> None:
        folder, codebook = self._folder, self.codebook
        held = {name: load_array(folder / f"{name}.npy", mapped=True) for name in _ARRAYS}
        self.sizes: NDArray[np.int64] = np.array(held["sizes"])
        self.captured_at: NDArray[np.int64] = held["captured_at"]
        self.file: NDArray[np.int32] = held["file"]
        self.row: NDArray[np.int32] = held["row"]
        self.offset: NDArray[np.int64] = held["offset"]
        rows, width = int(self.first[-1]), codebook.code_size
        fits = len(self.sizes) == codebook.lists and int(self.sizes.sum()) == rows and int(self.sizes.min()) >= 0
        if not fits or any(held[n].shape != (rows,) for n in ("captured_at", "file", "row", "offset")):
            raise ValueError("the arrays of the shard do not fit each other")
        if (
            any(held[name].dtype != dtype for name, dtype in _ARRAYS.items())
            or len(self.first) != len(self.streams) + 1
        ):
            raise ValueError("the arrays of the shard have other types")
        path = folder / "lists.bin"
        if path.stat().st_size != rows * (width + _ID_BYTES):
            raise ValueError("lists.bin has another size")
        lists: Any = faiss.OnDiskInvertedLists()
        lists.nlist, lists.code_size, lists.filename = codebook.lists, width, str(path)
        lists.read_only = True
        lists.totsize = path.stat().st_size
        lists.lists.resize(codebook.lists)
        sizes = self.sizes.astype(np.uint64)  # named, because FAISS gets an address and no reference
        lists.set_all_lists_sizes(faiss.swig_ptr(sizes))
        if rows:
            lists.do_mmap()
        self._lists = lists  # the index has no reference to it
        self._index: Any = codebook.searcher(lists)

    def __len__(self) -> int:
        return int(self.first[-1])

    def most_rows(self, streams: frozenset[str]) -> int:
        """Number of rows of some streams."""
        counts = np.diff(self.first).tolist()
        return sum(count for name, count in zip(self.streams, counts, strict=True) if name in streams)

    def rows_of(self, stream: str, start: int | None, end: int | None) -> tuple[int, int]:
        """The rows, first and after the last, of a stream with start ≤ captured_at < end, UTC microseconds."""
        place = self._place.get(stream)
        if place is None:
            return 0, 0
        low, high = int(self.first[place]), int(self.first[place + 1])
        if start is None and end is None:
            return low, high
        times = self.captured_at[low:high]
        begin = low if start is None else low + int(np.searchsorted(times, start))
        return begin, max(begin, high if end is None else low + int(np.searchsorted(times, end)))

    def stream_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The stream of each row, as an index into `streams`, int64[n]."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def nearest(
        self,
        query: NDArray[np.float32],
        lists: NDArray[np.int64],
        scores: NDArray[np.float32],
        count: int,
        allowed: NDArray[np.uint8] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The rows of some lists with the highest estimates, best first: int64[n], n ≤ count, and estimates float32[n].

        Args:
            query: float32[d], rotated.
            lists: int64[m], the lists to look into.
            scores: float32[m], inner products of the query and their centroids.
            count: largest number of rows.
            allowed: bits of the rows that count, uint8[⌈N / 8⌉], little endian; all when None.
        """
        query, lists = np.ascontiguousarray(query[None]), np.ascontiguousarray(lists[None])
        scores = np.ascontiguousarray(scores[None])
        found, rows = np.empty((1, count), np.float32), np.empty((1, count), np.int64)
        selector = None if allowed is None else faiss.IDSelectorBitmap(allowed)  # type: ignore[call-arg, arg-type]
        options: Any = faiss.IVFRaBitQSearchParameters(nprobe=lists.shape[1], qb=4)  # type: ignore[call-arg]
        if selector is not None:
            options.sel = selector
        arrays = [faiss.swig_ptr(each) for each in (query, lists, scores, found, rows)]
        self._index.search_preassigned_c(1, arrays[0], count, *arrays[1:], False, options, None)
        keep = rows[0] >= 0
        return rows[0][keep], found[0][keep]

    def entries(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The list, int32[N], and the code, uint8[N, code_size], of every row."""
        width, count = self.codebook.code_size, len(self)
        raw = np.memmap(self._folder / "lists.bin", np.uint8, "r") if count else np.zeros(0, np.uint8)
        lists, codes, at = np.empty(count, np.int32), np.empty((count, width), np.uint8), 0
        for number in np.flatnonzero(self.sizes).tolist():
            size = int(self.sizes[number])
            rows = raw[at + size * width : at + size * (width + _ID_BYTES)].view(np.int64)
            codes[rows] = raw[at : at + size * width].reshape(size, width)
            lists[rows] = number
            at += size * (width + _ID_BYTES)
        return lists, codes

    def damage(self) -> str | None:
        """What is wrong with its files, read whole; None if nothing is."""
        for name, facts in self._sums.items():
            try:
                if _checksum(self._folder / name, whole=True) != facts["crc"]:
                    return f"{name} of the index shard {self.name} was changed"
            except OSError as error:
                return f"{name} of the index shard {self.name} cannot be read ({error.strerror})"
        return None

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(int(facts["size"]) for facts in self._sums.values())


def write_shard(root: Path, rows: IndexedRows, codebook: Codebook) -> str:
    """Write a shard below `root`, durably and all at once; returns its name. Raises OSError.

    The same rows of the same codebook have the same name and content, whoever writes them: work that is done twice, as
    clusters do, leaves one shard.
    """
    begin = int(rows.captured_at.min()) if len(rows.captured_at) else 0
    end = int(rows.captured_at.max()) if len(rows.captured_at) else 0
    name = f"{begin // 1_000_000}-{end // 1_000_000}-{digest(codebook.key, *rows.files, len(rows.row))[:12]}"
    folder = root / f"{name}.{secrets.token_hex(4)}{PART}"
    folder.mkdir(parents=True)
    try:
        sizes = np.bincount(rows.lists, minlength=codebook.lists).astype(np.int64)
        order = np.argsort(rows.lists, kind="stable")
        with (folder / "lists.bin").open("wb") as file:
            at = 0
            for size in sizes[sizes > 0].tolist():
                members = order[at : at + size]
                file.write(rows.codes[members].tobytes())
                file.write(members.astype(np.int64).tobytes())
                at += size
            file.flush()
            os.fsync(file.fileno())
        held = {each: getattr(rows, each) for each in ("captured_at", "file", "row", "offset")} | {"sizes": sizes}
        for each, values in held.items():
            with (folder / f"{each}.npy").open("wb") as file:
                np.save(file, np.ascontiguousarray(values, _ARRAYS[each]))
                file.flush()
                os.fsync(file.fileno())
        names = ["lists.bin", *(f"{each}.npy" for each in _ARRAYS)]
        first = np.searchsorted(rows.stream, np.arange(len(rows.streams) + 1)).tolist()
        manifest = {
            "format": _FORMAT,
            "codebook": codebook.key,
            "identity": codebook.identity,
            "streams": list(rows.streams),
            "first": first,
            "paths": list(rows.files),
            "begin": begin,
            "end": end,
            "far": int(sizes[codebook.lists - codebook.far :].sum()),
            "files": {
                each: {
                    "size": (folder / each).stat().st_size,
                    "quick": _checksum(folder / each),
                    "crc": _checksum(folder / each, whole=True),
                }
                for each in names
            },
        }
        write_atomically(folder / MANIFEST, json.dumps(manifest))
        publish(folder, root / name, codebook)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return name


def publish(part: Path, folder: Path, codebook: Codebook) -> None:
    """Give a complete shard its name; one that is there and whole stays in its place. Raises OSError."""
    try:
        os.replace(part, folder)
    except OSError:  # there is one
        if open_shard(folder, codebook) is None:
            shutil.rmtree(folder)
            os.replace(part, folder)
        else:
            shutil.rmtree(part)


def open_shard(folder: Path, codebook: Codebook) -> Shard | None:
    """The shard in a folder; None if it is absent, damaged, or of another codebook: a cache raises no error."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != _FORMAT or manifest["codebook"] != codebook.key:
            return None
        for name, facts in manifest["files"].items():
            path = folder / Path(name).name
            if path.stat().st_size != facts["size"] or _checksum(path) != facts["quick"]:
                return None
        return Shard(folder, manifest, codebook)
    except DAMAGED_ARRAYS:
        return None


def described_shard(folder: Path, data: bytes, codebook: Codebook, fetch: Callable[[Any], None]) -> Shard | None:
    """A shard of which only the manifest is here; None if that is damaged, or of another codebook.

    Args:
        folder: where its files will be.
        data: the manifest.
        codebook: the codebook.
        fetch: called with the manifest's `files` when the shard is used; puts them into `folder`, checked, or raises
            OSError or ValueError.
    """
    try:
        manifest = json.loads(data)
        if manifest["format"] != _FORMAT or manifest["codebook"] != codebook.key:
            return None
        return Shard(folder, manifest, codebook, lambda: fetch(manifest["files"]))
    except DAMAGED_ARRAYS:
        return None


def _checksum(path: Path, *, whole: bool = False) -> int:
    """CRC-32 of a file, or of 32 pieces of it, which a half-copied file does not have."""
    total = 0
    with path.open("rb") as file:
        if whole:
            while piece := file.read(1 << 22):
                total = zlib.crc32(piece, total)
            return total
        size = path.stat().st_size
        for at in np.linspace(0, max(0, size - _PIECE), _PIECES).astype(np.int64).tolist():
            file.seek(at)
            total = zlib.crc32(file.read(_PIECE), total)
    return total
