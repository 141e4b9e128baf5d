"""What runs in the decoder's own process: one order, one file.

The file is a descriptor that the parent opened, so that no name means anything here. Pictures go through a shared memory that
the parent made and sealed; everything else through pipes.
To the parent, on stdout: a kind byte and a little-endian uint32 length, then the body.
    I  JSON: what was opened      F  one picture: see `wire.PICTURE`
    E  JSON: a typed error        D  done: the mode it ended in
From the parent, on stdin: after I one line of JSON that says where to begin, then one byte for every picture it has
copied. There are at most `SLOTS` pictures it has not. The process limits itself before it touches the file, and dies
with its parent. What it imports is little, because every file waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from index.errors import DecodeFailed, SourceError
from ingest.decoding.decoder import (  # before the limits: they forbid to cache what was compiled
    Picture,
    decode,
    open_video,
)
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import HEADER, PICTURE, SLOTS

_CPU_SECONDS, _CPU_SECONDS_A_MEBIBYTE = 300, 300
"""CPU a file may take whatever its size, and for each MiB. Footage of a still scene in 4K takes about 60 s a MiB."""


def _limit(limits: DecodeLimits, size: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # PR_SET_PDEATHSIG is Linux's own
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    seconds = min(limits.cpu_seconds, _CPU_SECONDS + _CPU_SECONDS_A_MEBIBYTE * size // 2**20)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder has nothing to write


class _Parent:
    """The other end of the pipes."""

    def __init__(self, out: BinaryIO, orders: BinaryIO) -> None:
        self.out, self.orders = out, orders

    def note(self, kind: bytes, **values: Any) -> None:
        self.send(kind, json.dumps(values).encode())

    def send(self, kind: bytes, body: bytes) -> None:
        self.out.write(HEADER.pack(kind, len(body)) + body)
        self.out.flush()

    def order(self) -> Any:
        """What it wants next; ends the process when it is gone."""
        line = self.orders.readline()
        if not line:
            sys.exit(0)
        return json.loads(line)

    def wait_copied(self) -> None:
        if not self.orders.read(1):
            sys.exit(0)


class _Ring:
    """Places for pictures in the shared memory; as many as fit, at most `SLOTS`."""

    def __init__(self, memory: mmap.mmap, parent: _Parent) -> None:
        self._memory, self._parent = memoryview(memory), parent
        self._size, self._slots, self._next, self._unread = 0, 0, 0, 0

    def put(self, picture: Picture) -> None:
        row = picture.width * 3
        size = row * picture.height
        if size > len(self._memory):
            raise DecodeFailed(f"a frame of {picture.width} × {picture.height} is too large")
        while self._unread and (size != self._size or self._unread >= self._slots):
            self._parent.wait_copied()
            self._unread -= 1
        if size != self._size:
            self._size, self._slots, self._next = size, min(SLOTS, len(self._memory) // size), 0
        at = self._next * size
        if picture.stride == row:
            self._memory[at : at + size] = picture.data[:size]
        else:
            for line in range(picture.height):
                start = line * picture.stride
                self._memory[at + line * row : at + (line + 1) * row] = picture.data[start : start + row]
        self._next = (self._next + 1) % self._slots
        self._unread += 1
        self._parent.send(b"F", PICTURE.pack(picture.pts, at, picture.width, picture.height, picture.turns))


def decode_order(order: Any, source: int, memory: int, *, confine: Callable[[], Any]) -> int:
    """Decode one file and send what is found to the parent; the exit code.

    Args:
        order: `fps` and the fields of `DecodeLimits` under `limits`.
        source: descriptor of the file, open for reading.
        memory: descriptor of the shared memory.
        confine: called when everything is loaded and before the first byte of the file is read.
    """
    parent = _Parent(os.fdopen(os.dup(1), "wb"), os.fdopen(0, "rb"))
    os.dup2(2, 1)  # whatever a library prints must not end up among the messages
    limits = DecodeLimits(**order["limits"])
    _limit(limits, os.fstat(source).st_size)
    ring = _Ring(mmap.mmap(memory, 0), parent)
    confine()
    try:
        opened = open_video(source, limits, fps=order["fps"])
        created = opened.created.isoformat() if opened.created else None
        parent.note(b"I", mode=opened.mode, first=opened.first_pts, duration=opened.duration, created=created)
        for picture in decode(opened, limits, fps=order["fps"], **parent.order()):
            ring.put(picture)
        parent.send(b"D", opened.mode.encode())
    except SourceError as error:
        parent.note(b"E", type=type(error).__name__, message=str(error))
    except MemoryError:
        parent.note(b"E", type=DecodeFailed.__name__, message=f"needs more than {limits.memory_bytes} bytes of memory")
    return 0
