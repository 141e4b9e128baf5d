"""API tokens: bearer secrets of a user, limited to some actions, which expire.

A token is `sl_`, eight letters by which it is recognized in lists and logs, `_`, and a secret of 256 bits. Only a
digest is stored, so that a token is shown once, when it is made. What it may do is what its user may do at that time,
and only its scopes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from index.errors import UsageError
from pipeline.access.database import StateDatabase
from pipeline.access.roles import Action

__all__ = ["MAX_TOKEN_DAYS", "Token", "Tokens", "check_scopes"]

MAX_TOKEN_DAYS = 366
"""Longest life of a token, in days."""

_MAX_OF_USER = 100
_FORM = re.compile(r"(sl_[a-z2-7]{8})_[A-Za-z0-9_-]{43}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_USED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Token:
    """An API token, without its secret."""

    prefix: str
    """The public part, by which it is recognized, such as `sl_abcd2345`."""
    user: str
    """Name of the user whose it is."""
    label: str
    """What it is for."""
    scopes: frozenset[Action]
    """The actions that it is limited to."""
    created: float
    """Seconds since 1970."""
    expires: float
    """Seconds since 1970."""
    used: float | None
    """Seconds since 1970 of its last use, to a minute; None if never."""


def check_scopes(scopes: Collection[str]) -> frozenset[Action]:
    """The actions that a token is limited to. Raises UsageError: there is none, or one is unknown."""
    unknown = sorted(set(scopes) - set(Action))
    if unknown or not scopes:
        raise UsageError(f"{unknown[0][:80]!r} is no scope" if unknown else "a token must have a scope")
    return frozenset(Action(scope) for scope in scopes)


class Tokens:
    """The tokens in a database.

    Args:
        database: opened with `schema.MIGRATIONS`.
        clock: seconds since 1970.
    """

    def __init__(self, database: StateDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def make(self, user: str, label: str, scopes: Collection[str], days: float) -> tuple[Token, str]:
        """Make a token for a user; returns it and its text, which is not stored.

        Raises:
            UsageError: the label, a scope or the number of days is invalid, or the user does not exist or has too many.
        """
        chosen, now = check_scopes(scopes), self._clock()
        if not 1 <= len(label) <= 100 or not label.isprintable():
            raise UsageError("the label of a token must have 1 to 100 printable characters")
        if not 0 < days <= MAX_TOKEN_DAYS:
            raise UsageError(f"a token must expire within {MAX_TOKEN_DAYS} days")
        prefix = f"sl_{''.join(secrets.choice(_LETTERS) for _ in range(8))}"
        text = f"{prefix}_{secrets.token_urlsafe(32)}"
        with self._database.transaction():
            (held,) = self._database.rows("SELECT count(*) AS n FROM tokens WHERE user = ?", user)
            if held["n"] >= _MAX_OF_USER:
                raise UsageError(f"{user} has {_MAX_OF_USER} tokens; revoke some first")
            values = (prefix, user, label, _digest(text), " ".join(sorted(chosen)), now, now + days * 86_400)
            try:
                self._database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", *values)
            except sqlite3.IntegrityError:
                raise UsageError(f"{user[:80]}: there is no such user") from None
        return Token(prefix, user, label, chosen, now, now + days * 86_400, None), text

    def find(self, text: str) -> Token | None:
        """The token of a text; None if there is none or it has expired."""
        form = _FORM.fullmatch(text)
        if form is None:
            return None
        row = self._database.row("SELECT * FROM tokens WHERE prefix = ?", form[1])
        now = self._clock()
        if row is None or not hmac.compare_digest(row["digest"], _digest(text)) or now >= row["expires"]:
            return None
        if row["used"] is None or now - row["used"] >= _USED_SECONDS:
            self._database.execute("UPDATE tokens SET used = ? WHERE prefix = ?", now, form[1])
        return _token(row)

    def of_user(self, user: str) -> list[Token]:
        """The tokens of a user, oldest first, those that have expired too."""
        found = self._database.rows("SELECT * FROM tokens WHERE user = ? ORDER BY created, prefix", user)
        return [_token(row) for row in found]

    def revoke(self, user: str, prefix: str) -> None:
        """Delete a token of a user. Raises UsageError if the user has no such token."""
        if not self._database.execute("DELETE FROM tokens WHERE user = ? AND prefix = ?", user, prefix):
            raise UsageError(f"{user[:80]} has no token {prefix[:80]!r}")


def _token(row: sqlite3.Row) -> Token:
    scopes = frozenset(Action(scope) for scope in row["scopes"].split())
    return Token(row["prefix"], row["user"], row["label"], scopes, row["created"], row["expires"], row["used"])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
