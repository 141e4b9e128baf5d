"""What the fork server and its parent write to each other; see `ingest.decoding.fork_server`."""

from __future__ import annotations

import struct

__all__ = ["DESCRIPTORS", "INT", "LENGTH"]

DESCRIPTORS = 6
"""How many descriptors come with a request."""

LENGTH = struct.Struct("<I")
"""Length in bytes of the JSON that follows: the server's posture, or an order."""

INT = struct.Struct("<i")
"""A pid or a wait status on a child's socket."""
