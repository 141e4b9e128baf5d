"""The decoder's own process: `python -m ingest.child` reads one order from its arguments and writes frames to stdout.

Messages: a kind byte and a little-endian uint32 length, then the body.
    I  JSON: what was opened      F  pts float64, height and width uint32, then RGB bytes
    E  JSON: a typed error        D  JSON: done
The process limits itself before it touches the file, and dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

HEADER = struct.Struct("<cI")
FRAME = struct.Struct("<dII")


def _confine(memory_bytes: int, cpu_seconds: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # PR_SET_PDEATHSIG is Linux's own
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a decoder has nothing to write


def _send(out: BinaryIO, kind: bytes, *parts: bytes) -> None:
    out.write(HEADER.pack(kind, sum(len(p) for p in parts)))
    for part in parts:
        out.write(part)


def _note(out: BinaryIO, kind: bytes, **values: Any) -> None:
    _send(out, kind, json.dumps(values).encode())
    out.flush()


def main() -> int:
    order = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)  # whatever a library prints must not end up among the frames
    _confine(order["limits"]["memory_bytes"], order["limits"]["cpu_seconds"])
    from index.errors import DecodeFailed, SourceError
    from ingest.decoder import decode, open_video
    from ingest.limits import Limits

    limits = Limits(**order["limits"])
    try:
        opened = open_video(order["path"], limits, fps=order["fps"], strict=order["phase"] is not None)
        created = opened.created.isoformat() if opened.created else None
        _note(out, b"I", mode=opened.mode, first=opened.first_pts, duration=opened.duration, created=created)
        times = {"fps": order["fps"], "after": order["after"], "phase": order["phase"]}
        for pts, pixels in decode(opened, limits, **times):
            height, width = pixels.shape[:2]
            _send(out, b"F", FRAME.pack(pts, height, width), pixels.tobytes())
            out.flush()
        _note(out, b"D", mode=opened.mode)
    except SourceError as error:
        _note(out, b"E", type=type(error).__name__, message=str(error))
    except MemoryError:
        _note(out, b"E", type=DecodeFailed.__name__, message=f"needs more than {limits.memory_bytes} bytes of memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
