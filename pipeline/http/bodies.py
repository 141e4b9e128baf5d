"""Bodies of requests, read before a route sees them: bounded in size, in time, and all together.

A route that reads its body itself could be kept waiting by a client that sends slowly, and could hold any number of
bytes. `BodyReader` reads the body whole, and `replay` gives it to the application. The guards of the model service and
of the desk call `body_or_refusal`; the form of a refusal is theirs.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import Message, Receive

__all__ = [
    "BodyLate",
    "BodyReader",
    "BodyTooLarge",
    "Disconnected",
    "Refuse",
    "TooManyBytes",
    "body_or_refusal",
    "busy",
    "replay",
    "request_id",
]

_MAX_DISCARDED_BYTES = 8 * 2**20
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Disconnected(Exception):
    """The client closed the connection before its body was complete."""


class TooManyBytes(Exception):
    """The bodies that arrive at this time are too large together."""


class BodyTooLarge(Exception):
    """The body is larger than allowed; its rest was not read."""


class BodyLate(Exception):
    """The body did not arrive in time."""


class BodyReader:
    """Reads bodies; the limits may be changed at any time.

    Args:
        max_bytes: largest body; a function of the request's path if it depends on that.
        max_held_bytes: largest size of all bodies together that have not arrived completely.
        seconds: longest time for a body to arrive.
    """

    def __init__(self, *, max_bytes: int | Callable[[str], int], max_held_bytes: int, seconds: float) -> None:
        self.max_bytes, self.max_held_bytes, self.seconds = max_bytes, max_held_bytes, seconds
        self._held = 0

    def limit(self, path: str) -> int:
        """Largest body of a request with this path, in bytes."""
        return self.max_bytes(path) if callable(self.max_bytes) else self.max_bytes

    async def read(self, path: str, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body of a request.

        Args:
            path: path of the request.
            headers: headers by lower-case name.
            receive: gives the messages of the server.

        Raises:
            Disconnected: the client closed the connection.
            TooManyBytes: with this body, all bodies that are arriving exceed `max_held_bytes`.
            BodyTooLarge: the body is larger than its limit, or its length is no number.
            BodyLate: it did not arrive within `seconds`.
        """
        limit, declared = self.limit(path), headers.get(b"content-length", b"0")
        too_large = not declared.isdigit() or len(declared) > 18 or int(declared) > limit
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._read(receive, limit, hold=not too_large)
        except TimeoutError:
            raise BodyLate from None
        if body is None:
            raise BodyTooLarge
        return body

    async def _read(self, receive: Receive, limit: int, *, hold: bool) -> bytes | None:
        """The body, or None if it is larger than allowed. Never holds more than `limit` and one message.

        The rest of a body that is too large is read and discarded, up to a limit: a client whose connection is closed
        while it still sends would not receive the error.
        """
        held, size = bytearray(), 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    hold = False
                    self._held -= len(held)
                    held.clear()
                if hold:
                    if self._held + len(part) > self.max_held_bytes:
                        raise TooManyBytes
                    held += part
                    self._held += len(part)
                if size > limit + _MAX_DISCARDED_BYTES:
                    return None
                if not message.get("more_body", False):
                    return bytes(held) if hold else None
        finally:
            self._held -= len(held)


Refuse = Callable[[int, str, str], Response]
"""Makes the reply to a request that is refused, from its status, its code and a sentence."""


async def body_or_refusal(
    bodies: BodyReader, path: str, headers: Mapping[bytes, bytes], receive: Receive, refuse: Refuse
) -> bytes | Response | None:
    """The body of a request, or the reply that refuses it; None if the client has closed the connection.

    Args:
        bodies: reads it.
        path, headers, receive: see `BodyReader.read`.
        refuse: makes the reply.
    """
    try:
        return await bodies.read(path, headers, receive)
    except Disconnected:
        return None
    except TooManyBytes:
        return busy(refuse, "too many requests arrive at once")
    except BodyLate:
        return refuse(408, "request_timeout", f"the body did not arrive within {bodies.seconds:g} s")
    except BodyTooLarge:
        refusal = refuse(413, "body_too_large", f"the body is larger than {bodies.limit(path)} bytes")
        refusal.headers["Connection"] = "close"  # the rest of the body is not read
        return refusal


def busy(refuse: Refuse, reason: str) -> Response:
    """The reply to a request that comes at a bad moment, status 503."""
    response = refuse(503, "service_unavailable", f"{reason}; try again in a second")
    response.headers["Retry-After"] = "1"
    response.headers["Connection"] = "close"
    return response


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns `body` once, and after that the messages of the server (a disconnection)."""
    sent = False

    async def replayed() -> Message:
        """Return the body once, then messages of the server."""
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def request_id(given: bytes) -> bytes:
    """The client's id of a request if it is short and of plain letters; else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()
