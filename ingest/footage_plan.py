"""The plan of a run over files: which file belongs to which stream and begins when, before anything is stored.

Names are read by `ingest.sources.naming`. Two files that claim the same seconds of one stream with different content
are two cameras with one name, and the seconds of the second would be dropped as repeats; the plan finds them and stops.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path, PurePath

from index.errors import SourceError, StreamConflict, UsageError, mask_url
from index.records import rfc3339
from index.schemas import check_stream_id
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.sources.files import expand
from ingest.sources.naming import FileName, NamePattern, Overlap, printable, read_name, recognize_layout, time_zone
from ingest.sources.start_time import find_start

__all__ = ["FootagePlan", "PlannedFile", "plan_footage"]

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file."""

    source: str
    """Path or URL."""
    shown: str
    """The same as text for people and for the store: credentials masked, bytes that are no UTF-8 escaped."""
    name: FileName
    """Its stream, and what its name says of time."""


@dataclass(slots=True)
class FootagePlan:
    """Every file of a run, in the order in which they are read."""

    files: list[PlannedFile] = field(default_factory=list)
    """Files to read."""
    problems: list[tuple[str, SourceError]] = field(default_factory=list)
    """Sources that cannot be read, with the error."""
    skipped: list[str] = field(default_factory=list)
    """Files of folders that are passed over, each with the reason."""
    layout: str | None = None
    """The recorder whose layout of names all files have."""


def plan_footage(
    sources: Sequence[str | Path],
    *,
    stream: str | None = None,
    start: datetime | None = None,
    names: str | None = None,
    timezone: str | None = None,
    overlap: Overlap = "error",
    limits: DecodeLimits | None = None,
) -> FootagePlan:
    """List the files of `sources` and read their names.

    Args:
        sources: files, folders, globs and URLs.
        stream: the stream of all files; by their names when None.
        start: UTC time of the first frame; for a single file.
        names: pattern of the names, see `ingest.sources.naming.NamePattern`.
        timezone: IANA name of the zone of times in names without an offset; UTC when None.
        overlap: what happens where two files claim the same seconds of a stream.
        limits: bounds of the decoder process that looks into files whose names do not tell enough.

    Raises:
        UsageError: `start` for several files, an invalid stream id, pattern or zone, a name that does not match.
        StreamConflict: two files claim the same seconds of one stream with different content, and `overlap` is `error`.
    """
    if stream is not None:
        check_stream_id(stream)
    pattern, zone = None if names is None else NamePattern.parse(names), time_zone(timezone)
    expansion = expand(sources)
    if start is not None and len(expansion.files) > 1:
        raise UsageError(
            f"--start applies to one file, the sources have {len(expansion.files)}; put the times into the file names"
        )
    plan = FootagePlan(problems=expansion.problems, skipped=expansion.skipped)
    plan.layout = recognize_layout(expansion.files) if pattern is None else None
    for source in expansion.files:
        absolute = source if "://" in source else str(Path(source).absolute())
        name = read_name(absolute, pattern=pattern, layout=plan.layout, zone=zone)
        name = replace(name, stream=stream or check_stream_id(name.stream))
        plan.files.append(PlannedFile(source, mask_url(printable(source)), name))
    if overlap == "error":
        _check_overlaps(plan.files, start, limits)
    elif overlap == "last":
        plan.files.reverse()
    return plan


@dataclass(frozen=True, slots=True)
class _Claim:
    """The seconds of a stream that one file claims."""

    file: PlannedFile
    start: float
    end: float
    content: str


def _check_overlaps(files: Sequence[PlannedFile], start: datetime | None, limits: DecodeLimits | None) -> None:
    streams: dict[str, list[PlannedFile]] = defaultdict(list)
    for file in files:
        streams[file.name.stream].append(file)
    for name, members in streams.items():
        if len(members) < 2 or _follow_each_other(members):
            continue
        claims = sorted(filter(None, (_claim(file, start, limits) for file in members)), key=lambda claim: claim.start)
        for one, other in pairwise(claims):
            shared = min(one.end, other.end) - other.start
            shorter = min(one.end - one.start, other.end - other.start)
            if shared > max(2.0, shorter / 2) and one.content != other.content:
                begin, end = rfc3339(round(other.start * 1e6)), rfc3339(round(min(one.end, other.end) * 1e6))
                raise StreamConflict(
                    f"{one.file.shown} and {other.file.shown} both claim stream {name} from {begin} to {end}, with "
                    "different content; nothing was stored. Tell the streams apart with --names or --stream, or choose "
                    "with --overlap first or --overlap last"
                )


def _follow_each_other(members: Sequence[PlannedFile]) -> bool:
    """Whether these are one recorder's files by their names alone: one folder, and a start of its own for each."""
    starts = {file.name.start for file in members}
    folders = {PurePath(file.source).parent for file in members}
    return None not in starts and len(starts) == len(members) and len(folders) == 1


def _claim(file: PlannedFile, start: datetime | None, limits: DecodeLimits | None) -> _Claim | None:
    """What a local file claims. A remote one is not fetched for it: only a start in its name counts, as one second."""
    if "://" in file.source:
        if file.name.start is None:
            return None
        at = file.name.start.timestamp()
        return _Claim(file, at, at + 4.0, file.source)
    path = Path(file.source)
    try:
        with Decoding(path, name=file.shown, limits=(limits or DecodeLimits()).in_software()) as decoding:
            info = decoding.info()
        found = find_start(path, given=start, created=info.created, named=file.name, duration=info.duration)
    except SourceError:
        return None  # reading it tells why
    began = found.micros / 1e6
    return _Claim(file, began, began + (info.duration or 1.0), _content(path))


def _content(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_MIB))
        file.seek(max(0, size - _MIB))
        digest.update(file.read(_MIB))
    return digest.hexdigest()
