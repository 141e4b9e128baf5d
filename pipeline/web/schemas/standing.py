"""Bodies of standing questions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from pipeline.web.schemas.fields import Body, StreamPattern

__all__ = ["PreviewBody", "StandingBody", "StandingChange"]

_Text = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"\S")]


class PreviewBody(Body):
    """A standing question to try."""

    text: _Text
    """What to look for."""
    streams: Annotated[list[StreamPattern], Field(max_length=256)] | None = None
    """Names and patterns of streams; all without it."""
    floor: float | None = Field(default=None, gt=0, le=2, allow_inf_nan=False)
    """Least rise over the usual score that raises an alert; the profile's without it."""
    warm_up: int | None = Field(default=None, ge=10, le=86_400)
    """Frames of a stream before its first alert; 300 without it."""


class StandingBody(PreviewBody):
    """A standing question to add."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=80)] | None = None
    """Its name; the text without it."""
    webhook: Annotated[str, StringConstraints(min_length=8, max_length=2_048)] | None = None
    """URL to which alerts are sent as signed POST requests."""


class StandingChange(Body):
    """A change of a standing question."""

    muted: bool
    """Whether no webhook is sent."""
