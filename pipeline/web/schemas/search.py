"""Bodies of searches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from pipeline.web.schemas.fields import Body, MicrosText, StreamPattern, StreamText, Text

__all__ = ["LikeBody", "SearchBody"]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class LikeBody(Body):
    """A frame of the store, or a part of it, to find similar ones of."""

    stream: StreamText
    """Name of the stream."""
    at: MicrosText
    """Time of the frame, RFC 3339."""
    box: tuple[Share, Share, Share, Share] | None = None
    """Left, top, right and bottom of a part of the picture, as shares of its width and height; the whole without it."""

    @model_validator(mode="after")
    def _not_empty(self) -> LikeBody:
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError("box: left must be less than right, and top less than bottom")
        return self


class SearchBody(Body):
    """What is searched for, and where. Give text, like or picture; or a text with one of the others."""

    text: Text | None = None
    """What to look for."""
    like: LikeBody | None = None
    """A frame to find similar ones of."""
    picture: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """Id of an uploaded picture, from `POST /pictures`."""
    weight: Share = 0.5
    """Weight of the frame and the picture against the text, if both are given."""
    streams: Annotated[list[StreamPattern], Field(max_length=256)] | None = None
    """Names and patterns of streams, such as `gate-*`; all without it."""
    start: MicrosText | None = None
    """First time, RFC 3339."""
    end: MicrosText | None = None
    """Last time, exclusive, RFC 3339."""
    time_of_day: Annotated[str, StringConstraints(max_length=16)] | None = Field(default=None, examples=["22:00-06:00"])
    """A stretch of every day, in the zone of `timezone`."""
    timezone: Annotated[str, StringConstraints(max_length=64)] | None = Field(default=None, examples=["Europe/Berlin"])
    """IANA name of the zone of `time_of_day`; UTC without it."""
    min_percentile: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    """Least share of the camera's frames, in percent, that a moment's best frame must match better than."""
    limit: int = Field(default=50, ge=1, le=200)
    """Largest number of moments."""
    cursor: Annotated[str, StringConstraints(max_length=1_024)] | None = None
    """`next` of the page before; the first page without it."""
