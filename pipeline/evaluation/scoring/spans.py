"""Spans of time: how a reply states one, and how well it meets the truth (Charades-STA).

IoU is the overlap divided by the hull of both spans, as the published scorers of Charades-STA have it; where the spans
overlap, the hull is their union. A reply without a span has IoU 0, and so has a span of no length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["Span", "parse_span", "recall_at", "temporal_iou"]

Span = tuple[float, float]
"""Start and end, in seconds."""

_TIME = r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)|(\d+(?:\.\d+)?)"
_PAIR = re.compile(rf"(?:{_TIME})\s*(?:s|sec|secs|second|seconds)?\s*(?:-|–|—|to|and|until)\s*(?:{_TIME})")
_LONE = re.compile(_TIME)
_VERB = re.compile(r"\b(?:start|end|happen|begin|from)\w*")


def parse_span(reply: str) -> Span | None:
    """The first span that a reply states, in seconds; None if there is none.

    Read are `a - b` and `a to b`, where a and b are seconds or `mm:ss` or `h:mm:ss`. Else sentences count that say
    start, end or happens: two times in one of them, or one time in each of two. Reversed ends are swapped.
    """
    text = reply.lower()
    if found := _PAIR.search(text):
        return _ordered(_seconds(found.groups()[:4]), _seconds(found.groups()[4:]))
    alone = list[float]()
    for sentence in re.split(r"[.!?](?:\s|$)|\n", text):
        times = [_seconds(each.groups()) for each in _LONE.finditer(sentence) if _VERB.search(sentence)]
        if len(times) == 2:
            return _ordered(*times)
        alone += times
    return _ordered(*alone) if len(alone) == 2 else None


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, plain = parts
    if plain is not None:
        return float(plain)
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def _ordered(a: float, b: float) -> Span:
    return (a, b) if a <= b else (b, a)


def temporal_iou(one: Span, other: Span) -> float:
    """Overlap by hull of two spans, in [0, 1]."""
    hull = max(one[1], other[1]) - min(one[0], other[0])
    overlap = min(one[1], other[1]) - max(one[0], other[0])
    return overlap / hull if overlap > 0 and hull > 0 else 0.0


def recall_at(ious: Sequence[float], threshold: float) -> float:
    """R@1: share of IoUs of at least `threshold`; 0 if there are none."""
    return sum(iou >= threshold for iou in ious) / len(ious) if ious else 0.0
