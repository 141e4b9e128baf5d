"""Replies with the bytes of a file or of a video, in ranges (RFC 9110, section 14), also while the file still grows."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread
from fastapi import Header
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.media.playback import Playable

__all__ = ["BytesResponse", "IfRangeHeader", "RangeHeader", "attachment", "open_file", "requested_range"]

_THREADS = 16
"""Files that are read at the same moment."""
_BLOCK = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
RangeHeader = Annotated[str | None, Header(alias="Range", max_length=1_000, description="A range of bytes.")]
"""Type of a handler's parameter that is the header `Range`."""
IfRangeHeader = Annotated[str | None, Header(alias="If-Range", max_length=1_000, description="ETag.")]
"""Type of a handler's parameter that is the header `If-Range`."""


def requested_range(text: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte (inclusive) that a header `Range` asks for; None for all.

    Several ranges, and what is no range, mean all, as RFC 9110 allows.

    Args:
        text: the header.
        size: bytes of the file.

    Raises:
        ValueError: the range begins behind the end.
    """
    found = _RANGE.fullmatch(text.strip()) if text is not None else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        count = int(found[2])
        if not count or not size:
            raise ValueError(text)
        return max(0, size - count), size - 1
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None
    if first >= size:
        raise ValueError(text)
    return first, min(last, size - 1)


class BytesResponse(Response):
    """Sends a file or a video, and closes it at the end or when the client leaves.

    Args:
        playable: the bytes.
        wanted: the header `Range`; what is still being made is sent whole.
        if_range: the header `If-Range`; the range is ignored if it is not the ETag of these bytes.
        headers: further headers, in place of those that it has.

    Raises:
        HTTPException: status 416, the range begins behind the end.
    """

    def __init__(
        self,
        playable: Playable,
        wanted: str | None = None,
        if_range: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        size, status, tag = playable.size(), 200, f'"{playable.etag}"'
        self._playable, self._first, self._count = playable, 0, size
        written = {"ETag": tag, "Cache-Control": "private, no-cache", "Accept-Ranges": "none", **(headers or {})}
        if size is not None:
            written["Accept-Ranges"] = "bytes"
            try:
                part = requested_range(wanted if if_range in (None, tag) else None, size)
            except ValueError:
                playable.close()
                detail = f"the range begins behind the end of {size} bytes"
                raise HTTPException(416, detail, {"Content-Range": f"bytes */{size}"}) from None
            if part is not None:
                status, self._first, self._count = 206, part[0], part[1] - part[0] + 1
                written["Content-Range"] = f"bytes {part[0]}-{part[1]}/{size}"
            written["Content-Length"] = str(self._count)
        super().__init__(status_code=status, media_type=playable.media_type)
        del self.headers["content-length"]  # of the empty body
        self.headers.update(written)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the bytes."""
        try:
            async with anyio.create_task_group() as group:

                async def leave() -> None:
                    """Stop when the client leaves."""
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(leave)
                await self._send(send)
                group.cancel_scope.cancel()
        finally:
            self._playable.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        at, left = self._first, self._count
        while left is None or left > 0:
            most = _BLOCK if left is None else min(_BLOCK, left)
            data = await to_thread.run_sync(self._playable.read_some, at, most, limiter=_limiter())
            if data is None:
                continue
            if not data:
                break
            at += len(data)
            left = None if left is None else left - len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def open_file(path: Path, media_type: str, *, name: str | None = None, remove: bool = False) -> Playable:
    """A file as bytes to send.

    Args:
        path: the file.
        media_type: its media type.
        name: what identifies its content; the path by default.
        remove: whether the file is deleted now; its bytes stay until they are sent.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    state = os.fstat(descriptor)
    if remove:
        path.unlink()
    identity = f"{name or path}/{state.st_mtime_ns}/{state.st_size}"
    etag = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return Playable(media_type, descriptor, etag, lambda: state.st_size, done=lambda: os.close(descriptor))


def attachment(name: str) -> str:
    """The header `Content-Disposition` of a file that a browser saves under a name, RFC 6266."""
    quoted = quote(name, safe="")
    return f'attachment; filename="{name}"' if quoted == name else f"attachment; filename*=utf-8''{quoted}"


_limiters = anyio.lowlevel.RunVar[CapacityLimiter]("sightline-play")


def _limiter() -> CapacityLimiter:
    """The limit of threads that read videos, of this event loop."""
    try:
        return _limiters.get()
    except LookupError:
        _limiters.set(limiter := CapacityLimiter(_THREADS))
        return limiter
