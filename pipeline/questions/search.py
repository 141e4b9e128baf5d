"""Search: the moments of a store that match a text or a picture.

`find_page` is the one implementation behind the command, the Python API, the web page and MCP. It takes the ids of the
streams that its caller may see: another stream is neither read, counted nor named. Every frame in scope is scored once,
so the moments do not depend on how many are read, and their scores do not depend on the window.

A score is a cosine, and the usual cosine differs from camera to camera. Beside it is the percentile: the share of a
sample of everything stored of that stream that scores less for the same query. It ranks the moment within its stream;
it does not say that the thing is there. `pipeline.questions.verification` asks the language model that.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.maintenance.imports import encoders_to_search
from index.records import Time, parse_time, rfc3339
from index.search.moments import Moment
from index.search.scores import cosines
from index.store import Store
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from model.vocabulary import unknown_words_notice
from pipeline.questions.query import query_vector, stored_vector
from pipeline.questions.ranking import SAMPLE, Position, RankedMoments, meaning_of, position_of
from pipeline.questions.verification import Verification
from pipeline.times import DayTime

__all__ = ["FoundMoment", "Page", "SearchResult", "find", "find_page", "search"]

MAX_PAGE = 10_000
"""The largest number of moments of one page."""
_MAX_CURSOR = 1024


class FoundMoment(BaseModel):
    """Neighbouring frames of one stream that match a query. Times are RFC 3339, UTC."""

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
    """Cosine of that frame and the query."""
    percentile: float
    """Share of a sample of the stream's frames that score less, 0 to 100."""
    meaning: str
    """What the score means for this stream, in a few words."""
    verification: Verification | None = None
    """What the language model said about the moment; None unless it was asked."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the moments of a search, in order."""

    moments: list[FoundMoment]
    """The moments, the best first."""
    next: str | None
    """Cursor of the moments that follow; None if there are no more."""
    frames: int
    """Number of frames that were searched."""
    streams: int
    """Number of streams that have these frames."""
    seconds: float
    """Time that the search took."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The moments that a search found, and what limits the trust in them."""

    moments: list[FoundMoment]
    """The moments, the best first."""
    notices: list[str]
    """Remarks for the user, such as words that the encoder does not know."""
    vector: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """The query, float32[Df]."""
    frames: int = 0
    """Number of frames that were searched."""


def find_page(
    store: Store,
    query: NDArray[np.float32],
    *,
    streams: Sequence[str],
    start: int | None = None,
    end: int | None = None,
    day_time: DayTime | None = None,
    min_percentile: float = 0.0,
    limit: int = 10,
    offset: int = 0,
    cursor: str | None = None,
) -> Page:
    """One page of the moments that match a query best.

    Pages that follow each other's cursors have no moment twice, also while frames are added to the store; moments that
    are new and better than what was shown are on the first page of the next search.

    Args:
        store: the store.
        query: float32[Df] of unit norm, see `pipeline.questions.query`.
        streams: ids of the streams to search, all of which the caller may see; no patterns.
        start, end: the window, UTC microseconds.
        day_time: only frames of this time of the day.
        min_percentile: only moments whose percentile is at least this, 0 to 100.
        limit: largest number of moments.
        offset: number of moments to skip.
        cursor: `next` of the page before; the first page if None.

    Raises:
        UsageError: an argument is invalid.
        EmptyWindow: these streams have no frames in that time.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"--top must be at least 1 and at most {MAX_PAGE:,}, got {limit}")
    if offset < 0:
        raise UsageError(f"--offset must be at least 0, got {offset}")
    if not 0 <= min_percentile <= 100:
        raise UsageError(f"--min-percentile must be between 0 and 100, got {min_percentile:g}")
    after = None if cursor is None else _read_cursor(cursor)
    since = perf_counter()
    indexed = None
    if day_time is None and min_percentile == 0:  # other searches compare every frame
        indexed = store.vectors.moments(query, streams, start, end)
    scored = [] if indexed is not None else store.score(query, streams, start=start, end=end)
    if day_time is not None:
        scored = [part for each in scored if len(part := each.where(day_time.contains(each.captured_at)))]
    ranked = RankedMoments(
        scored,
        lambda stream: np.sort(cosines(store.vectors.sample(stream, SAMPLE), query)),
        min_percentile=min_percentile,
        indexed=indexed,
    )
    first = offset + (0 if after is None else ranked.after(after))
    page = ranked.slice(first, limit + 1)
    return Page(
        moments=[_found(ranked, moment) for moment in page[:limit]],
        next=_cursor(page[limit - 1]) if len(page) > limit else None,
        frames=ranked.frames,
        streams=ranked.streams,
        seconds=perf_counter() - since,
    )


def _found(ranked: RankedMoments, moment: Moment) -> FoundMoment:
    """A moment as callers get it."""
    share = ranked.percentile(moment)
    return FoundMoment(
        stream_id=moment.stream_id,
        start=rfc3339(moment.start),
        end=rfc3339(moment.end),
        best=rfc3339(moment.best),
        score=round(moment.score, 6),
        percentile=round(share, 2),
        meaning=meaning_of(share, moment.stream_id),
    )


def _cursor(moment: Moment) -> str:
    """The cursor of the moments after this one: text that is safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps(position_of(moment)).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> Position:
    """The position that a cursor names. Raises UsageError if it is not one that `_cursor` made."""
    try:
        if len(cursor) > _MAX_CURSOR:
            raise ValueError
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        score, stream, best = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not (isinstance(score, float) and math.isfinite(score) and isinstance(stream, str) and type(best) is int):
            raise ValueError
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise UsageError("the cursor is invalid; take `next` of the page before, or leave it out") from None
    return score, stream, best


