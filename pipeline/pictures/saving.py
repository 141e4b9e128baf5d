"""Files that results are saved as. An existing file is never replaced without the user's word.

The name of a frame's file is `<stream>_<time>.jpg`, `gate_2024-03-01T08-00-07Z.jpg`. Names of streams have letters of
any script, `.`, `_` and `-`; here the letters that file systems treat differently (capitals, accents, everything
outside ASCII) are percent-encoded, so that two streams never share a file, on any file system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from index.columns import digest
from index.errors import UsageError
from index.files import write_atomically
from index.records import from_micros
from pipeline.pictures.stored import FrameKey

__all__ = ["Outputs", "check_new", "frame_file_name", "save_file", "save_frames"]

_LONGEST_NAME = 180  # characters of a stream's name in a file's name, of which file systems take 255


def frame_file_name(stream_id: str, at: int) -> str:
    """The name of the file of a frame at `at`, UTC microseconds; microseconds are in the name unless they are 0."""
    when = from_micros(at)
    fraction = f".{when.microsecond:06d}" if when.microsecond else ""
    plain = "".join(map(_portable, stream_id))
    if len(plain) > _LONGEST_NAME:
        plain = f"{plain[: _LONGEST_NAME - 17]}-{digest(stream_id)[:16]}"
    return f"{plain}_{when:%Y-%m-%dT%H-%M-%S}{fraction}Z.jpg"


def _portable(letter: str) -> str:
    """A letter of a stream's name, percent-encoded unless every file system keeps it apart from all others."""
    return f"%{ord(letter):02X}" if letter.isascii() and letter.isupper() else quote(letter, safe="")


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files that the user wants of a result."""

    html: Path | None = None
    """Report, `.html`."""
    sheet: Path | None = None
    """Contact sheet, `.jpg`."""
    frames: Path | None = None
    """Folder for the pictures."""
    force: bool = False
    """Replace existing files."""

    @property
    def wanted(self) -> bool:
        """Whether there is any file to write."""
        return any(place is not None for place in (self.html, self.sheet, self.frames))

    def check(self) -> Outputs:
        """Check the places before the work begins; returns itself. Raises UsageError as `check_new`."""
        if self.html is not None:
            check_new(self.html, "--html", (".html", ".htm"), force=self.force)
        if self.sheet is not None:
            check_new(self.sheet, "--sheet", (".jpg", ".jpeg"), force=self.force)
        if self.frames is not None and self.frames.exists() and not self.frames.is_dir():
            raise UsageError(f"--save-frames {self.frames}: not a folder")
        return self


def check_new(path: Path, option: str, suffixes: Iterable[str], *, force: bool = False) -> None:
    """Check a file that is written later, before the work that it shows begins.

    Raises:
        UsageError: the file exists and `force` is not set, it has another suffix, or its folder does not exist.
    """
    allowed = tuple(suffixes)
    if path.suffix.lower() not in allowed:
        raise UsageError(f"{option} {path}: name the file {' or '.join(allowed)}")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: {'is a folder' if path.is_dir() else f'no folder {path.parent}'}")
    if path.exists() and not force:
        raise UsageError(f"{option} {path}: the file exists; choose another name, or pass --force to replace it")


def save_file(path: Path, data: bytes | str, option: str) -> Path:
    """Write a file, all or nothing. Raises UsageError if it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from None
    return path


def save_frames(folder: Path, pictures: Mapping[FrameKey, bytes], *, force: bool = False) -> list[Path]:
    """Write pictures of frames into a folder, which is created when it is missing; returns the files, ascending.

    A file that has the same content already is left alone.

    Raises:
        UsageError: a file of that name has other content and `force` is not set; nothing is written then. Or the
            folder cannot be written to.
    """
    files = {folder / frame_file_name(stream, at): jpeg for (stream, at), jpeg in sorted(pictures.items())}
    try:
        held = {path for path in files if path.exists()}
        other = next((path for path in sorted(held) if path.read_bytes() != files[path]), None)
        if other is not None and not force:
            raise UsageError(
                f"--save-frames: {other} exists with other content; choose another folder, or pass --force"
            )
        for path, jpeg in files.items():
            write_atomically(path, jpeg, parents=True)
    except OSError as error:
        raise UsageError(f"--save-frames {folder}: cannot be written ({error.strerror or error})") from None
    return list(files)
