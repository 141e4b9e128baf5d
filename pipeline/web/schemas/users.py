"""Bodies and replies about log-ins, users and tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from index.records import rfc3339
from pipeline.access.caller import Grant
from pipeline.access.passwords import MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS
from pipeline.access.roles import Action, Role
from pipeline.access.tokens import MAX_TOKEN_DAYS, Token
from pipeline.access.users import User, check_grant
from pipeline.web.schemas.fields import Body, Reply, TimeText

__all__ = [
    "GrantBody",
    "LogInBody",
    "MadeToken",
    "PasswordBody",
    "TokenBody",
    "TokenList",
    "TokenReply",
    "UserBody",
    "UserChange",
    "UserList",
    "UserReply",
    "micros_text",
]

Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PASSWORD_CHARACTERS)]
NewSecret = Annotated[str, StringConstraints(min_length=MIN_PASSWORD_CHARACTERS, max_length=MAX_PASSWORD_CHARACTERS)]


def micros_text(seconds: float | None) -> str | None:
    """Seconds since 1970 as an RFC 3339 time; None stays."""
    return None if seconds is None else rfc3339(int(seconds * 1_000_000))


class LogInBody(Body):
    """A log-in."""

    name: Name
    """Name of the user."""
    password: Secret
    """Its password."""


class PasswordBody(Body):
    """A change of the caller's own password."""

    password: Secret
    """The present password."""
    new_password: NewSecret
    """The new one."""


class GrantBody(Body):
    """A role for the streams that match a pattern."""

    pattern: Annotated[str, StringConstraints(min_length=1, max_length=256)] = "*"
    """A stream, or a pattern such as `gate-*`."""
    role: Role
    """The role."""

    def grant(self) -> Grant:
        """The grant. Raises UsageError."""
        return check_grant(self.pattern, self.role)


class UserBody(Body):
    """A new user."""

    name: Name
    """Name: lower-case letters, digits and `._@+-`."""
    password: NewSecret
    """The password."""
    grants: Annotated[list[GrantBody], Field(max_length=64)]
    """The roles."""


class UserChange(Body):
    """A change of a user; what is left out stays."""

    password: NewSecret | None = None
    """A new password, which ends all sessions of the user."""
    grants: Annotated[list[GrantBody], Field(max_length=64)] | None = None
    """Roles in place of those before."""
    disabled: bool | None = None
    """Whether the user is refused."""


class GrantReply(Reply):
    """A role for the streams that match a pattern."""

    pattern: str
    """A stream, or a pattern such as `gate-*`."""
    role: Role
    """The role."""


class UserReply(Reply):
    """A user."""

    name: str
    """The name."""
    grants: list[GrantReply]
    """The roles."""
    disabled: bool
    """Whether the user is refused."""
    created_at: TimeText
    """When the user was added, RFC 3339."""
    last_login_at: TimeText | None
    """When the user last logged in, RFC 3339."""
    provider: str | None
    """URL of the OpenID Connect provider that the user comes from; null for a user with a password."""

    @classmethod
    def of(cls, user: User) -> UserReply:
        """The reply about a user."""
        return cls(
            name=user.name,
            grants=[GrantReply(pattern=grant.pattern, role=grant.role) for grant in user.grants],
            disabled=user.disabled,
            created_at=micros_text(user.created) or "",
            last_login_at=micros_text(user.logged_in),
            provider=user.issuer,
        )


class UserList(Reply):
    """All users, by name."""

    items: list[UserReply]
    """The users."""
    next: str | None = None
    """Always null: there is one page."""


class TokenBody(Body):
    """A new API token."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """What the token is for."""
    scopes: Annotated[list[Action], Field(min_length=1, max_length=len(Action))]
    """The actions that it is limited to."""
    expires_days: Annotated[float, Field(gt=0, le=MAX_TOKEN_DAYS, allow_inf_nan=False)] = 90.0
    """Its life, in days."""


class TokenReply(Reply):
    """An API token, without its secret."""

    id: str
    """The public part, by which it is recognized."""
    name: str
    """What it is for."""
    scopes: list[Action]
    """The actions that it is limited to."""
    created_at: TimeText
    """When it was made, RFC 3339."""
    expires_at: TimeText
    """When it expires, RFC 3339."""
    last_used_at: TimeText | None
    """When it was last used, RFC 3339, to a minute."""

    @classmethod
    def of(cls, token: Token) -> TokenReply:
        """The reply about a token."""
        return cls(
            id=token.prefix,
            name=token.label,
            scopes=sorted(token.scopes),
            created_at=micros_text(token.created) or "",
            expires_at=micros_text(token.expires) or "",
            last_used_at=micros_text(token.used),
        )


class TokenList(Reply):
    """The tokens of a user, oldest first."""

    items: list[TokenReply]
    """The tokens."""
    next: str | None = None
    """Always null: there is one page."""


class MadeToken(TokenReply):
    """A token that was made; its text is shown once."""

    token: str
    """The token, for `Authorization: Bearer …`."""
