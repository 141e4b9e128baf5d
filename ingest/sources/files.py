"""Sources that a user names: files, folders, globs, http(s) and object-store URLs.

`expand` lists the files that sources name, `fetched` makes one of them available as a local file. http(s) URLs are read
under the operator's URL policy (`ingest.sources.url_policy`): what the user names may be in a private network, what a
public server redirects to may not. Object stores are read through fsspec.
"""

from __future__ import annotations

import glob
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from index.delta.objects import file_system, object_reason, open_object
from index.errors import SourceDenied, SourceError, SourceNotFound, mask_url
from ingest.sources.http_listing import http_glob
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import UrlPolicy, split_url

__all__ = ["SCHEMES", "VIDEO_SUFFIXES", "Expansion", "expand", "fetched"]

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "divx", "ts", "m2ts", "mts", "trp", "mpg", "mpeg", "m1v", "m2v"),
        *("vob", "ps", "flv", "f4v", "wmv", "asf", "3gp", "3g2", "h264", "264", "avc", "h265", "265", "hevc", "mjpeg"),
        *("mjpg", "dav", "insv", "lrv", "mxf", "ogv", "ogm", "ivf", "y4m", "dv", "nut", "gif"),
    )
)
SCHEMES = frozenset({"file", "http", "https", "s3", "gs", "gcs", "az", "abfs"})
_MAX_BYTES = 200 * 2**30
_BLOCK_BYTES = 8 * 2**20
TIMEOUT_SECONDS = 60.0
"""Longest wait for an HTTP server to accept a connection, or to send the next bytes."""
_HTTP = frozenset({"http", "https"})


@dataclass(slots=True)
class Expansion:
    """The files that sources name."""

    files: list[str] = field(default_factory=list)
    """Paths and URLs, each once."""
    problems: list[tuple[str, SourceError]] = field(default_factory=list)
    """Sources that cannot be read, credentials masked, with the error."""
    skipped: list[str] = field(default_factory=list)
    """Files in folders that are passed over, each with the reason, and folders that are links to one listed before."""


def expand(sources: Sequence[str | Path]) -> Expansion:
    """List the files that `sources` (files, folders, globs or URLs) name, in a stable order.

    In a folder, only files with a suffix in `VIDEO_SUFFIXES` count, and links to folders are followed; a file that is
    itself a source always counts. A file that exists is never taken for a pattern. A source that cannot be read becomes
    a problem;
    nothing is raised.
    """
    result, seen = Expansion(), set[str]()
    for source in sources:
        try:
            result.files += [name for name in _expand(str(source), result.skipped) if name not in seen]
            seen.update(result.files)
        except SourceError as error:
            result.problems.append((mask_url(str(source)), error))
    return result


