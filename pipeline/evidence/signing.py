"""The signing key of an installation: Ed25519, in its state folder, made when it is first used.

The file is for its owner only (0600). Two processes that make it at once get the same key: it is written under another
name and linked to its own, which exactly one of them can do. A fingerprint is the SHA-256 of the raw public key.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from index.errors import EvidenceInvalid, StoreDenied, UsageError

__all__ = ["KEY_FILE", "SigningKey", "VerifyingKey"]

KEY_FILE = "evidence-key.pem"
"""Name of the file in the state folder."""
_MOST_BYTES = 16_384


class VerifyingKey:
    """A public key.

    Args:
        key: the key.
    """

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        """The 32 bytes of the key."""

    @classmethod
    def parse(cls, pem: bytes, *, name: str) -> VerifyingKey:
        """The key of a PEM file. Raises EvidenceInvalid, which names the file as `name`."""
        try:
            key = load_pem_public_key(pem[:_MOST_BYTES])
        except Exception:  # of a parser in another language, for whatever a file contains
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise EvidenceInvalid(f"{name}: not a public key of Ed25519 in PEM; `sightline evidence key` prints one")
        return cls(key)

    @property
    def pem(self) -> str:
        """The key as a PEM file."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, hex, in groups of four digits."""
        text = hashlib.sha256(self.raw).hexdigest()
        return ":".join(text[i : i + 4] for i in range(0, len(text), 4))

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether a signature is this key's of `data`."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """The key of an installation; `load_or_create` opens it.

    Args:
        key: the private key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = VerifyingKey(key.public_key())
        """The public key."""

    @classmethod
    def load_or_create(cls, state: Path) -> SigningKey:
        """The key in a state folder, made if there is none.

        Raises:
            StoreDenied: the folder or the file cannot be read or written.
            UsageError: the file is no such key, or others may read it.
        """
        path = state / KEY_FILE
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _create(path)
            return cls._load(path)
        except OSError as error:
            raise StoreDenied(f"{path}: the signing key cannot be read or made ({error.strerror or error})") from None

    @classmethod
    def _load(cls, path: Path) -> SigningKey:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(descriptor, "rb") as file:
            if os.fstat(descriptor).st_mode & 0o077:
                raise UsageError(f"{path}: other users may read the signing key; run `chmod 600`, or make a new one")
            pem = file.read(_MOST_BYTES)
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path}: not a private key of Ed25519 in PEM; restore the file, or move it away")
        return cls(key)

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`, 64 bytes."""
        return self._key.sign(data)


def _create(path: Path) -> None:
    """Make a key at `path`, unless another process does."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            os.rename(part, path)  # a file system without links
    finally:
        with suppress(OSError):
            part.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
