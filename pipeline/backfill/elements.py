"""Elements of a backfill pipeline: the values that travel from one step to the next, and the settings of every worker.

    Entry ─▶ ProbedFile ─▶ ChunkRange ─▶ StagedRange ─▶ FileResult

A *piece* of work is one `ChunkRange`: consecutive chunks of one file that one worker decodes. All values can be
pickled, because Beam sends them between machines. This module does not know how they are made (`work`) or stored
(`staging`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.chunks import SourceFootage
from ingest.decoding.limits import DecodeLimits

__all__ = ["ChunkRange", "ProbedFile", "StagedRange", "WorkerSettings"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Settings that every worker of a run needs."""

    store: str
    """URL of the store."""
    staging: str
    """URL of the staging folder, which all workers see."""
    profile: str
    """Name of the profile, or the path of its TOML file."""
    device: str | None
    """`cpu`, `cuda`, or None to choose."""
    segment_seconds: int
    """Footage of one chunk."""
    piece_chunks: int
    """Largest number of chunks of one piece of work."""
    limits: DecodeLimits
    """Limits of the decoder's process."""
    threads: int | None = None
    """CPU threads of the models; the library's choice if None."""


@dataclass(frozen=True, slots=True)
class ProbedFile:
    """A file that opens and is not stored completely."""

    order: int
    """Its row in the manifest, from 0."""
    uri: str
    """Path or URL, credentials included."""
    start: int | None
    """Capture time of the first frame as the manifest gives it, UTC microseconds."""
    footage: SourceFootage
    """Identity of the file in the store."""
    mode: str
    """How the file is decoded, judged by its first packets (see `ingest.decoding`)."""
    duration: float | None
    """Seconds of footage according to the container."""
    size: int
    """Bytes of the file."""
    first: int
    """The first chunk that the store lacks."""


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """One piece of work: chunks [first, end) of a file."""

    file: ProbedFile
    """The file."""
    first: int
    """Its first chunk."""
    end: int | None
    """The chunk after its last one; the end of the file if None."""
    group: str
    """Name of its group. One worker commits all files of a group, in the manifest's order."""
    pieces: int
    """Number of pieces in the group."""
    alone: bool
    """Whether it is the only piece of its group: it is then committed without staging."""


@dataclass(frozen=True, slots=True)
class StagedRange:
    """A piece whose frames are in the staging area."""

    piece: ChunkRange
    """The piece."""
    mode: str
    """How the file was decoded at the end of the piece."""
    chunks: tuple[tuple[int, str], ...]
    """Chunk numbers and the URLs of their staged files."""
    kind: str | None = None
    """Class name of the error that ended the decoding."""
    problem: str | None = None
    """Message of that error."""
