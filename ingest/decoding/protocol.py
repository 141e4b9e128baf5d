"""What a decoder's process and its parent say to each other; see `ingest.decoding.worker` for the order of it."""

from __future__ import annotations

import struct

__all__ = ["HEADER", "MOST_BYTES", "PICTURE", "SLOTS"]

HEADER = struct.Struct("<cI")
"""Kind of message, bytes of its body."""
PICTURE = struct.Struct("<dQIIB")
"""pts in seconds, offset in the shared memory, width and height of the RGB rows, quarter turns counter-clockwise."""
SLOTS = 4
"""Pictures in the shared memory at once."""
MOST_BYTES = 64 * 1024
"""Of one message; pixels are not in it."""
