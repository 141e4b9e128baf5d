"""Names of streams as a user gives them: ids, and patterns such as `gate-*`.

The name of a stream has none of the signs `*`, `?` and `[`, so a text with one of them is a pattern.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from index.errors import UnknownStream

__all__ = ["is_pattern", "match_streams", "matches"]

_LISTED = 8


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern, not the name of one stream."""
    return any(sign in text for sign in "*?[")


def matches(stream_id: str, pattern: str) -> bool:
    """Whether a stream matches a pattern, or has this name."""
    return fnmatchcase(stream_id, unicodedata.normalize("NFC", pattern))


def match_streams(wanted: Iterable[str], known: Sequence[str]) -> list[str]:
    """The streams of `known` that have the names, or match the patterns, in `wanted`; ascending, each once.

    Raises:
        UnknownStream: a name or pattern matches no stream; the message has a similar name, if there is one.
    """
    found: set[str] = set()
    for name in wanted:
        chosen = [stream for stream in known if matches(stream, name)]
        if not chosen:
            listed = ", ".join(known[:_LISTED]) or "none yet"
            more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
            if is_pattern(name):
                raise UnknownStream(f"{name}: no stream of the store matches this pattern; it has {listed}{more}")
            similar = get_close_matches(name, known, 1)
            meant = f"did you mean {similar[0]}? It" if similar else "it"
            raise UnknownStream(f"{name}: the store has no such stream; {meant} has {listed}{more}")
        found.update(chosen)
    return sorted(found)
