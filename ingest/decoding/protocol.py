"""Messages between the process that decodes a file (`ingest.decoding.worker`) and its parent (`sandbox`).

Pixels go through shared memory, everything else through two pipes. From the worker: a header, then its body.

    OPENED   JSON; of a process that decodes or cuts: mode, first (pts in seconds), duration (seconds or null), created
             (ISO 8601 or null); of one that decodes: gpu, whether a GPU decodes, and gpu_problem, why it does not
    FRAME    `FRAME_BODY`: where the pixels are in the shared memory, and what they are
    SEGMENT  `SEGMENT_BODY`; of a process that cuts, see `ingest.segments.cutter`: the segment is in the shared memory,
             and the process waits for one byte before it writes the next
    CLIPPED  JSON; of a process that writes a clip, see `ingest.segments.joiner`: first and end (UTC microseconds),
             frames, parts, missing (microseconds) of the clip so far; read, whether it waits for the next part
    FAILED   JSON: type (a name in `ERRORS`), message
    DONE     JSON: mode that decoding ended in, a name in `MODES`; discontinuities, a list of [at, by, bridged] as in
             `ingest.decoding.timeline.Discontinuity`; count, how many there were, listed or not

From the parent, after OPENED: one line of JSON with the arguments of `ingest.decoding.decoder.decode`, then one byte
for each frame that it has copied.

The constants at the end are those of the fork server, see `ingest.decoding.fork_server`.
"""

from __future__ import annotations

import struct

from index.errors import (
    DecodeFailed,
    GpuUnavailable,
    MessageTooLarge,
    NoFrames,
    NotVideo,
    SandboxUnavailable,
    SightlineError,
    SourceUnsupported,
)

__all__ = [
    "CLIPPED",
    "DESCRIPTORS",
    "DONE",
    "ENDED",
    "ERRORS",
    "FAILED",
    "FRAME",
    "FRAME_BODY",
    "HEADER",
    "INT",
    "LENGTH",
    "MAX_BODY_BYTES",
    "MODES",
    "OPENED",
    "SEGMENT",
    "SEGMENT_BODY",
    "SLOTS",
]

OPENED, FRAME, SEGMENT, CLIPPED, FAILED, DONE = b"I", b"F", b"S", b"C", b"E", b"D"
HEADER = struct.Struct("<cI")
"""Kind of message, bytes of its body."""
FRAME_BODY = struct.Struct("<dQIIB")
"""pts in seconds, offset in the shared memory, width and height of the RGB rows, quarter turns counter-clockwise."""
SEGMENT_BODY = struct.Struct("<ddBQ")
"""pts of the first frame and duration in seconds, number of the container format in `ingest.segments.cutter.FORMATS`,
bytes in the shared memory."""
SLOTS = 4
"""Most frames in the shared memory at once."""
MAX_BODY_BYTES = 64 * 1024
"""Largest body of a message."""
MODES = ("keyframes", "nonref", "all")
"""How a file is decoded, see `ingest.decoding.decoder`."""
ERRORS: dict[str, type[SightlineError]] = {
    kind.__name__: kind
    for kind in (
        NotVideo,
        NoFrames,
        DecodeFailed,
        MessageTooLarge,
        SandboxUnavailable,
        GpuUnavailable,
        SourceUnsupported,
    )
}
"""The errors that a worker may report, by name."""

DESCRIPTORS = 6
"""How many descriptors come with a request to the fork server."""
LENGTH = struct.Struct("<I")
"""Length in bytes of the JSON that follows: the server's posture, or an order."""
INT = struct.Struct("<i")
"""A pid on a child's socket."""
ENDED = struct.Struct("<id")
"""On a child's socket: its wait status, and the CPU seconds of all its threads."""
