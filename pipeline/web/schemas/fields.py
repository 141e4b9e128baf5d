"""Types of fields and parameters that several routes share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from index.errors import UsageError
from index.records import parse_rfc3339
from pipeline.http.replies import Reply, TimeText
from pipeline.times import MAX_TIME_CHARACTERS

__all__ = [
    "Body",
    "Cursor",
    "Limit",
    "MicrosText",
    "Reply",
    "StreamPattern",
    "StreamText",
    "Text",
    "TimeText",
    "at_query",
]


class Body(BaseModel):
    """A body of a request; unknown fields are an error."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _micros(text: str) -> str:
    try:
        parse_rfc3339(text)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return text


def _one_line(value: object) -> object:
    return " ".join(value.split()) if isinstance(value, str) else value


MicrosText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TIME_CHARACTERS),
    AfterValidator(_micros),
    Field(examples=["2024-03-01T08:00:00Z"], json_schema_extra={"format": "date-time"}),
]
"""A time, RFC 3339 with an offset."""
StreamText = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""Name of a stream."""
StreamPattern = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""Name of a stream, or a pattern such as `gate-*`."""
Text = Annotated[str, BeforeValidator(_one_line), StringConstraints(min_length=1, max_length=2_000)]
"""What to look for; white space is normalized."""
Cursor = Annotated[
    str | None, Query(max_length=1_024, description="`next` of the page before; the first page without it.")
]
"""Parameter of a list: the place where the page begins."""
Limit = Annotated[int, Query(ge=1, le=200, description="Largest number of items.")]
"""Parameter of a list: the number of items."""


def at_query(text: str) -> int:
    """UTC microseconds of a time that pydantic has checked."""
    return parse_rfc3339(text)