def find(
    text: str | None = None,
    *,
    store: Store | str | Path,
    profile: str | Path = "micro",
    device: str | None = None,
    encoders: Encoders | None = None,
    picture: NDArray[np.uint8] | None = None,
    like: tuple[str, int] | None = None,
    weight: float = 0.5,
    top: int = 10,
    offset: int = 0,
    min_percentile: float = 0.0,
    day_time: DayTime | None = None,
    streams: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
) -> SearchResult:
    """Find the `top` moments that match a text or pictures best, with the remarks that limit the trust in them.

    Everything that needs no model is checked before a model is loaded; a stored frame alone needs none.

    Args:
        text: what to look for.
        store: an open store, or the URL or path of one.
        profile: name of a model profile, or the path of its TOML file.
        device: device of the encoders; a GPU if there is one if None.
        encoders: those of the profile, if they are loaded already.
        picture: a picture to look for, RGB, uint8[H, W, 3].
        like: a stored frame to look for: its stream, and its time in UTC microseconds.
        weight: share of the pictures beside a text, see `pipeline.questions.query`.
        top: largest number of moments.
        offset: number of moments to skip.
        min_percentile, day_time: see `find_page`.
        streams: stream ids and patterns; all streams if None.
        start, end: the window, `end` exclusive: datetimes with a time zone, RFC 3339 texts or UTC microseconds.

    Raises:
        UsageError: an argument is invalid.
        UnknownStream, UnknownFrame, EmptyWindow: the store has no such stream or frame, or no frames in the window.
        StoreError, ModelError: see `index.errors`.
    """
    if text is not None and not text.strip():
        raise UsageError("the text is empty; type what to look for")
    if text is None and picture is None and like is None:
        raise UsageError("nothing to look for; give a text, --image or --like")
    if not 1 <= top <= MAX_PAGE:
        raise UsageError(f"--top must be at least 1 and at most {MAX_PAGE:,}, got {top}")
    first, last = parse_time(start, "start"), parse_time(end, "end")
    opened = Store.open(store) if isinstance(store, str | Path) else store
    opened.check_window(streams, first, last)
    names = opened.check_scope(streams, first, last)
    stored = None if like is None else stored_vector(opened, *like, streams=opened.check_scope())
    chosen, encoder = load_profile(profile), None
    notices = [chosen.notice] if chosen.notice else []
    if text is not None or picture is not None:
        encoders = encoders or load_encoders(chosen, device)
        pair = encoders_to_search(opened.encoders, encoders.pair)
        opened, encoder = Store.open(opened.url, encoders=pair), encoders.frame
        if text is not None:
            notices += unknown_words_notice(chosen.name, encoder.unknown_words(text), "the moments may be wrong")
    query = query_vector(encoder, text=text, picture=picture, stored=stored, weight=weight)
    page = find_page(
        opened,
        query,
        streams=names,
        start=first,
        end=last,
        day_time=day_time,
        min_percentile=min_percentile,
        limit=top,
        offset=offset,
    )
    return SearchResult(page.moments, notices, query, page.frames)


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
