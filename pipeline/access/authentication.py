"""Who a request comes from: the users, sessions and tokens of one desk, and the log-in.

A caller is made anew for each request, so that a change of roles, or the end of a session, takes effect at once.

This module does not know HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from index.errors import LoginRequired, TooManyAttempts
from pipeline.access.caller import Caller, Grant
from pipeline.access.database import StateDatabase, make_state_folder
from pipeline.access.oidc import OidcLogin, OidcUser
from pipeline.access.schema import MIGRATIONS
from pipeline.access.sessions import Sessions
from pipeline.access.throttle import LoginThrottle
from pipeline.access.tokens import Tokens
from pipeline.access.users import Users

__all__ = ["DATABASE", "Authentication"]

DATABASE = "desk.sqlite"
"""Name of the database in the state folder."""

_CHECKS_AT_ONCE = 2  # each needs 64 MiB and a core
_WAITING_CHECKS = 16


class Authentication:
    """The users, sessions and tokens in a state folder.

    Args:
        state: the folder, which is created.
        oidc: an OpenID Connect provider that users may come from.
        throttle: limits of failed log-ins.

    Raises:
        StoreDenied: the folder or the database cannot be used.
        StoreVersion: a newer Sightline wrote the database.
    """

    def __init__(self, state: Path, *, oidc: OidcLogin | None = None, throttle: LoginThrottle | None = None) -> None:
        self.database = StateDatabase(make_state_folder(state) / DATABASE, MIGRATIONS)
        self.users, self.sessions, self.tokens = Users(self.database), Sessions(self.database), Tokens(self.database)
        self.oidc, self.throttle = oidc, throttle or LoginThrottle()
        self._checks = threading.BoundedSemaphore(_CHECKS_AT_ONCE)
        self._waiting = threading.BoundedSemaphore(_CHECKS_AT_ONCE + _WAITING_CHECKS)

    @property
    def required(self) -> bool:
        """Whether callers must log in: there are users, or a provider that they may come from."""
        return self.oidc is not None or self.users.any()

    def log_in(self, name: str, password: str, address: str) -> str:
        """Check a password and make a session; returns its id. Takes the same time for a name that does not exist.

        Raises:
            LoginRequired: the name or the password is wrong; the message does not say which.
            TooManyAttempts: too many log-ins failed, or too many are checked at this time.
        """
        self.throttle.begin(name, address)
        if not self._waiting.acquire(blocking=False):
            self.throttle.withdraw(name, address)
            raise TooManyAttempts("too many log-ins at once; try again in a second")
        try:
            with self._checks:
                user = self.users.authenticate(name, password)
        finally:
            self._waiting.release()
        if user is None:
            raise LoginRequired("the name or the password is wrong")
        self.throttle.succeeded(name, address)
        self.users.logged_in(user.name)
        return self.sessions.begin(user.name, "session")

    def enter(self, entered: OidcUser, grants: Sequence[Grant]) -> str:
        """Make a session for a user whom a provider has authenticated; returns its id. Raises UsageError."""
        user = self.users.enter(entered.issuer, entered.subject, entered.name, grants)
        self.users.logged_in(user.name)
        return self.sessions.begin(user.name, "oidc")

    def of_session(self, chosen: str, origin: str) -> Caller | None:
        """The caller of a session's id; None if there is no such session."""
        session = self.sessions.find(chosen)
        user = None if session is None else self.users.find(session.user)
        if session is None or user is None or user.disabled:
            return None
        return Caller(user.name, user.grants, origin=origin, via=session.via)

    def of_token(self, text: str, origin: str) -> Caller | None:
        """The caller of an API token; None if there is no such token."""
        token = self.tokens.find(text)
        user = None if token is None else self.users.find(token.user)
        if token is None or user is None or user.disabled:
            return None
        return Caller(user.name, user.grants, origin=origin, via="token", scopes=token.scopes)

    def close(self) -> None:
        """Close the database."""
        self.database.close()
