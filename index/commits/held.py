"""Evidence locks of streams: stretches that no deletion touches, as properties of the table `segments`.

    sightline.holds.<digest of the stream>   the holds of a stream, a JSON list of `Hold`; empty when there are none

They are in the same place as the record of a deletion (`index.commits.deletion`), so the log of that table orders the
two: a deletion that begins reads the holds in the commit that records it.

This module does not place holds; `index.maintenance.holds` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from index.columns import digest
from index.errors import StoreCorrupt
from index.schemas import HOLDS_KEY

__all__ = ["Hold", "Stretch", "all_holds", "holds_name", "holds_of", "holds_text", "merged", "uncovered"]

Stretch = tuple[int, int]
"""Start and end (exclusive) of a stretch of time, UTC microseconds."""


class Hold(BaseModel):
    """An evidence lock: footage of one stream that may not be deleted."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    id: str
    """Name of the hold, 16 hex digits."""
    stream_id: str
    """The stream."""
    start: int
    """UTC microseconds."""
    end: int
    """UTC microseconds, exclusive."""
    reason: str = Field(max_length=500)
    """Why the footage is held."""
    placed_by: str = Field(max_length=200)
    """Name of the user who placed it."""
    placed_at: int
    """When it was placed, UTC microseconds."""


_LIST = TypeAdapter(list[Hold])


def holds_name(stream_id: str) -> str:
    """The name of the property with a stream's holds, which does not contain the name of the stream."""
    return f"{HOLDS_KEY}.{digest(stream_id)}"


def holds_text(holds: Sequence[Hold]) -> str:
    """Holds as the value of a property."""
    return _LIST.dump_json(sorted(holds, key=lambda hold: (hold.start, hold.id))).decode() if holds else ""


def holds_of(configuration: Mapping[str, str], stream_id: str) -> list[Hold]:
    """The holds of a stream in the properties of `segments`, by start.

    Raises:
        StoreCorrupt: the property is damaged; nothing of the stream may be deleted then.
    """
    return _parse(configuration.get(holds_name(stream_id), ""))


def all_holds(configuration: Mapping[str, str]) -> list[Hold]:
    """The holds of all streams, by stream and start. Raises StoreCorrupt."""
    found = [hold for name, text in configuration.items() if name.startswith(f"{HOLDS_KEY}.") for hold in _parse(text)]
    return sorted(found, key=lambda hold: (hold.stream_id, hold.start, hold.id))


def _parse(text: str) -> list[Hold]:
    if not text:
        return []
    try:
        return _LIST.validate_json(text)
    except ValidationError:
        raise StoreCorrupt(
            "the record of the evidence locks is damaged, so nothing is deleted; restore the properties of the table "
            "`segments`"
        ) from None


def merged(stretches: Iterable[Stretch], before: int | None = None) -> list[Stretch]:
    """Stretches without overlaps, ascending, cut off at `before` (UTC microseconds)."""
    result: list[Stretch] = []
    for start, end in sorted(stretches):
        last = end if before is None else min(end, before)
        if last <= start:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((start, last))
    return result


def uncovered(stretch: Stretch, by: Iterable[Stretch]) -> list[Stretch]:
    """The parts of a stretch that none of the stretches `by` covers."""
    at, result = stretch[0], list[Stretch]()
    for start, end in merged(by):
        if end <= at or start >= stretch[1]:
            continue
        if start > at:
            result.append((at, start))
        at = max(at, end)
    if at < stretch[1]:
        result.append((at, stretch[1]))
    return result
