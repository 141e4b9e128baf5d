"""Search of the desk: moments that match a text, a picture, a frame, a part of a frame, or several of these together.

The scores of all frames of a stream are computed at once, exactly. They say what a score means for that camera: the
share of its frames that match less, and how far the score is above the usual one. Moments are ranked as they are read
(`pipeline.desk.ranking`), and a ranking is kept for the next pages: of one search, a page never repeats a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.columns import digest
from index.errors import UsageError
from index.records import from_micros, rfc3339
from index.search.moments import Moment
from index.search.resident_frames import ResidentStream
from index.window import Window
from model.vocabulary import unknown_words_notice
from pipeline.access.caller import Caller
from pipeline.desk.desk import Desk
from pipeline.desk.links import decode_cursor, encode_cursor, thumbnail_url
from pipeline.desk.ranking import RankedMoments, ScoredStream
from pipeline.times import DayTime

__all__ = ["Box", "Found", "FoundPage", "Likeness", "SearchQuery", "Searched", "Verification", "search"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""
_MOST = 10_000
_BOX_FRAMES = 20_000
_READ_FRAMES = 256
_QUARTER = 900_000_000
_MINUTE = 60_000_000


class _Reply(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class Verification(_Reply):
    """What the language model says about a moment."""

    state: Literal["confirmed", "rejected", "not_looked", "pending", "unavailable"]
    """confirmed or rejected by the model; not_looked if it was not asked; pending while it looks; unavailable if it
    could not answer, which is no confirmation."""
    why: str
    """The reason, in a sentence."""
    probability: float | None = None
    """Probability of yes; null if the model did not answer."""


class Found(_Reply):
    """One moment. Times are RFC 3339, UTC."""

    id: str
    """Id of the moment; URL-safe."""
    stream_id: str
    """The stream."""
    start: str
    """Time of the first frame."""
    end: str
    """Time of the last frame."""
    best: str
    """Time of the frame that matches best."""
    score: float
    """How well that frame matches: a cosine, or a weighted mean of cosines."""
    percentile: float
    """Share of the stream's frames that match less, in percent."""
    meaning: str
    """What the score means for this camera, in a sentence."""
    thumbnail: str
    """Address of the best frame's picture."""
    verification: Verification
    """What the language model says."""


class Searched(_Reply):
    """What was searched."""

    frames: int
    """Number of frames that were compared."""
    streams: list[str]
    """The streams."""
    seconds: float
    """How long it took."""


class FoundPage(_Reply):
    """A page of moments, the best first."""

    items: list[Found]
    """The moments; empty if nothing matches."""
    next: str | None
    """Cursor of the next page; null at the end."""
    notices: list[str]
    """Remarks that limit the trust in the result."""
    searched: Searched
    """What was searched."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """A frame of the store, or a part of it, to find similar ones of."""

    stream: str
    """Name of the stream."""
    at: int
    """Time of the frame, UTC microseconds."""
    box: Box | None = None
    """The part of the picture; the whole if None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchQuery:
    """What is searched for, and where."""

    text: str | None = None
    """What to look for."""
    like: Likeness | None = None
    """A frame to find similar ones of."""
    picture: NDArray[np.float32] | None = None
    """The vector of an uploaded picture, float32[Df]."""
    weight: float = 0.5
    """Weight of the frame and the picture against the text, 0 to 1, if both are given."""
    streams: Sequence[str] | None = None
    """Names and patterns; all visible streams if None."""
    start: int | None = None
    """First time, UTC microseconds."""
    end: int | None = None
    """Last time, exclusive, UTC microseconds."""
    time_of_day: DayTime | None = None
    """A stretch of every day."""
    min_percentile: float | None = None
    """Least percentile of a moment's best frame."""


