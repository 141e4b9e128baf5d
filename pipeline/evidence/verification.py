"""Verification of evidence bundles: anywhere, without the store.

A bundle is a folder or a ZIP archive. Nothing of it is believed before the signature of its manifest is checked, and
nothing is unpacked: an archive must hold its files uncompressed, under plain names, each once and in a row, so that a
path that leads out of it, or a few bytes that stand for many, have no way in. Every file must be listed, and every
listed file must have the bytes of the list.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from index.errors import EvidenceInvalid, SourceNotFound, shown_text, validation_message
from pipeline.evidence.manifest import MANIFEST, PUBLIC_KEY, SIGNATURE, Manifest, canonical
from pipeline.evidence.signing import VerifyingKey

__all__ = ["Verified", "verify_bundle"]

_MANIFEST_BYTES = 16 * 2**20
_MOST_FILES = 20_000
_SHOWN = 5
_BLOCK = 2**20
_END_RECORD = b"PK\x05\x06"
_END_BYTES = 22


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle that is whole."""

    manifest: Manifest
    """What it says."""
    fingerprint: str
    """The fingerprint of the key that signed it."""
    key_given: bool
    """Whether that key was given to the verification; otherwise it is the one in the bundle, and the fingerprint must
    be compared with that of the installation."""


class _Bundle(Protocol):
    def names(self) -> list[str]:
        """The path of every file."""
        ...

    def size(self, name: str) -> int:
        """The bytes of a file."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file, open for reading."""
        ...


