"""Sources that a user names: files, folders, globs, http(s) and object-store URLs.

`expand` lists the files that sources name, `fetched` makes one of them available as a local file. Remote files are read
through fsspec. The user is trusted: the URL policy (`ingest.sources.url_policy`) does not apply here.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from index.errors import SourceDenied, SourceError, SourceNotFound, mask_url

__all__ = ["SCHEMES", "VIDEO_SUFFIXES", "Expansion", "expand", "fetched"]

VIDEO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "m2ts", "mts", "mpg", "mpeg", "flv"),
        *("wmv", "3gp", "asf", "h264", "264", "hevc", "265", "mxf", "ogv"),
    )
)
SCHEMES = frozenset({"file", "http", "https", "s3", "gs", "gcs", "az", "abfs"})
_MAX_BYTES = 200 * 2**30
_BLOCK_BYTES = 8 * 2**20
TIMEOUT_SECONDS = 60.0
"""Longest wait for an HTTP server to accept a connection, or to send the next bytes."""


@dataclass(slots=True)
class Expansion:
    """The files that sources name."""

    files: list[str] = field(default_factory=list)
    """Paths and URLs, each once."""
    problems: list[tuple[str, SourceError]] = field(default_factory=list)
    """Sources that cannot be read, credentials masked, with the error."""


def expand(sources: Sequence[str | Path]) -> Expansion:
    """List the files that `sources` (files, folders, globs or URLs) name, in a stable order.

    In a folder, only files with a suffix in `VIDEO_SUFFIXES` count; a file that is itself a source always counts. A
    source that cannot be read becomes a problem; nothing is raised.
    """
    result = Expansion()
    for source in sources:
        try:
            for name in _expand(str(source)):
                if name not in result.files:
                    result.files.append(name)
        except SourceError as error:
            result.problems.append((mask_url(str(source)), error))
    return result


def _expand(source: str) -> list[str]:
    scheme = urlsplit(source).scheme if "://" in source else ""
    if scheme and scheme not in SCHEMES:
        raise SourceDenied(
            f"{mask_url(source)}: {scheme}:// is not one of the supported schemes ({', '.join(sorted(SCHEMES))})"
        )
    if scheme and scheme != "file":
        return _expand_remote(source, scheme)
    path = Path(source.removeprefix("file://")).expanduser()
    try:
        if path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
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


def _expand_remote(source: str, scheme: str) -> list[str]:
    if scheme in ("http", "https") and not glob.has_magic(urlsplit(source).path):
        return [source]
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(source)
        if glob.has_magic(path):
            names = system.glob(path)
        elif system.isdir(path):
            names = [n for n in system.find(path) if Path(n).suffix.lower() in VIDEO_SUFFIXES]
        else:
            names = [path]
    except (OSError, ImportError, ValueError) as error:
        raise SourceNotFound(f"{mask_url(source)}: cannot be listed ({mask_url(str(error))})") from None
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
        SourceDenied: the scheme of the URL is not one of `SCHEMES`.
    """
    if "://" not in source or source.startswith("file://"):
        path = Path(source.removeprefix("file://")).expanduser()
        try:
            with path.open("rb"):
                pass
        except IsADirectoryError:
            raise SourceNotFound(f"{path}: is a folder; name a file in it") from None
        except PermissionError:
            raise SourceNotFound(f"{path}: no permission to read it; change its mode, or run as another user") from None
        except OSError as error:
            raise SourceNotFound(f"{path}: {error.strerror or error}") from None
        yield path
        return
    shown = mask_url(source)
    if urlsplit(source).scheme not in SCHEMES:
        raise SourceDenied(f"{shown}: the scheme is not one of the supported ones ({', '.join(sorted(SCHEMES))})")
    name = Path(urlsplit(source).path).name or "video"
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / name
        _copy(source, path)
        yield path


def _copy(source: str, path: Path) -> None:
    """Copy a remote file and its modification time, if that is known: it can be the only source of the start time."""
    import fsspec

    shown, copied = mask_url(source), 0
    options: dict[str, Any] = {}
    if urlsplit(source).scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS)
        # One request for the whole file: not every server supports ranges.
        options = {"client_kwargs": {"timeout": timeout}, "block_size": 0}
    try:
        with fsspec.open(source, "rb", **options) as remote, path.open("wb") as local:
            while block := remote.read(_BLOCK_BYTES):
                copied += len(block)
                if copied > _MAX_BYTES:
                    raise SourceNotFound(f"{shown}: the file has more than {_MAX_BYTES} bytes; split it")
                local.write(block)
            modified = _modified(remote.fs.info(remote.path))
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"{shown}: no such file, or no server at this address; check the address") from None
    except PermissionError:
        raise SourceNotFound(f"{shown}: no permission to read it; check the credentials") from None
    except Exception as error:  # each fsspec file system raises its own exception types
        reason = mask_url(str(error) or type(error).__name__).splitlines()[0]
        raise SourceNotFound(f"{shown}: cannot be fetched ({reason}); try again") from None
    if modified is not None:
        os.utime(path, (modified, modified))


def _modified(details: dict[str, Any]) -> float | None:
    """Modification time of a remote file in seconds since 1970: a datetime in object stores, an HTTP date elsewhere."""
    known = details.get("LastModified") or details.get("last_modified") or details.get("Last-Modified")
    try:
        return (parsedate_to_datetime(known) if isinstance(known, str) else known).timestamp() if known else None
    except (ValueError, TypeError, AttributeError):
        return None