def search(desk: Desk, caller: Caller, query: SearchQuery, *, limit: int = 50, cursor: str | None = None) -> FoundPage:
    """The moments that match best among the streams that a caller may see.

    Args:
        desk: the desk.
        caller: the caller.
        query: what is searched for, and where.
        limit: largest number of moments.
        cursor: `next` of the page before.

    Raises:
        UsageError: nothing to search for is given, or the cursor is invalid.
        UnknownStream: there is no such stream that the caller may see.
        UnknownFrame: there is no frame at the time of `like`.
        StoreError, ModelError: as `Desk` and `DeskModels`.
    """
    began = perf_counter()
    if query.text is not None and not query.text.strip():
        raise UsageError("text: empty; type what to look for, or leave it out")
    if query.text is None and query.like is None and query.picture is None:
        raise UsageError("give text, like or picture; there is nothing to search for")
    if query.start is not None and query.end is not None and query.start >= query.end:
        raise UsageError(f"start {rfc3339(query.start)} is not before end {rfc3339(query.end)}")
    place = decode_cursor(cursor, version=int, place=int, score=float, stream=str, best=int)
    streams = desk.scope(caller, query.streams)
    if query.like is not None:
        desk.stream(caller, query.like.stream)
    snapshot = desk.snapshot()
    version = snapshot.version if place is None else place["version"]
    key = (_identity(query), tuple(streams), version)
    ranking = desk.rankings.find(key)
    first = 0 if place is None else place["place"]
    if ranking is None:
        version = snapshot.version
        ranking = _rank(desk, caller, query, streams)
        desk.rankings.put((_identity(query), tuple(streams), version), ranking)
        if place is not None:
            first = ranking.moments.after(place["score"], place["stream"], place["best"])
    found = ranking.moments.slice(first, limit + 1)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = encode_cursor(
            {
                "version": version,
                "place": first + limit,
                "score": float(last.score),
                "stream": last.stream_id,
                "best": last.best,
            }
        )
    items = [_found(desk, query, ranking, moment) for moment in found[:limit]]
    took = round(perf_counter() - began, 4)
    return FoundPage(
        items=items,
        next=following,
        notices=_notices(desk, query, ranking),
        searched=Searched(frames=ranking.frames, streams=list(streams), seconds=took),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A search whose moments are read page by page."""

    moments: RankedMoments
    """The moments."""
    scores: Mapping[str, NDArray[np.float32]]
    """The scores of all frames of each stream, for percentiles."""
    usual: Mapping[str, float]
    """Median of the scores of each stream."""
    frames: int
    """Number of frames that were compared."""
    notices: tuple[str, ...]
    """Remarks about how the search was done."""

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return self.moments.nbytes + sum(each.nbytes for each in self.scores.values())


def _identity(query: SearchQuery) -> str:
    """What makes two searches the same, apart from the streams."""
    like = query.like
    return digest(
        query.text,
        None if like is None else (like.stream, like.at, like.box),
        None if query.picture is None else query.picture.tobytes().hex(),
        query.weight,
        query.start,
        query.end,
        query.time_of_day,
        query.min_percentile,
    )


def _rank(desk: Desk, caller: Caller, query: SearchQuery, streams: Mapping[str, ResidentStream]) -> Ranking:
    parts = _queries(desk, caller, query)
    box = _box_vector(desk, caller, query.like) if query.like is not None and query.like.box is not None else None
    scored: list[ScoredStream] = []
    scores: dict[str, NDArray[np.float32]] = {}
    usual: dict[str, float] = {}
    frames, notices = 0, []
    for name, stream in streams.items():
        rows = _allowed(stream, query)
        if not len(rows):
            continue
        values = sum((np.float32(weight) * stream.scores(vector) for vector, weight in parts), np.float32(0))
        values = np.asarray(values, np.float32) if parts else np.zeros(len(stream), np.float32)
        if box is not None:
            vector, weight, frame_vector = box
            chosen = rows
            if len(rows) > _BOX_FRAMES:
                near = stream.scores(frame_vector)[rows]
                chosen = np.sort(rows[np.argsort(-near, kind="stable")[:_BOX_FRAMES]])
                notices.append(
                    f"{name}: the part of the picture was looked for in the {_BOX_FRAMES:,} of {len(rows):,} frames "
                    "that are most like the whole picture; choose a shorter time to look into all"
                )
            best = np.full(len(stream), -1, np.float32)
            best[chosen] = _patch_scores(desk, stream, chosen, vector)
            values = values + np.float32(weight) * best
            rows = chosen
            base = values[chosen]
        else:
            base = values
        frames += len(rows)
        scores[name] = base
        usual[name] = float(np.median(base))
        least = -np.inf if query.min_percentile is None else float(np.quantile(base, query.min_percentile / 100))
        whole = len(rows) == len(stream)
        scored.append(
            ScoredStream(
                name,
                stream.captured_at if whole else stream.captured_at[rows],
                values if whole else values[rows],
                least,
            )
        )
    return Ranking(RankedMoments(scored, _MOST), scores, usual, frames, tuple(notices))


def _queries(desk: Desk, caller: Caller, query: SearchQuery) -> list[tuple[NDArray[np.float32], float]]:
    """The vectors of the frame encoder to compare with, and the weight of each."""
    pictures: list[NDArray[np.float32]] = []
    if query.like is not None and query.like.box is None:
        stream = desk.stream(caller, query.like.stream)
        pictures.append(stream.vector(stream.row(query.like.at)))
    if query.picture is not None:
        pictures.append(query.picture)
    shown = len(pictures) + (query.like is not None and query.like.box is not None)
    share = 0.0 if not shown else (query.weight if query.text is not None else 1.0) / shown
    found = [(vector, share) for vector in pictures]
    if query.text is not None:
        found.append((desk.models.text_vector(query.text), 1.0 - query.weight if shown else 1.0))
    return found


def _box_vector(desk: Desk, caller: Caller, like: Likeness) -> tuple[NDArray[np.float32], float, NDArray[np.float32]]:
    """The mean of the patches in the box, float32[Dp] of unit norm; its weight is 1; and the vector of the frame."""
    assert like.box is not None
    stream = desk.stream(caller, like.stream)
    row = stream.row(like.at)
    patches = _read_patches(desk, stream, np.array([row]))[0].astype(np.float32)
    side = round(len(patches) ** 0.5)
    if side * side != len(patches):
        raise UsageError("like.box: the patches of this store's encoder are not a square grid; leave the box out")
    left, top, right, bottom = like.box
    centre = (np.arange(side) + 0.5) / side
    columns = (centre >= left) & (centre <= right)
    lines = (centre >= top) & (centre <= bottom)
    if not columns.any():
        columns[min(side - 1, int((left + right) / 2 * side))] = True
    if not lines.any():
        lines[min(side - 1, int((top + bottom) / 2 * side))] = True
    mean = patches.reshape(side, side, -1)[np.ix_(lines, columns)].reshape(-1, patches.shape[1])
    mean = (mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)).mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-6), 1.0, stream.vector(row)


def _read_patches(desk: Desk, stream: ResidentStream, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    count = len(rows)
    window = Window(
        [stream.stream_id],
        np.zeros(count, np.int32),
        stream.captured_at[rows],
        np.zeros(count),
        np.zeros((count, 0), np.float32),
    )
    return desk.store.patches(window)


def _patch_scores(
    desk: Desk, stream: ResidentStream, rows: NDArray[np.int64], vector: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The largest cosine of a patch of each frame and a vector, float32[n]."""
    found = np.empty(len(rows), np.float32)
    for at in range(0, len(rows), _READ_FRAMES):
        part = rows[at : at + _READ_FRAMES]
        patches = _read_patches(desk, stream, part).astype(np.float32)
        norms = np.maximum(np.sqrt(np.einsum("nmd,nmd->nm", patches, patches)), 1e-6)
        found[at : at + len(part)] = ((patches @ vector) / norms).max(1)
    return found


def _allowed(stream: ResidentStream, query: SearchQuery) -> NDArray[np.int64]:
    """The rows of a stream in the window and the time of day."""
    part = stream.between(query.start, query.end)
    rows = np.arange(part.start, part.stop)
    if query.time_of_day is None or not len(rows):
        return rows
    times, day = stream.captured_at[part], query.time_of_day
    quarters, which = np.unique(times // _QUARTER, return_inverse=True)  # offsets of zones change at whole quarters
    offsets = np.array([_offset(day, int(quarter) * _QUARTER) for quarter in quarters.tolist()])[which]
    minutes = ((times + offsets) // _MINUTE) % 1_440
    after, before = minutes >= day.start, minutes < day.end
    found: NDArray[np.int64] = rows[after & before if day.start < day.end else after | before]
    return found


def _offset(day: DayTime, at: int) -> int:
    """Microseconds of the zone's offset from UTC at a time."""
    offset = from_micros(at).astimezone(day.zone).utcoffset()
    return 0 if offset is None else round(offset.total_seconds() * 1e6)


def _found(desk: Desk, query: SearchQuery, ranking: Ranking, moment: Moment) -> Found:
    scores = ranking.scores[moment.stream_id]
    below = int(np.count_nonzero(scores < moment.score))
    percentile = 100.0 * below / len(scores)
    usual = ranking.usual[moment.stream_id]
    meaning = (
        f"Matches better than {percentile:.2f} % of the {len(scores):,} frames of {moment.stream_id}, "
        f"whose median score is {usual:.2f}."
    )
    return Found(
        id=encode_cursor({"stream": moment.stream_id, "best": moment.best}),
        stream_id=moment.stream_id,
        start=rfc3339(moment.start),
        end=rfc3339(moment.end),
        best=rfc3339(moment.best),
        score=round(moment.score, 6),
        percentile=round(percentile, 4),
        meaning=meaning,
        thumbnail=thumbnail_url(moment.stream_id, moment.best),
        verification=_verification(desk, query, moment),
    )


def _verification(desk: Desk, query: SearchQuery, moment: Moment) -> Verification:
    if query.text is None:
        return Verification(state="not_looked", why="A search without a text has no question for the language model.")
    held = desk.verified.find((query.text, moment.stream_id, moment.start, moment.end))
    if isinstance(held, Verification):
        return held
    return Verification(state="not_looked", why="The language model was not asked about this moment yet.")


def _notices(desk: Desk, query: SearchQuery, ranking: Ranking) -> list[str]:
    notices = [*desk.models.notices]
    if query.text is not None:
        unknown = desk.models.unknown_words(query.text)
        notices += unknown_words_notice(desk.models.asker.profile.name, unknown, "the moments may be wrong")
    return [*notices, *ranking.notices]
