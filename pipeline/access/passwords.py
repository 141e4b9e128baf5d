"""Passwords: argon2id hashes that are renewed when the parameters change, and checks that take the same time for a
name that is unknown.

Parameters are those of RFC 9106 for machines with little memory (64 MiB, 3 passes, 4 lanes), which are the defaults of
argon2-cffi. Each check needs that memory, so the caller bounds how many run at once.
"""

from __future__ import annotations

import secrets
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from index.errors import UsageError

__all__ = ["MAX_PASSWORD_CHARACTERS", "MIN_PASSWORD_CHARACTERS", "check_password", "hash_password"]

MIN_PASSWORD_CHARACTERS = 12
"""Least characters of a new password."""

MAX_PASSWORD_CHARACTERS = 1024
"""Most characters of a password."""

_hasher = PasswordHasher()


def hash_password(password: str) -> str:
    """The argon2id hash of a new password, with its salt and parameters.

    Raises:
        UsageError: the password is too short or too long.
    """
    composed = _composed(password)
    if not MIN_PASSWORD_CHARACTERS <= len(composed) <= MAX_PASSWORD_CHARACTERS:
        raise UsageError(f"a password must have {MIN_PASSWORD_CHARACTERS} to {MAX_PASSWORD_CHARACTERS} characters")
    return _hasher.hash(composed)


def check_password(password: str, stored: str | None) -> tuple[bool, str | None]:
    """Whether a password is right.

    Args:
        password: what was entered, of any length.
        stored: the hash; None if the user does not exist or has no password, which takes the same time.

    Returns:
        Whether it is right; and, if it is and the parameters of `stored` are old, the hash to store in its place.
    """
    composed = _composed(password)[:MAX_PASSWORD_CHARACTERS]
    try:
        _hasher.verify(_nobody() if stored is None else stored, composed)
    except (VerificationError, InvalidHashError):
        return False, None
    if stored is None:
        return False, None
    return True, _hasher.hash(composed) if _hasher.check_needs_rehash(stored) else None


@cache
def _nobody() -> str:
    """The hash of a password that nothing equals."""
    return _hasher.hash(secrets.token_urlsafe(32))


def _composed(password: str) -> str:
    """A password in Unicode's composed form: keyboards differ in how they enter the same letter (RFC 8265)."""
    return unicodedata.normalize("NFC", password.encode("utf-8", "replace").decode())
