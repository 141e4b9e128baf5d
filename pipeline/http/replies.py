"""Replies as JSON: what their models share, and the type of their times.

The description of each field is its docstring, which the OpenAPI schema has too. Does not know any route.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Reply", "TimeText"]


class Reply(BaseModel):
    """A reply, or a part of one."""

    model_config = ConfigDict(use_attribute_docstrings=True)


TimeText = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
"""A time in a reply, RFC 3339 UTC. Generated clients read it as a time, which they can send back as it is."""
