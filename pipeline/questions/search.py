"""Moments that look like a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from index.errors import UsageError
from index.records import rfc3339
from index.search.moments import Hit, Moment, merge_moments

if TYPE_CHECKING:
    from index.store import Store

__all__ = ["FoundMoment", "best_moments", "search"]

_FRAMES_A_MOMENT = 16  # frames looked at for each moment asked for: neighbours merge


class FoundMoment(BaseModel):
    """A stretch of one stream, RFC 3339 UTC; `best` is its best frame and `score` that frame's cosine."""

    stream_id: str
    start: str
    end: str
    best: str
    score: float


def best_moments(hits: Sequence[Hit], top: int) -> list[Moment]:
    """At most `top` moments of `hits`, which are sorted by score, the best first.

    Twice as many hits are merged each time until there are `top` moments. Where there never are, as many hits as gave
    the most moments: taking them all would stretch a moment over everything that is only somewhat alike.
    """
    found: list[Moment] = []
    size = top
    while True:
        moments = merge_moments(hits[:size])
        if len(moments) > len(found):
            found = moments
        if len(found) >= top or size >= len(hits):
            return found[:top]
        size *= 2


def search(
    text: str,
    *,
    store: Store | str | Path,
    profile: str | Path = "micro",
    device: str | None = None,
    top: int = 10,
    streams: Sequence[str] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> list[FoundMoment]:
    """The `top` best moments, best first; `start` and `end` in UTC microseconds, the end exclusive.

    Raises:
        UsageError: an empty text or top below 1.
        StoreError, ModelError: see `index.errors`.
    """
    from index.store import Store as StoreClass
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile

    if not text.strip():
        raise UsageError("the text is empty; type what to look for")
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    # A missing store is said before models are loaded.
    url = StoreClass.open(store).url if isinstance(store, str | Path) else store.url
    encoders = load_encoders(load_profile(profile), device)
    opened = StoreClass.open(url, encoders=encoders.pair)
    query = encoders.frame.encode_text([text])[0]
    hits = opened.search(query, top=top * _FRAMES_A_MOMENT, streams=streams, start=start, end=end)
    return [
        FoundMoment(
            stream_id=m.stream_id,
            start=rfc3339(m.start),
            end=rfc3339(m.end),
            best=rfc3339(m.best),
            score=round(m.score, 6),
        )
        for m in best_moments(hits, top)
    ]
