"""Moments that look like a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from index.errors import UsageError
from index.records import rfc3339

__all__ = ["FoundMoment", "search"]

_FRAMES_A_MOMENT = 20  # frames fetched for each moment asked for: neighbours merge


class FoundMoment(BaseModel):
    """A stretch of one stream, RFC 3339 UTC; `best` is its best frame and `score` that frame's cosine."""

    stream_id: str
    start: str
    end: str
    best: str
    score: float


def search(
    text: str,
    *,
    settings: Any,
    top: int = 10,
    streams: Sequence[str] | None = None,
    start: int | None = None,
    end: int | None = None,
) -> list[FoundMoment]:
    """The `top` best moments, best first; `start` and `end` in UTC microseconds.

    Raises:
        UsageError: an empty text or top below 1. UnknownStream, StoreNotFound, IdentityMismatch: the store.
    """
    from index.moments import merge_moments
    from index.store import Store
    from model.encoders import load_encoders
    from model.profiles import load_profile

    if not text.strip():
        raise UsageError("the text is empty; type what to look for")
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    Store.open(settings.store)  # a missing store is said before models are loaded
    encoders = load_encoders(load_profile(settings.profile), settings.device)
    store = Store.open(settings.store, encoders=encoders.pair)
    query = encoders.frame.encode_text([text])[0]
    hits = store.search(query, top=top * _FRAMES_A_MOMENT, streams=streams, start=start, end=end)
    return [
        FoundMoment(
            stream_id=m.stream_id,
            start=rfc3339(m.start),
            end=rfc3339(m.end),
            best=rfc3339(m.best),
            score=round(m.score, 6),
        )
        for m in merge_moments(hits)[:top]
    ]
