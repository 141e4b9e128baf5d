"""Input of a backfill: a manifest of files, or a glob with a pattern that reads stream and time from file names.

A manifest is Parquet, CSV or JSON Lines with the column `uri` and the optional columns `stream` and `start` (RFC 3339,
or a Parquet timestamp with a time zone). Missing values are derived as `sightline ingest` derives them: the stream from
the file's name; the start from the name, the container or the modification time. Paths are relative to the manifest's
folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, field_validator

from index.delta.objects import object_reason, open_object
from index.errors import SightlineError, SourceNotFound, UsageError, mask_url, validation_message
from index.records import ClockFold
from index.schemas import check_stream_id
from ingest.footage_plan import plan_footage
from ingest.sources.files import fetched
from ingest.sources.naming import read_name
from ingest.sources.url_policy import split_url

__all__ = ["Entry", "is_manifest", "read_manifest"]

_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
_MOST_ROWS = 5_000_000
_HTTP = ("http", "https")


class Entry(BaseModel):
    """One file of a backfill."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    uri: str
    """Path or URL of the file."""
    stream: str = ""
    """The stream; derived from the file's name while the manifest is read."""
    start: AwareDatetime | None = None
    """Capture time of the first frame; None if it must come from the footage."""
    name_start: AwareDatetime | None = None
    """The same as the file's name tells it, where reading it takes a pattern, a recorder's layout or a time zone."""
    name_zone: str = ""
    """The zone in which that time was read."""
    name_fold: ClockFold | None = None
    """How that time was read, if daylight saving makes it doubtful."""

    @field_validator("uri")
    @classmethod
    def _some(cls, uri: str) -> str:
        if not uri.strip():
            raise ValueError("the uri is empty")
        return uri

    @field_validator("start", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> Any:
        if value is None or value == "":
            return None
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime):
            raise ValueError(f"{value!r} is not a time; write 2024-03-01T08:00:00Z")
        if moment.tzinfo is None:
            raise ValueError(f"{value} has no time zone; write it with Z for UTC")
        return moment.astimezone(UTC)


def is_manifest(source: str) -> bool:
    """Return whether `source` names a manifest; otherwise it names footage."""
    return source.lower().endswith(_SUFFIXES)


def read_manifest(source: str, *, names: str | None = None, timezone: str | None = None) -> list[Entry]:
    """Read the files of a manifest, or of a folder, glob or URL, in its order.

    Args:
        source: a manifest (local or any URL of fsspec), or footage as `sightline ingest` takes it.
        names: pattern of the file names, for example `{stream}_{start:%Y%m%dT%H%M%S}.mp4` or `{stream}/*.mp4`. It is
            matched against the end of each path; `*` matches anything but a slash. Not allowed for manifests.

    Raises:
        UsageError: a row is invalid, or names a local file in a manifest from a web server, a name does not match, a
        file is named twice, or there are no files; the message
            names the row or file.
        StreamConflict: two files claim the same seconds of one stream with different content.
        SourceNotFound: the manifest or footage does not exist.
    """
    if is_manifest(source):
        if names is not None:
            raise UsageError(
                f"{mask_url(source)} is a manifest and has columns for stream and start; leave --names out"
            )
        entries = list(_from_manifest(source))
    else:
        entries = list(_from_names(source, names, timezone))
    if not entries:
        raise UsageError(f"{mask_url(source)}: names no file")
    return entries


# ---- manifests -------------------------------------------------------------------------------------------------


def _from_manifest(source: str) -> Iterator[Entry]:
    shown = mask_url(source)
    folder = None if "://" in source else Path(source).expanduser().absolute().parent
    seen: dict[str, int] = {}
    for number, row in enumerate(_rows(source), start=1):
        if number > _MOST_ROWS:
            raise UsageError(f"{shown}: more than {_MOST_ROWS} rows; split the manifest")
        try:
            entry = Entry.model_validate({name: value for name, value in row.items() if value is not None})
        except ValidationError as error:
            raise UsageError(f"{shown}: row {number}: {validation_message(error)}") from None
        uri = entry.uri if "://" in entry.uri or folder is None else str(folder / Path(entry.uri).expanduser())
        if split_url(source).scheme in _HTTP and ("://" not in uri or uri.startswith("file:")):
            raise UsageError(f"{shown}: row {number}: a manifest of a web server must not name a local file, {uri}")
        if uri in seen:
            raise UsageError(f"{shown}: row {number}: {mask_url(uri)} is in row {seen[uri]} already; list it once")
        seen[uri] = number
        try:
            stream = check_stream_id(entry.stream or read_name(uri).stream)
        except (UsageError, SourceNotFound) as error:
            raise UsageError(f"{shown}: row {number}: {error}") from None
        yield Entry(uri=uri, stream=stream, start=entry.start)


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if split_url(source).scheme in _HTTP:  # under the URL policy
        with fetched(source) as path, path.open("rb") as file:
            yield file
    else:
        with open_object(source) as file:
            yield file


def _rows(source: str) -> Iterator[Mapping[str, Any]]:

    shown, suffix = mask_url(source), source.lower().rsplit(".", 1)[-1]
    try:
        with _opened(source) as file:
            if suffix == "parquet":
                for batch in pq.ParquetFile(file).iter_batches(batch_size=8192):
                    yield from batch.to_pylist()
            elif suffix == "csv":
                reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
                for row in reader:
                    if None in row or None in row.values():
                        raise UsageError(f"{shown}: line {reader.line_num}: not {len(reader.fieldnames or [])} columns")
                    yield {name.strip(): value for name, value in row.items()}
            else:
                yield from _json_lines(io.TextIOWrapper(file, "utf-8"), shown)
    except UnicodeDecodeError:
        raise UsageError(f"{shown}: not UTF-8 text; save the manifest as UTF-8") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        reason = object_reason(error) if "://" in source else error.strerror or type(error).__name__
        raise SourceNotFound(f"{shown}: no manifest there ({reason}); check --manifest") from None
    except (pa.ArrowException, csv.Error) as error:
        raise UsageError(f"{shown}: not a {suffix} manifest ({str(error).splitlines()[0]})") from None
    except SightlineError:
        raise
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{shown}: not readable ({object_reason(error)})") from None


def _json_lines(lines: Iterator[str] | io.TextIOWrapper, shown: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{shown}: line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{shown}: line {number}: not an object with uri, stream and start")
        yield row


# ---- names -----------------------------------------------------------------------------------------------------


def _from_names(source: str, names: str | None, timezone: str | None) -> Iterator[Entry]:
    plan = plan_footage([source], names=names, timezone=timezone)
    if plan.problems:
        raise plan.problems[0][1]
    for file in plan.files:
        path = file.source if "://" in file.source else str(Path(file.source).absolute())
        name = file.name
        if names is not None or plan.layout or timezone:
            yield Entry(uri=path, stream=name.stream, name_start=name.start, name_zone=name.zone, name_fold=name.fold)
        else:  # its worker reads the name in the same way
            yield Entry(uri=path, stream=name.stream)
