"""Finding the footage of a stream and a time: a recorded segment, or the file that was ingested.

Recordings are found by the names of their segments (`ingest.segments.names`) in the places that the desk was started
with. An ingested file is found by the address that the store has of it. Everybody who can send a message to Kafka can
put an address into the store, so an address alone opens nothing:

- The file must be a regular file on this machine, below one of `roots` where there are any. That is checked with the
  path of the open file, so a symbolic link or a rename changes nothing.
- Its size, first and last MiB, stream and start must be those by which `ingest` identified it
  (`ingest.chunks.source_digest`), which also tells when it begins.

A stored address that is relative, or whose file was moved, is searched below `roots` too.

This module does not know who may see a stream.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads

from index.delta.row_filter import of_streams
from index.errors import SourceError, UsageError
from index.store import Store
from ingest.chunks import source_digest
from ingest.decoding.sandbox import open_regular
from ingest.file_ingest import SEGMENT_SECONDS
from ingest.live.clip import PlacedSegment, merged, recorded
from ingest.segments.names import NamedSegment

__all__ = ["Footage", "FootageFinder", "RecordedFootage", "SourceFile"]

_DIGEST = re.compile(r"[0-9a-f]{32}")
_KNOWN_FILES = 1_000
_CANDIDATES = 8
"""Most rows of the store that are tried for one time."""
_FILES = 500
"""Most files of one clip."""


@dataclass(frozen=True, slots=True)
class RecordedFootage:
    """Segments of a recording, of one place or of several."""

    stream_id: str
    """The stream."""
    segments: tuple[PlacedSegment, ...]
    """The segments of the wanted time, ascending, at least one."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An ingested file, which is still as it was when it was ingested."""

    stream_id: str
    """The stream."""
    path: Path
    """Where it is, without symbolic links."""
    source: str
    """What identifies it in the store."""
    began: int
    """Time of its first frame, UTC microseconds."""
    clock: str
    """The source of that time."""

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file, open for reading. Raises SourceNotFound, NotVideo."""
        descriptor = open_regular(self.path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


Footage = RecordedFootage | SourceFile


@dataclass(frozen=True, slots=True)
class _Row:
    source: str
    chunk: int
    uri: str
    start: int
    end: int
    clock: str


class FootageFinder:
    """Finds footage. Any number of threads may use it.

    Args:
        store: the store whose frames are of the footage.
        recordings: URLs of folders or buckets of recordings, see `ingest.live.recorder.folder_url`.
        roots: folders below which ingested files may be opened; None for everywhere, which suits a single user, and an
            empty list for nowhere.
    """

    def __init__(self, store: Store, recordings: Sequence[str] = (), roots: Sequence[Path] | None = None) -> None:
        self.store, self.recordings = store, tuple(recordings)
        self.roots = None if roots is None else tuple(Path(os.path.realpath(root)) for root in roots)
        self._known: OrderedDict[tuple[object, ...], int] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, stream_id: str, start: int, end: int) -> Footage | None:
        """The footage of a stream from `start` on, UTC microseconds: recordings first; None if there is none.

        Args:
            stream_id: the stream, which the caller must be allowed to see.
            start: the time that is wanted most.
            end: the end of the time that is wanted, exclusive.
        """
        return self.find_recording(stream_id, start, end) or self.find_file(stream_id, start, end)

    def find_recording(self, stream_id: str, start: int, end: int) -> RecordedFootage | None:
        """The recorded segments of [start, end), UTC microseconds, from all places that have some; None without any.

        A place that cannot be read is left out.
        """
        found: list[tuple[str, list[NamedSegment]]] = []
        for place in self.recordings:
            with suppress(SourceError, UsageError):
                found.append((place, recorded(place, stream_id, start, end)))
        parts = merged(found, start, end)
        return RecordedFootage(stream_id, tuple(parts)) if parts else None

    def find_file(self, stream_id: str, start: int, end: int) -> SourceFile | None:
        """The ingested file that has the first footage of [start, end), UTC microseconds; None if it is not there."""
        if self.roots == ():
            return None
        for row in self._rows(stream_id, start, end)[:_CANDIDATES]:
            for candidate in self._places(row.uri):
                if (found := self._verified(stream_id, row, candidate)) is not None:
                    return found
        return None

    def find_files(self, stream_id: str, start: int, end: int) -> list[SourceFile]:
        """The ingested files with footage of [start, end), UTC microseconds, that are there, by their begin."""
        if self.roots == ():
            return []
        found: dict[str, SourceFile] = {}
        for row in self._rows(stream_id, start, end):
            if row.source in found or len(found) >= _FILES:
                continue
            verified = (self._verified(stream_id, row, candidate) for candidate in self._places(row.uri))
            if (file := next((each for each in verified if each is not None), None)) is not None:
                found[row.source] = file
        return sorted(found.values(), key=lambda file: file.began)

    def _rows(self, stream_id: str, start: int, end: int) -> list[_Row]:
        """The segments of ingested files in a stretch of time."""
        kind = pa.timestamp("us", "UTC")
        where = of_streams([stream_id]) & (
            (pads.field("start") < pa.scalar(end, kind)) & (pads.field("end") > pa.scalar(start, kind))
        )
        names = ["source", "chunk", "uri", "start", "end", "clock_source"]
        table = self.store.tables.segments.read(names, where)
        for name in ("start", "end"):
            table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.int64()))
        rows = [_Row(*(row[name] for name in names)) for row in table.to_pylist()]
        return sorted((row for row in rows if _DIGEST.fullmatch(row.source)), key=lambda row: (row.start, row.source))

    def _places(self, uri: str) -> Iterator[Path]:
        """Where the file of a stored address may be."""
        text = uri.removeprefix("file://")
        if "://" in text or "\0" in text or not text:
            return
        path = Path(text)
        yield path.absolute()
        for root in self.roots or ():
            if not path.is_absolute():
                yield root / path
            yield root / path.name

    def _verified(self, stream_id: str, row: _Row, path: Path) -> SourceFile | None:
        try:
            descriptor = open_regular(path)
        except (SourceError, ValueError):
            return None
        try:
            real, state = _real_path(descriptor, path), os.fstat(descriptor)
            if self.roots is not None and not any(real.is_relative_to(root) for root in self.roots):
                return None
            key = (stream_id, row.source, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            with self._lock:
                began = self._known.get(key)
            if began is None:
                began = self._identified(descriptor, stream_id, row)
            if began is None:
                return None
            with self._lock:
                self._known[key] = began
                while len(self._known) > _KNOWN_FILES:
                    self._known.popitem(last=False)
            return SourceFile(stream_id, real, row.source, began, row.clock)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _identified(self, descriptor: int, stream_id: str, row: _Row) -> int | None:
        """The time of the first frame of an open file, UTC microseconds, if it is the one that a row is of."""
        opened = Path(f"/dev/fd/{descriptor}")
        if row.clock == "mtime" and source_digest(opened, stream_id, None) != row.source:
            return None
        for began in self._beginnings(stream_id, row):
            if row.clock == "mtime" or source_digest(opened, stream_id, began) == row.source:
                return began
        return None

    def _beginnings(self, stream_id: str, row: _Row) -> list[int]:
        """Times at which the file of a row may begin, the surest first.

        Without its first chunk, whose row retention may have deleted, the length of a chunk is that of the row, unless
        it is the last one: then that of another row, or the default of `ingest`.
        """
        if row.chunk == 0:
            return [row.start]
        where = of_streams([stream_id]) & (pads.field("source") == row.source)
        table = self.store.tables.segments.read(["chunk", "start"], where)
        starts = dict(zip(table["chunk"].to_pylist(), table["start"].cast(pa.int64()).to_pylist(), strict=True))
        if 0 in starts:
            return [starts[0]]
        lengths = [(row.start - at) // (row.chunk - chunk) for chunk, at in starts.items() if chunk != row.chunk]
        lengths += [row.end - row.start, SEGMENT_SECONDS * 1_000_000]
        return list(dict.fromkeys(row.start - row.chunk * length for length in lengths))


def _real_path(descriptor: int, path: Path) -> Path:
    """The path of an open file without symbolic links."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:  # not Linux
        real = Path(os.path.realpath(path))
        if not os.path.samestat(os.stat(real), os.fstat(descriptor)):
            raise OSError("the file was replaced") from None
        return real