def verify_bundle(path: str | Path, key: VerifyingKey | None = None) -> Verified:
    """Check a bundle.

    Args:
        path: a folder or a ZIP archive.
        key: the key that must have signed it; the one in the bundle when None.

    Raises:
        SourceNotFound: there is nothing at `path`, or it cannot be read.
        EvidenceInvalid: a file is missing, changed or not listed, the manifest was changed, or another key signed it.
    """
    place = Path(path)
    try:
        with _opened(place) as bundle:
            return _verify(bundle, key, str(place))
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # an archive that names places before its start
            raise EvidenceInvalid(f"{place}: a damaged archive") from None
        raise SourceNotFound(f"{place}: cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError) as error:
        raise EvidenceInvalid(f"{place}: a damaged archive ({shown_text(str(error))})") from None


def _verify(bundle: _Bundle, key: VerifyingKey | None, place: str) -> Verified:
    names = bundle.names()
    if len(names) > _MOST_FILES:
        raise EvidenceInvalid(f"{place}: {len(names)} files are more than a bundle has")
    for name in (MANIFEST, SIGNATURE):
        if name not in names:
            raise EvidenceInvalid(f"{place}: not a bundle of evidence, {name} is missing")
    data = _read(bundle, MANIFEST, _MANIFEST_BYTES, place)
    manifest = _parsed(data, place)
    inside = VerifyingKey.parse(manifest.public_key.encode(), name=f"{place}: {MANIFEST}")
    if key is not None and inside.raw != key.raw:
        raise EvidenceInvalid(
            f"{place}: signed with another key, {inside.fingerprint}, than the given one, {key.fingerprint}"
        )
    try:
        signature = base64.b64decode(_read(bundle, SIGNATURE, 1024, place).strip(), validate=True)
    except binascii.Error:
        signature = b""
    if manifest.fingerprint != inside.fingerprint or not inside.verifies(signature, data):
        raise EvidenceInvalid(f"{place}: the signature is not that of this manifest; the manifest was changed")
    problems = list(_file_problems(bundle, names, manifest))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise EvidenceInvalid(f"{place}: {'; '.join(problems[:_SHOWN])}{more}")
    return Verified(manifest, inside.fingerprint, key is not None)


def _parsed(data: bytes, place: str) -> Manifest:
    try:
        values = json.loads(data)
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        raise EvidenceInvalid(f"{place}: {MANIFEST}: {validation_message(error)}") from None
    except (ValueError, RecursionError):
        raise EvidenceInvalid(f"{place}: {MANIFEST} is not JSON") from None
    if canonical(manifest) != data:
        raise EvidenceInvalid(f"{place}: {MANIFEST} is not written as this format prescribes; it was changed")
    return manifest


def _file_problems(bundle: _Bundle, names: list[str], manifest: Manifest) -> Iterator[str]:
    listed = {entry.path: entry for entry in manifest.files}
    if len(listed) != len(manifest.files):
        yield "the manifest lists a file twice"
    for name in sorted({MANIFEST, SIGNATURE} & listed.keys()):
        yield f"{name} lists itself"
    if PUBLIC_KEY not in listed:
        yield f"{PUBLIC_KEY} is not listed"
    for name in sorted(set(names) - listed.keys() - {MANIFEST, SIGNATURE}):
        yield f"{name!r} is not listed: it was added"
    for name, entry in sorted(listed.items()):
        if name not in names:
            yield f"{name} is missing"
        elif bundle.size(name) != entry.bytes:
            yield f"{name} has {bundle.size(name)} bytes instead of {entry.bytes}: it was changed"
        elif _digest(bundle, name, entry.bytes) != entry.sha256:
            yield f"{name} was changed"
    named = [picture.file for picture in manifest.frames]
    if manifest.clip is not None:
        named += [name for name in (manifest.clip.file, manifest.clip.viewing_copy) if name is not None]
    for name in sorted(set(named) - listed.keys()):
        yield f"{name!r} is named and not listed"


def _read(bundle: _Bundle, name: str, most: int, place: str) -> bytes:
    if bundle.size(name) > most:
        raise EvidenceInvalid(f"{place}: {name} has {bundle.size(name)} bytes, more than a bundle's has")
    with bundle.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise EvidenceInvalid(f"{place}: {name} is larger than a bundle's")
    return data


def _digest(bundle: _Bundle, name: str, size: int) -> str:
    digest, left = hashlib.sha256(), size + 1  # one more would show that the file grows
    with bundle.open(name) as file:
        while left and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[_Bundle]:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        yield _Folder(path)
        return
    if not stat.S_ISREG(mode):
        raise EvidenceInvalid(f"{path}: neither a folder nor an archive")
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        yield _Archive(archive, path)


class _Folder:
    """A bundle that is a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sizes: dict[str, int] = {}
        for folder, folders, files in os.walk(root, onerror=_raise):
            for name in [*files, *folders]:
                place = Path(folder, name)
                state = place.lstat()
                if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
                    raise EvidenceInvalid(f"{root}: {place.relative_to(root)} is a link or a special file")
                if stat.S_ISREG(state.st_mode):
                    self._sizes[place.relative_to(root).as_posix()] = state.st_size
            if len(self._sizes) > _MOST_FILES:
                break

    def names(self) -> list[str]:
        """The path of every file."""
        return list(self._sizes)

    def size(self, name: str) -> int:
        """The bytes of a file."""
        return self._sizes[name]

    def open(self, name: str) -> IO[bytes]:
        """A file, open for reading."""
        return open(os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")


def _raise(error: OSError) -> None:
    raise error


class _Archive:
    """A bundle that is a ZIP archive, without compression and without anything between its files."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        infos = archive.infolist()
        if len(infos) > _MOST_FILES:
            raise EvidenceInvalid(f"{path}: {len(infos)} files are more than a bundle has")
        self._infos = {info.filename: info for info in infos}
        if len(self._infos) != len(infos):
            raise EvidenceInvalid(f"{path}: the archive holds a file twice")
        at = 0
        for info in infos:
            plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
            if not plain or info.flag_bits & 0x1 or info.is_dir() or info.comment:
                raise EvidenceInvalid(f"{path}: {info.filename!r} is not stored as a bundle's files are")
            if info.header_offset != at:
                raise EvidenceInvalid(f"{path}: there are bytes between the files of the archive, or files overlap")
            at = self._end(info)
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _END_BYTES))
            end = file.read(_END_BYTES)
        if not end.startswith(_END_RECORD) or archive.comment or at != archive.start_dir:
            raise EvidenceInvalid(f"{path}: the archive has bytes before or behind its files")

    def _end(self, info: zipfile.ZipInfo) -> int:
        """The offset behind a file's bytes."""
        source = self._archive.fp
        assert source is not None
        source.seek(info.header_offset + 26)
        lengths = source.read(4)
        return (
            info.header_offset
            + 30
            + int.from_bytes(lengths[:2], "little")
            + int.from_bytes(lengths[2:], "little")
            + info.compress_size
        )

    def names(self) -> list[str]:
        """The path of every file."""
        return list(self._infos)

    def size(self, name: str) -> int:
        """The bytes of a file."""
        return self._infos[name].file_size

    def open(self, name: str) -> IO[bytes]:
        """A file, open for reading."""
        return self._archive.open(self._infos[name])