def _expand(source: str, skipped: list[str]) -> list[str]:
    scheme = split_url(source).scheme if "://" in source and not source.startswith("file://") else ""
    if scheme and scheme not in SCHEMES:
        raise SourceDenied(
            f"{mask_url(source)}: {scheme}:// is not one of the supported schemes ({', '.join(sorted(SCHEMES))})"
        )
    if scheme:
        return _expand_remote(source, scheme)
    path = _local(source)
    try:
        if path.is_dir():
            found = sorted(_videos_below(path, skipped))
            if not found:
                raise SourceNotFound(f"{path}: the folder has no video files")
            return found
        if path.exists():
            return [str(path)]
    except PermissionError:
        raise SourceNotFound(f"{path}: no permission to read it; change its mode, or run as another user") from None
    if glob.has_magic(str(path)):
        found = sorted(p for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if found:
            return found
        raise SourceNotFound(f"{path}: the pattern matches no file")
    raise SourceNotFound(f"{path}: no such file or folder")


def _local(source: str) -> Path:
    """The path of a local source. A file URL is decoded, unless a file has the name as it is written."""
    path = Path(source.removeprefix("file://"))
    if source.startswith("file://") and not path.exists():
        path = Path(unquote(source.removeprefix("file://")))
    return path.expanduser()


def _videos_below(folder: Path, skipped: list[str]) -> Iterator[str]:
    """Video files below a folder, with links followed, each folder once: links may form a circle."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            skipped.append(f"{place}: a link to a folder that is listed already")
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith("._"):
                skipped.append(f"{path}: an AppleDouble file, which holds no footage")
            elif path.suffix.lower() not in VIDEO_SUFFIXES:
                skipped.append(f"{path}: not a suffix of video files; name the file itself to read it all the same")
            elif not path.is_file():
                skipped.append(f"{path}: not a regular file")
            else:
                yield str(path)


def _expand_remote(source: str, scheme: str) -> list[str]:
    if "::" in source:
        raise SourceDenied(f"{mask_url(source)}: chained URLs are not read; name the file itself")
    if scheme in _HTTP:
        return http_glob(source, _http_client()) if "*" in split_url(source).path else [source]
    try:
        system, path = file_system(source)
        if glob.has_magic(path) and not system.exists(path):
            names = system.glob(path)
        elif system.isdir(path):
            names = [n for n in system.find(path) if Path(n).suffix.lower() in VIDEO_SUFFIXES]
        else:
            names = [path]
    except Exception as error:  # each file system of fsspec has its own exceptions
        raise SourceNotFound(f"{mask_url(source)}: cannot be listed ({object_reason(error)})") from None
    if not names:
        raise SourceNotFound(f"{mask_url(source)}: no such file; check the address")
    return [name if "://" in name else f"{scheme}://{name}" for name in sorted(names)]


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """A context manager that gives the local path of one file. A remote file is copied, and removed at the end.

    Args:
        source: a path or URL, as in `Expansion.files`.

    Raises:
        SourceNotFound: the file does not exist or cannot be read.
        SourceDenied: the scheme of the URL is not one of `SCHEMES`, its address is reserved, or a public server
        redirects
            to a private one.
    """
    if "://" not in source or source.startswith("file://"):
        path = _local(source)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block for ever
            mode = os.fstat(descriptor).st_mode
            os.close(descriptor)
        except PermissionError:
            raise SourceNotFound(f"{path}: no permission to read it; change its mode, or run as another user") from None
        except OSError as error:
            raise SourceNotFound(f"{path}: {error.strerror or error}") from None
        if stat.S_ISDIR(mode):
            raise SourceNotFound(f"{path}: is a folder; name a file in it")
        if not stat.S_ISREG(mode):
            raise SourceNotFound(f"{path}: not a regular file; name a file, or a folder of files")
        yield path
        return
    shown, parts = mask_url(source), split_url(source)
    if parts.scheme not in SCHEMES or "::" in source.partition("://")[0]:
        raise SourceDenied(f"{shown}: the scheme is not one of the supported ones ({', '.join(sorted(SCHEMES))})")
    name = Path(parts.path).name or "video"
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / name
        # The modification time is copied where it is known: it can be the only source of the start time.
        modified = _copy_http(source, path) if parts.scheme in _HTTP else _copy_object(source, path)
        if modified is not None:
            os.utime(path, (modified, modified))
        yield path


def _http_client() -> PinnedHttp:
    policy = UrlPolicy.operator(schemes=_HTTP, files=False)
    return PinnedHttp(policy, timeout=TIMEOUT_SECONDS, max_bytes=_MAX_BYTES)


def _copy_http(source: str, path: Path) -> float | None:
    """Copy a file in one request, since not every server supports ranges; its modification time, if that is known."""
    try:
        with _http_client().open(source) as remote, path.open("wb") as local:
            while block := remote.read(_BLOCK_BYTES):
                local.write(block)
            return remote.modified
    except SourceError:
        raise
    except OSError as error:
        raise SourceNotFound(f"{mask_url(source)}: cannot be fetched ({error.strerror or error}); try again") from None


def _copy_object(source: str, path: Path) -> float | None:
    """Copy an object; its modification time, if that is known."""
    shown, copied = mask_url(source), 0
    try:
        with open_object(source) as remote, path.open("wb") as local:
            while block := remote.read(_BLOCK_BYTES):
                copied += len(block)
                if copied > _MAX_BYTES:
                    raise SourceNotFound(f"{shown}: the file has more than {_MAX_BYTES} bytes; split it")
                local.write(block)
            return _modified(remote.fs.info(remote.path))
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"{shown}: no such file, or no server at this address; check the address") from None
    except PermissionError:
        raise SourceNotFound(f"{shown}: no permission to read it; check the credentials") from None
    except Exception as error:  # each fsspec file system raises its own exception types
        raise SourceNotFound(f"{shown}: cannot be fetched ({object_reason(error)}); try again") from None


def _modified(details: dict[str, Any]) -> float | None:
    """Modification time of an object in seconds since 1970."""
    known = details.get("LastModified") or details.get("last_modified")
    try:
        return known.timestamp() if known else None
    except (ValueError, TypeError, AttributeError):
        return None
