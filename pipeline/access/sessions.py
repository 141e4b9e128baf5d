"""Sessions of browsers: a random id in a cookie, stored as a digest, which expires.

A log-in always makes a new session: an id that a browser sends before is never taken over. The token against forged
requests (CSRF) is derived from the id, so that only a page which may read the session's own reply knows it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.access.database import StateDatabase

__all__ = ["Session", "Sessions", "csrf_token"]

_SEEN_SECONDS = 60.0  # how often the last use of a session is written
_MAX_OF_USER = 32


@dataclass(frozen=True, slots=True)
class Session:
    """A session of a user."""

    user: str
    """Name of the user."""
    via: str
    """How the user logged in: session (password) or oidc."""


class Sessions:
    """The sessions in a database.

    Args:
        database: opened with `schema.MIGRATIONS`.
        seconds: longest life of a session.
        idle_seconds: longest time without a request.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        database: StateDatabase,
        *,
        seconds: float = 12 * 3600.0,
        idle_seconds: float = 2 * 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._clock = database, clock
        self.seconds, self.idle_seconds = seconds, idle_seconds

    def begin(self, user: str, via: str) -> str:
        """Make a session; returns its id, which is not stored. A user's oldest session beyond 32 ends."""
        chosen, now = secrets.token_urlsafe(32), self._clock()
        with self._database.transaction():
            self._database.execute(
                "DELETE FROM sessions WHERE created <= ? OR seen <= ?", now - self.seconds, now - self.idle_seconds
            )
            self._database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", _digest(chosen), user, via, now, now)
            self._database.execute(
                "DELETE FROM sessions WHERE user = ? AND digest NOT IN "
                "(SELECT digest FROM sessions WHERE user = ? ORDER BY created DESC, rowid DESC LIMIT ?)",
                *(user, user, _MAX_OF_USER),
            )
        return chosen

    def find(self, chosen: str) -> Session | None:
        """The session of an id; None if there is none or it has expired."""
        digest, now = _digest(chosen), self._clock()
        row = self._database.row("SELECT * FROM sessions WHERE digest = ?", digest)
        if row is None:
            return None
        if now - row["created"] >= self.seconds or now - row["seen"] >= self.idle_seconds:
            self._database.execute("DELETE FROM sessions WHERE digest = ?", digest)
            return None
        if now - row["seen"] >= _SEEN_SECONDS:
            self._database.execute("UPDATE sessions SET seen = ? WHERE digest = ?", now, digest)
        return Session(row["user"], row["via"])

    def end(self, chosen: str) -> None:
        """End the session of an id, if there is one."""
        self._database.execute("DELETE FROM sessions WHERE digest = ?", _digest(chosen))

    def end_all(self, user: str) -> None:
        """End all sessions of a user."""
        self._database.execute("DELETE FROM sessions WHERE user = ?", user)


def csrf_token(chosen: str) -> str:
    """The token against forged requests of a session's id."""
    return hmac.new(chosen.encode(), b"sightline csrf", hashlib.sha256).hexdigest()


def _digest(chosen: str) -> bytes:
    return hashlib.sha256(chosen.encode()).digest()
