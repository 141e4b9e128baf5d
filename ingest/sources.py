"""Where footage is: files, folders, globs, http(s) and object-store URLs, and what may be read at all."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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
    import fsspec

    name = Path(urlsplit(source).path).name or "video"
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / name
        try:
            with fsspec.open(source, "rb") as remote, path.open("wb") as local:
                copied = 0
                while block := remote.read(_BLOCK):
                    copied += len(block)
                    if copied > _MAX_BYTES:
                        raise SourceNotFound(f"{shown}: larger than {_MAX_BYTES} bytes; split it")
                    local.write(block)
        except SourceError:
            raise
        except Exception as error:  # every file system of fsspec brings its own kind
            raise SourceNotFound(f"{shown}: cannot be fetched ({mask_url(str(error))})") from None
        yield path
