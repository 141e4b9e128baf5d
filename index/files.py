"""Files on a local disk: atomic and durable writes, and the folder of the user's caches.

A file that is written here is never seen half-written. `write_atomically` and `atomic_file` write a temporary file in
the folder of the target, sync it, rename it to the target, and sync the folder. What that promises:

- While it runs, and if the process is killed: a reader sees the whole old content (or no file, if there was none) or
  the whole new content, never a mixture and never an empty file.
- After it returns: the new content survives a power cut, provided that the disk and the file system honour `fsync`.
- Power cut while it runs: after the restart there is the old content or the new content, whole.
- If it raises: the target is unchanged and the temporary file is removed. One exception: an error while the folder is
  synced is raised after the rename, so the new content is visible but may not survive a power cut.

With `durable=False` both syncs are left out. Readers and killed processes see the same as above, but after a power cut
the target may be old, absent, empty or damaged. This is for caches and for status files that are written every second.

A process that is killed leaves its temporary file behind: `<name>.<8 hex digits>.part`, beside the target. Whoever owns
the folder may delete files that end in `PART` when no writer is active. Two concurrent writers of one target use two
temporary files; the last rename wins.

This module does not know what the files mean, and nothing of object stores, which show an object only when it is whole.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from numpy.typing import NDArray

__all__ = [
    "DAMAGED_ARRAYS",
    "PART",
    "atomic_file",
    "cache_folder",
    "load_array",
    "load_arrays",
    "write_atomically",
]

PART = ".part"
"""Ending of the name of a temporary file."""

DAMAGED_ARRAYS = (
    *(OSError, ValueError, TypeError, LookupError, EOFError, AttributeError, RuntimeError, MemoryError),
    *(SyntaxError, tokenize.TokenError),  # numpy parses the header of an array as code
    *(struct.error, zipfile.BadZipFile, zlib.error),
)
"""What `load_array` and `load_arrays` raise, and what reads their result, if a file is absent or damaged."""

_PARSER = threading.Lock()
"""Held while numpy parses the headers of arrays, as Python code: CPython counts the depth of the syntax tree once for
all threads, and raises SystemError if another thread parses in between (seen with 3.11)."""


def load_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array of a .npy file, as `numpy.load` returns it without pickles; any number of threads may call it.

    Args:
        path: the file.
        mapped: map it into memory, to be read only.

    Raises:
        one of DAMAGED_ARRAYS: the file is absent or damaged.
    """
    with _PARSER:
        found: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return found


def load_arrays(file: Path | BinaryIO, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The named arrays of a .npz file, all when None; otherwise like `load_array`."""
    with _PARSER, np.load(file, allow_pickle=False) as held:
        return {name: held[name] for name in (held.files if names is None else names)}


def write_atomically(
    path: str | Path,
    data: bytes | str | Callable[[BinaryIO], object],
    *,
    parents: bool = False,
    durable: bool = True,
) -> None:
    """Replace the content of a file, or create the file: all or nothing.

    The module's docstring says what survives a crash. The new file has the permissions of any newly created file (it
    does not inherit those of the file it replaces); a symbolic link at `path` is replaced, not followed.

    Args:
        path: the file to write.
        data: the content: bytes, a string (written as UTF-8, line ends unchanged), or a function that writes the
            content into the binary file it is given and does not close it.
        parents: create missing parent folders, whose entries are then durable too.
        durable: wait until file and folder are on the disk; `False` for what may be lost in a power cut.

    Raises:
        OSError: the file cannot be written (`errno.ENOSPC`: no space left). The caller, who knows what the file means,
            translates it into an error of `index.errors`.
    """
    with atomic_file(path, parents=parents, durable=durable) as part, part.open("xb") as file:
        if callable(data):
            data(file)
        else:
            file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: str | Path, *, parents: bool = False, durable: bool = True) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends without an error: for libraries that write to a path.

    The block must create a regular file there and close it. Promises and arguments are those of `write_atomically`.

    Yields:
        The path of the temporary file, in the folder of `path`; nothing is there yet.

    Raises:
        OSError: the file cannot be synced or renamed, or the block created none.
    """
    path = Path(path)
    if parents:
        _make_folder(path.parent, durable)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        if durable:
            _sync(part, os.O_RDONLY)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def cache_folder() -> Path:
    """The folder of Sightline's caches of this user: `$XDG_CACHE_HOME/sightline`, else what the platform prescribes.

    On Linux that is `~/.cache/sightline`. The folder may not exist yet. Everything in it can be deleted at any moment.
    """
    return Path(platformdirs.user_cache_dir("sightline", appauthor=False))


def _make_folder(folder: Path, durable: bool) -> None:
    """Create a folder and its missing parents; if durable, sync every folder that received an entry."""
    missing = []
    place = folder
    while not place.exists():
        missing.append(place)
        place = place.parent
    folder.mkdir(parents=True, exist_ok=True)
    if durable:
        for made in reversed(missing):
            _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable; some network file systems cannot, and do it by themselves."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
