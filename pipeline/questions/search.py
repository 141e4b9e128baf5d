"""Search: the moments of a store that match a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.records import Time, parse_time, rfc3339
from index.search.moments import Hit, Moment, merge_moments
from index.store import Store
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile

__all__ = ["FoundMoment", "best_moments", "search"]

_FRAMES_A_MOMENT = 16  # hits that are read for each moment, because neighbouring hits are merged


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


def best_moments(hits: Sequence[Hit], top: int) -> list[Moment]:
    """At most `top` moments, the best first, out of `hits`, which are sorted by score, the best first.

    The number of hits that are merged is doubled until they give `top` moments. If they never do, the result is the
    largest number of moments found: merging all hits would extend a moment over everything that is only somewhat alike.
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
    start: Time | None = None,
    end: Time | None = None,
) -> list[FoundMoment]:
    """Find the `top` moments that match a text best, the best first.

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
        StoreError, ModelError: see `index.errors`.
    """
    if not text.strip():
        raise UsageError("the text is empty; type what to look for")
    if top < 1:
        raise UsageError(f"--top must be at least 1, got {top}")
    window = {"start": parse_time(start, "start"), "end": parse_time(end, "end")}
    # Before the models are loaded, so that a missing store is reported at once.
    url = Store.open(store).url if isinstance(store, str | Path) else store.url
    encoders = load_encoders(load_profile(profile), device)
    opened = Store.open(url, encoders=encoders.pair)
    query = encoders.frame.encode_text([text])[0]
    hits = opened.search(query, top=top * _FRAMES_A_MOMENT, streams=streams, **window)
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
