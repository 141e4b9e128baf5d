"""Replies about the session."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.web.schemas.fields import Reply

__all__ = ["Health", "Session"]


class Session(Reply):
    """Who the caller is, and what the desk offers."""

    name: str | None = None
    """Name of the caller; null without a log-in."""
    role: str | None = None
    """The caller's highest role; null without a log-in."""
    via: str | None = None
    """How the caller was authenticated: local, session, oidc, token or mcp."""
    csrf: str | None = None
    """Token for the header `X-CSRF-Token` of requests that change something; null if none is needed."""
    users_required: bool
    """Whether the desk has users, so that a log-in is needed."""
    oidc: bool = False
    """Whether users may come from an OpenID Connect provider."""
    timezone: str = "UTC"
    """Zone in which the page shows times at first, an IANA name."""
    actions: list[str] = Field(default_factory=list)
    """What the caller may do with at least one stream."""
    version: str = ""
    """Version of Sightline; empty without a log-in, as what follows."""
    profile: str = ""
    """Name of the model profile."""
    model: Literal["embedded", "service", "down"] | None = None
    """Where the language model runs; down if it cannot be used."""
    notices: list[str] = Field(default_factory=list)
    """Remarks that limit the trust in the models."""


class Health(Reply):
    """Whether the process answers."""

    status: Literal["ok"] = "ok"
    """Always `ok`."""
