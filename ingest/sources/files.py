"""Where footage is: files, folders, globs, http(s) and object-store URLs, and what may be read at all."""

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
_BLOCK = 8 * 2**20
_PATIENCE_SECONDS = 60.0  # for a server that accepts and then says nothing


@dataclass(slots=True)
class Expansion:
    """The files that sources name, and what of them could not be taken, with reasons."""

    files: list[str] = field(default_factory=list)
    problems: list[tuple[str, SourceError]] = field(default_factory=list)


def expand(sources: Sequence[str | Path]) -> Expansion:
    """Every file that `sources` (file, folder, glob or URL) name, in a stable order, each once.

    In a folder everything that has not the suffix of a video is passed over; a file that is named outright is always
    tried. A source that cannot be read becomes a problem, not an exception.
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
            f"{mask_url(source)}: {scheme}:// is not among the schemes that may be read ({', '.join(sorted(SCHEMES))})"
        )
    if scheme and scheme != "file":
        return _expand_remote(source, scheme)
    path = Path(source.removeprefix("file://")).expanduser()
    try:
        if path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
            if not found:
                raise SourceNotFound(f"{path}: no video files in this folder")
            return found
        if path.exists():
            return [str(path)]
    except PermissionError:
        raise SourceNotFound(f"{path}: no permission to read it; run as a user who may, or change its mode") from None
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
        raise SourceNotFound(f"{mask_url(source)}: nothing there")
    return [name if "://" in name else f"{scheme}://{name}" for name in sorted(names)]


@contextmanager
def fetched(source: str) -> Iterator[Path]:
    """A local path of one file; what is remote is copied to a temporary file for as long as the block lasts.

    Raises:
        SourceNotFound: it is not there or may not be read. SourceDenied: its scheme is not allowed.
    """
    if "://" not in source or source.startswith("file://"):
        path = Path(source.removeprefix("file://")).expanduser()
        try:
            with path.open("rb"):
                pass
        except IsADirectoryError:
            raise SourceNotFound(f"{path}: is a folder; name a file in it") from None
        except PermissionError:
            raise SourceNotFound(
                f"{path}: no permission to read it; run as a user who may, or change its mode"
            ) from None
        except OSError as error:
            raise SourceNotFound(f"{path}: {error.strerror or error}") from None
        yield path
        return
    shown = mask_url(source)
    if urlsplit(source).scheme not in SCHEMES:
        raise SourceDenied(f"{shown}: this scheme may not be read; use one of {', '.join(sorted(SCHEMES))}")
    name = Path(urlsplit(source).path).name or "video"
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / name
        _copy(source, path)
        yield path


def _copy(source: str, path: Path) -> None:
    """The whole of a remote file, with the time it was last changed, where that is known: it may have to be its clock."""
    import fsspec

    shown, copied = mask_url(source), 0
    options: dict[str, Any] = {}
    if urlsplit(source).scheme in ("http", "https"):
        import aiohttp

        patience = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE_SECONDS, sock_read=_PATIENCE_SECONDS)
        # One request for the whole: not every server answers for ranges.
        options = {"client_kwargs": {"timeout": patience}, "block_size": 0}
    try:
        with fsspec.open(source, "rb", **options) as remote, path.open("wb") as local:
            while block := remote.read(_BLOCK):
                copied += len(block)
                if copied > _MAX_BYTES:
                    raise SourceNotFound(f"{shown}: larger than {_MAX_BYTES} bytes; split it")
                local.write(block)
            changed = _changed(remote.fs.info(remote.path))
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"{shown}: nothing there, or nobody answers; check the address") from None
    except PermissionError:
        raise SourceNotFound(f"{shown}: no permission to read it; check the credentials") from None
    except Exception as error:  # every file system of fsspec brings its own kind
        said = mask_url(str(error) or type(error).__name__).splitlines()[0]
        raise SourceNotFound(f"{shown}: cannot be fetched ({said}); try again") from None
    if changed is not None:
        os.utime(path, (changed, changed))


def _changed(details: dict[str, Any]) -> float | None:
    """Seconds since 1970 of a remote file's last change: a datetime in object stores, an HTTP date elsewhere."""
    known = details.get("LastModified") or details.get("last_modified") or details.get("Last-Modified")
    try:
        return (parsedate_to_datetime(known) if isinstance(known, str) else known).timestamp() if known else None
    except (ValueError, TypeError, AttributeError):
        return None
