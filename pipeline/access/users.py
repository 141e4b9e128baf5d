"""Users: names, passwords and grants.

A name has lower-case ASCII letters, digits and `._@+-`, so that two names that look alike are the same name. A user of
an OpenID Connect provider is identified by issuer and subject; its name, `oidc:…`, is only shown.

Changes revoke sessions where they must: a new password, or the removal of the user, ends all of its sessions.
"""

from __future__ import annotations

import re
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from index.errors import UsageError
from pipeline.access.caller import Grant
from pipeline.access.database import StateDatabase
from pipeline.access.passwords import check_password, hash_password
from pipeline.access.roles import Action, Role, allows

__all__ = ["User", "Users", "check_grant", "check_user_name", "parse_grant"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")
_PATTERN = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_MAX_GRANTS = 64


def check_user_name(name: str) -> str:
    """Return the name of a user. Raises UsageError if it is invalid."""
    if not _NAME.fullmatch(name) or name == "local":
        raise UsageError(
            f"{name[:80]!r}: the name of a user must have 1 to 64 lower-case letters, digits or `._@+-`, begin with a "
            "letter or digit, and not be `local`"
        )
    return name


def check_grant(pattern: str, role: str) -> Grant:
    """The grant of a role for a stream or pattern. Raises UsageError if either is invalid."""
    composed = unicodedata.normalize("NFC", pattern)
    if not _PATTERN.fullmatch(composed):
        raise UsageError(f"{pattern[:80]!r}: must be a stream or a pattern such as 'gate-*', of 1 to 256 characters")
    if role not in set(Role):
        raise UsageError(f"{role[:80]!r}: a role must be one of {', '.join(Role)}")
    return Grant(composed, Role(role))


def parse_grant(text: str) -> Grant:
    """The grant that `ROLE` or `ROLE:PATTERN` names; without a pattern, for all streams. Raises UsageError."""
    role, separator, pattern = text.partition(":")
    return check_grant(pattern if separator else "*", role)


@dataclass(frozen=True, slots=True)
class User:
    """A user of the desk."""

    name: str
    """The name."""
    grants: tuple[Grant, ...]
    """The roles, by stream or pattern."""
    created: float
    """Seconds since 1970."""
    has_password: bool
    """Whether the user can log in with a password."""
    issuer: str | None = None
    """URL of the OpenID Connect provider that the user comes from; None for a user with a password."""
    disabled: bool = False
    """Whether the user is refused: no log-in, no session, no token."""
    logged_in: float | None = None
    """Seconds since 1970 of the last log-in; None if there was none."""

    @property
    def administers_users(self) -> bool:
        """Whether the user manages all users."""
        own = any(grant.pattern == "*" and allows(grant.role, Action.USERS) for grant in self.grants)
        return own and not self.disabled


class Users:
    """The users in a database.

    Args:
        database: opened with `schema.MIGRATIONS`.
    """

    def __init__(self, database: StateDatabase) -> None:
        self._database = database

    def any(self) -> bool:
        """Whether there is a user."""
        return self._database.row("SELECT 1 FROM users LIMIT 1") is not None

    def all(self) -> list[User]:
        """All users, by name."""
        with self._database.snapshot():
            return [self._user(row) for row in self._database.rows("SELECT * FROM users ORDER BY name")]

    def find(self, name: str) -> User | None:
        """The user of this name; None if there is none."""
        with self._database.snapshot():
            row = self._database.row("SELECT * FROM users WHERE name = ?", name)
            return None if row is None else self._user(row)

    def get(self, name: str) -> User:
        """The user of this name. Raises UsageError if there is none."""
        found = self.find(name)
        if found is None:
            raise UsageError(f"{name[:80]}: there is no such user")
        return found

    def add(self, name: str, password: str, grants: Sequence[Grant]) -> User:
        """Add a user with a password.

        Raises:
            UsageError: the name is invalid or taken, the password is too short, or the first user has not the role
                admin for all streams.
        """
        check_user_name(name)
        hashed = hash_password(password)
        with self._database.transaction():
            if not self.any() and not any(grant == Grant("*", Role.ADMIN) for grant in grants):
                raise UsageError(f"{name} would be the only user, and must manage the users: give it the role admin")
            try:
                self._database.execute(
                    "INSERT INTO users (name, password, created) VALUES (?, ?, ?)", name, hashed, time.time()
                )
            except sqlite3.IntegrityError:
                raise UsageError(f"{name}: there is already a user of this name") from None
            self._set_grants(name, grants, "admin")
            return self._get(name)

    def enter(self, issuer: str, subject: str, name: str, grants: Sequence[Grant]) -> User:
        """The user that an OpenID Connect provider has authenticated, added if new; its grants replace those before.

        Raises:
            UsageError: the user is disabled, or another one, of another subject, has the name.
        """
        with self._database.transaction():
            row = self._database.row("SELECT * FROM users WHERE issuer = ? AND subject = ?", issuer, subject)
            if row is not None:
                name = row["name"]
                if row["disabled"]:
                    raise UsageError(f"{name}: an administrator has disabled this user")
            elif self._database.row("SELECT 1 FROM users WHERE name = ?", name) is not None:
                raise UsageError(f"{name}: another user of the provider has this name; ask an administrator")
            else:
                values = (name, issuer, subject, time.time())
                self._database.execute(
                    "INSERT INTO users (name, issuer, subject, created) VALUES (?, ?, ?, ?)", *values
                )
            self._set_grants(name, grants, "oidc")
            return self._get(name)

    def grant(self, name: str, grant: Grant) -> User:
        """Give a user a role for a stream or pattern, in place of the one before. Raises UsageError as `set_grants`."""
        return self._change(name, lambda held: [*(each for each in held if each.pattern != grant.pattern), grant])

    def revoke(self, name: str, pattern: str) -> User:
        """Take a user's role for a stream or pattern away. Raises UsageError, also if the user has none for it."""
        composed = unicodedata.normalize("NFC", pattern)

        def without(held: Sequence[Grant]) -> list[Grant]:
            """The grants but the one of the pattern."""
            left = [each for each in held if each.pattern != composed]
            if len(left) == len(held):
                raise UsageError(f"{name} has no role for {pattern[:80]!r}")
            return left

        return self._change(name, without)

    def set_grants(self, name: str, grants: Sequence[Grant]) -> User:
        """Replace the roles of a user with a password.

        Raises:
            UsageError: there is no such user, its provider decides its roles, or no user would be left who manages
                users.
        """
        return self._change(name, lambda _: grants)

    def _change(self, name: str, change: Callable[[Sequence[Grant]], Sequence[Grant]]) -> User:
        with self._database.transaction():
            user = self._get(name)
            if user.issuer is not None:
                raise UsageError(f"{name}: the groups of the provider decide the roles; change them there")
            self._set_grants(name, change(user.grants), "admin")
            changed = self._get(name)
            if user.administers_users and not changed.administers_users:
                self._check_administrator()
            return changed

    def set_password(self, name: str, password: str) -> None:
        """Set the password of a user and end all of its sessions. Raises UsageError."""
        hashed = hash_password(password)
        with self._database.transaction():
            if self._get(name).issuer is not None:
                raise UsageError(f"{name}: the provider keeps the password; change it there")
            self._database.execute("UPDATE users SET password = ? WHERE name = ?", hashed, name)
            self._database.execute("DELETE FROM sessions WHERE user = ?", name)

    def disable(self, name: str, disabled: bool) -> User:
        """Refuse a user, and end all of its sessions; or admit it again.

        Raises:
            UsageError: there is no such user, or no user would be left who manages users.
        """
        with self._database.transaction():
            user = self._get(name)
            self._database.execute("UPDATE users SET disabled = ? WHERE name = ?", int(disabled), name)
            if disabled:
                self._database.execute("DELETE FROM sessions WHERE user = ?", name)
                if user.administers_users:
                    self._check_administrator()
            return self._get(name)

    def logged_in(self, name: str) -> None:
        """Note that a user has logged in."""
        self._database.execute("UPDATE users SET logged_in = ? WHERE name = ?", time.time(), name)

    def remove(self, name: str, *, last: bool = False) -> None:
        """Remove a user, with all sessions and tokens.

        Args:
            name: the user.
            last: the user may be the last one; then the desk has no users any more.

        Raises:
            UsageError: there is no such user, or no user would be left who manages users.
        """
        with self._database.transaction():
            user = self._get(name)
            self._database.execute("DELETE FROM users WHERE name = ?", name)
            if not self.any() and not last:
                raise UsageError(
                    f"{name} is the last user; the desk needs one. Remove it with `sightline users remove`"
                )
            if user.administers_users and self.any():
                self._check_administrator()

    def authenticate(self, name: str, password: str) -> User | None:
        """The user, if the password is right; takes the same time for a name that does not exist."""
        row = self._database.row("SELECT password FROM users WHERE name = ? AND NOT disabled", name)
        stored = None if row is None else row["password"]
        right, renewed = check_password(password, stored)
        if not right:
            return None
        if renewed is not None:
            statement = "UPDATE users SET password = ? WHERE name = ? AND password = ?"
            self._database.execute(statement, renewed, name, stored)
        return self.find(name)

    def _get(self, name: str) -> User:
        row = self._database.row("SELECT * FROM users WHERE name = ?", name)
        if row is None:
            raise UsageError(f"{name[:80]}: there is no such user")
        return self._user(row)

    def _user(self, row: sqlite3.Row) -> User:
        found = self._database.rows("SELECT pattern, role FROM grants WHERE user = ? ORDER BY pattern", row["name"])
        grants = tuple(Grant(each["pattern"], Role(each["role"])) for each in found)
        own = (row["created"], row["password"] is not None, row["issuer"], bool(row["disabled"]), row["logged_in"])
        return User(row["name"], grants, *own)

    def _set_grants(self, name: str, grants: Sequence[Grant], source: str) -> None:
        if len(grants) > _MAX_GRANTS:
            raise UsageError(f"{name}: at most {_MAX_GRANTS} grants")
        self._database.execute("DELETE FROM grants WHERE user = ?", name)
        for grant in grants:
            checked = check_grant(grant.pattern, grant.role)
            values = (name, checked.pattern, checked.role.value, source)
            self._database.execute("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?)", *values)

    def _check_administrator(self) -> None:
        statement = (
            "SELECT 1 FROM grants JOIN users ON users.name = grants.user "
            "WHERE pattern = '*' AND role = ? AND NOT disabled LIMIT 1"
        )
        if self._database.row(statement, Role.ADMIN.value) is None:
            raise UsageError("no user would be left who manages users; make another one an administrator first")
