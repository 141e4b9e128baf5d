"""Search: the moments of a store that match a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.records import Time, parse_time, rfc3339
from index.search.moments import Hit, find_moments
from index.store import Store
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from model.vocabulary import unknown_words_notice

__all__ = ["FoundMoment", "SearchResult", "find", "search"]


class FoundMoment(BaseModel):
    """Neighbouring frames of one stream that match a text. Times are RFC 3339, UTC."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream_id: str
    """The stream."""
    start: str
    """Time of the first frame."""
    end: str
    """Time of the last frame."""
    best: str
    """Time of the frame that matches best."""
    score: float
    """Cosine of that frame and the text."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The moments that a search found, and what limits the trust in them."""

    moments: list[FoundMoment]
    """The moments, the best first."""
    notices: list[str]
    """Remarks for the user, such as words that the encoder does not know."""


def find(
    text: str,
    *,
    store: Store | str | Path,
    profile: str | Path = "micro",
    device: str | None = None,
    top: int = 10,
    streams: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
) -> SearchResult:
    """Find the `top` moments that match a text best, with the remarks that limit the trust in them.

    Everything that needs no model is checked before a model is loaded. Arguments and errors are those of `search`.
    """
    if not text.strip():
        raise UsageError("the text is empty; type what to look for")
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    first, last = parse_time(start, "start"), parse_time(end, "end")
    unchecked = Store.open(store) if isinstance(store, str | Path) else store
    unchecked.check_window(streams, first, last)
    chosen = load_profile(profile)
    encoders = load_encoders(chosen, device)
    opened = Store.open(unchecked.url, encoders=encoders.pair)
    query = encoders.frame.encode_text([text])[0]

    def best_hits(size: int) -> list[Hit]:
        """The best frames of the window."""
        return opened.search(query, top=size, streams=streams, start=first, end=last)

    def surroundings(hit: Hit, low: int, high: int) -> list[Hit]:
        """The frames of a hit's stream in this time that are in the window."""
        begin = low if first is None else max(low, first)
        until = high + 1 if last is None else min(high + 1, last)
        return opened.search(query, top=high - low + 1, streams=[hit.stream_id], start=begin, end=until)

    moments = [
        FoundMoment(
            stream_id=m.stream_id,
            start=rfc3339(m.start),
            end=rfc3339(m.end),
            best=rfc3339(m.best),
            score=round(m.score, 6),
        )
        for m in find_moments(best_hits, surroundings, top)
    ]
    notices = [chosen.notice] if chosen.notice else []
    notices += unknown_words_notice(chosen.name, encoders.frame.unknown_words(text), "the moments may be wrong")
    return SearchResult(moments, notices)


def search(
    text: str,
    *,
    store: Store | str | Path,
    profile: str | Path = "micro",
    device: str | None = None,
    top: int = 10,
    streams: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
) -> list[FoundMoment]:
    """Find the `top` moments that match a text best, the best first.

    A moment's bounds do not depend on `top`; `index.search.moments` says how they are found.

    Args:
        text: what to look for.
        store: an open store, or the URL or path of one.
        profile: name of a model profile, or the path of its TOML file.
        device: device of the text encoder; a GPU if there is one if None.
        top: largest number of moments.
        streams: stream ids; all streams if None.
        start, end: the window, `end` exclusive: datetimes with a time zone, RFC 3339 texts or UTC microseconds.

    Raises:
        UsageError: the text is empty, `top` is below 1, or a time is invalid.
        UnknownStream, EmptyWindow: the store has no such stream, or no frames in the window.
        StoreError, ModelError: see `index.errors`.
    """
    found = find(text, store=store, profile=profile, device=device, top=top, streams=streams, start=start, end=end)
    return found.moments
