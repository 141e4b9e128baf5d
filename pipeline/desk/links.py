"""Places that replies of the desk name: cursors of lists, and addresses of pictures below the API."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any
from urllib.parse import urlencode

from index.errors import UsageError
from index.records import rfc3339

__all__ = ["API", "decode_cursor", "encode_cursor", "frame_url", "play_url", "thumbnail_url"]

API = "/api/v1"
"""Prefix of the API's routes."""
_MAX_CURSOR = 1_024


def encode_cursor(place: dict[str, Any]) -> str:
    """A place in a list as a short text of letters, digits, `-` and `_`."""
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).rstrip(b"=").decode()


def decode_cursor(text: str | None, **fields: type) -> dict[str, Any] | None:
    """The place that a cursor names, None for None.

    Args:
        text: the cursor.
        fields: the names and the types of the values that it must have.

    Raises:
        UsageError: it is not a cursor of this list.
    """
    if text is None:
        return None
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        place = (
            json.loads(base64.b64decode(padded, altchars=b"-_", validate=True)) if len(text) <= _MAX_CURSOR else None
        )
    except (ValueError, binascii.Error, RecursionError):
        place = None
    if not isinstance(place, dict) or set(place) != set(fields):
        raise UsageError("cursor: not a cursor of this list; begin again without one")
    if any(type(place[name]) is not kind for name, kind in fields.items()):
        raise UsageError("cursor: not a cursor of this list; begin again without one")
    return place


def thumbnail_url(stream_id: str, at: int, width: int = 320) -> str:
    """Address of a frame's picture of `width` pixels; `at` in UTC microseconds."""
    return f"{API}/thumbnail?{urlencode({'stream': stream_id, 'at': rfc3339(at), 'width': width})}"


def frame_url(stream_id: str, at: int) -> str:
    """Address of a frame's whole picture; `at` in UTC microseconds."""
    return f"{API}/frame?{urlencode({'stream': stream_id, 'at': rfc3339(at)})}"


def play_url(stream_id: str, at: int, *, transcode: bool = False) -> str:
    """Address of the video of a stream from `at` on, UTC microseconds."""
    query = {"stream": stream_id, "at": rfc3339(at), **({"transcode": 1} if transcode else {})}
    return f"{API}/play?{urlencode(query)}"
