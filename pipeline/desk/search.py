"""Search of the desk: moments that match a text, a picture, a frame, a part of a frame, or several of these together.

The moments are those of `pipeline.questions.search.find_page`, ranked by the same `RankedMoments`. Scores come from the
frames that the desk holds in memory, where a command reads the store once. A ranking is kept for the next pages: of one
search, a page never repeats a moment, also while the store grows.

A part of a picture is compared patch by patch. Its scores are cosines of the patch encoder, those of a text are cosines
of the frame encoder; with both, the score is their weighted mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.columns import digest
from index.errors import UsageError
from index.records import rfc3339
from index.search.moments import Moment
from index.search.resident_frames import ResidentStream
from index.search.scores import ScoredFrames, cosines
from index.window import Window
from model.vocabulary import unknown_words_notice
from pipeline.access.caller import Caller
from pipeline.desk.desk import Desk
from pipeline.desk.links import decode_cursor, encode_cursor, thumbnail_url
from pipeline.http.replies import Reply, TimeText
from pipeline.questions.query import combine
from pipeline.questions.ranking import SAMPLE, RankedMoments, meaning_of
from pipeline.times import DayTime

__all__ = ["Box", "Found", "FoundPage", "Likeness", "SearchQuery", "Searched", "Verification", "search"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""
_MOST = 10_000
_BOX_FRAMES = 20_000
_READ_FRAMES = 256
_MANY_FRAMES = 100_000
_THREADS = 4
_INDEXED_BYTES = 2**20  # of a ranking from the large index, about


class Verification(Reply):
    """What the language model says about a moment."""

    state: Literal["confirmed", "rejected", "not_looked", "pending", "unavailable"]
    """confirmed or rejected by the model; not_looked if it was not asked; pending while it looks; unavailable if it
    could not answer, which is no confirmation."""
    why: str
    """The reason, in a sentence."""
    probability: float | None = None
    """Probability of yes; null if the model did not answer."""


class Found(Reply):
    """One moment. Times are RFC 3339, UTC."""

    id: str
    """Id of the moment; URL-safe."""
    stream_id: str
    """The stream."""
    start: TimeText
    """Time of the first frame."""
    end: TimeText
    """Time of the last frame."""
    best: TimeText
    """Time of the frame that matches best."""
    score: float
    """How well that frame matches: a cosine, or a weighted mean of cosines."""
    percentile: float
    """Share of a sample of the stream's frames that match less, in percent."""
    meaning: str
    """What the score means for this camera, in a sentence."""
    thumbnail: str
    """Address of the best frame's picture."""
    verification: Verification
    """What the language model says."""


class Searched(Reply):
    """What was searched."""

    frames: int
    """Number of frames that were compared."""
    streams: list[str]
    """The streams."""
    seconds: float
    """How long it took."""


class FoundPage(Reply):
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
    min_percentile: float = 0.0
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
    liked = None if query.like is None else desk.stream(caller, query.like.stream)
    newest = desk.snapshot().version
    identity, names = _identity(query), tuple(streams)
    ranking = desk.rankings.find((identity, names, newest if place is None else place["version"]))
    first = 0 if place is None else place["place"]
    version = newest if place is None or ranking is None else place["version"]
    if ranking is None:
        ranking = _rank(desk, query, streams, liked)
        desk.rankings.put((identity, names, version), ranking)
        if place is not None:
            first = ranking.moments.after((-place["score"], place["stream"], place["best"]))
    found = ranking.moments.slice(first, limit + 1)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        mark = {"score": float(last.score), "stream": last.stream_id, "best": last.best}
        following = encode_cursor({"version": version, "place": first + limit, **mark})
    return FoundPage(
        items=[_found(desk, query, ranking, moment) for moment in found[:limit]],
        next=following,
        notices=_notices(desk, query, ranking),
        searched=Searched(
            frames=ranking.moments.frames, streams=list(streams), seconds=round(perf_counter() - began, 4)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """A search whose moments are read page by page."""

    moments: RankedMoments
    """The moments."""
    nbytes: int
    """Size in memory, in bytes."""
    notices: tuple[str, ...]
    """Remarks about how the search was done."""


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


def _rank(
    desk: Desk, query: SearchQuery, streams: Mapping[str, ResidentStream], liked: ResidentStream | None
) -> Ranking:
    parts = _parts(desk, query, liked)
    vector = parts.vector
    if vector is not None and parts.box is None and query.time_of_day is None and query.min_percentile == 0:
        indexed = desk.store.vectors.moments(vector, list(streams), query.start, query.end)
        if indexed is not None:
            found = RankedMoments(
                [],
                lambda name: np.sort(cosines(desk.store.vectors.sample(name, SAMPLE), vector)),
                most=_MOST,
                indexed=indexed,
            )
            return Ranking(found, _INDEXED_BYTES, ())
    scored: list[ScoredFrames] = []
    whole: dict[str, NDArray[np.float32]] = {}
    notices: list[str] = []
    compared = {} if parts.vector is None or parts.box is not None else _all_scores(streams, parts.vector)
    for name, stream in streams.items():
        rows = stream.between(query.start, query.end)
        times = stream.captured_at[rows]
        keep = np.ones(len(times), bool) if query.time_of_day is None else query.time_of_day.contains(times)
        if not keep.any():
            continue
        if parts.box is None:
            values = whole[name] = compared[name]
        else:
            allowed = np.arange(rows.start, rows.stop)[keep]
            chosen, remark = _near_rows(stream, allowed, parts.box)
            notices += remark
            keep = np.isin(np.arange(rows.start, rows.stop), chosen)
            values = np.zeros(len(stream), np.float32)
            values[chosen] = np.float32(1 - parts.text_share) * _patch_scores(desk, stream, chosen, parts.box.vector)
            if parts.vector is not None:
                values[chosen] += np.float32(parts.text_share) * stream.scores(parts.vector)[chosen]
            whole[name] = values[chosen]
        scored.append(ScoredFrames(name, times, values[rows]).where(keep))
    moments = RankedMoments(
        scored, lambda name: _background(whole[name]), min_percentile=query.min_percentile, most=_MOST
    )
    size = moments.nbytes + sum(each.nbytes for each in whole.values())
    return Ranking(moments, size, tuple(notices))


def _all_scores(streams: Mapping[str, ResidentStream], query: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Cosines of all frames of each stream and a query; of many frames, streams side by side on the cores there are."""
    if sum(map(len, streams.values())) < _MANY_FRAMES:
        return {name: stream.scores(query) for name, stream in streams.items()}
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(streams, pool.map(lambda stream: stream.scores(query), streams.values()), strict=True))


def _background(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of an even selection of the frames, ascending: those that `VectorSearch.sample` selects."""
    return np.sort(scores[:: max(1, -(-len(scores) // SAMPLE))])


@dataclass(frozen=True, slots=True)
class _Box:
    vector: NDArray[np.float32]
    """Mean of the patches in the box, float32[Dp] of unit norm."""
    frame: NDArray[np.float32]
    """Vector of the whole frame, float32[Df]."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What frames are compared with."""

    vector: NDArray[np.float32] | None
    """The query of the frame encoder; None if a box alone is searched for."""
    box: _Box | None
    """A part of a picture."""
    text_share: float
    """Weight of `vector` beside the box."""


def _parts(desk: Desk, query: SearchQuery, liked: ResidentStream | None) -> _Parts:
    text = None if query.text is None else desk.models.text_vector(query.text)
    pictures = [] if query.picture is None else [query.picture]
    box = None
    if query.like is not None and liked is not None:
        row = liked.row(query.like.at)
        if query.like.box is None:
            pictures.append(liked.vector(row))
        else:
            box = _Box(_box_vector(desk, liked, row, query.like.box), liked.vector(row))
    if box is not None and text is None and not pictures:
        return _Parts(None, box, 0.0)
    share = 1 - query.weight if text is not None else 0.5
    return _Parts(combine(text, pictures, query.weight), box, share)


def _near_rows(stream: ResidentStream, rows: NDArray[np.int64], box: _Box) -> tuple[NDArray[np.int64], list[str]]:
    """The rows whose patches are compared: all, or of very many those most like the whole frame; and a remark."""
    if len(rows) <= _BOX_FRAMES:
        return rows, []
    near = stream.scores(box.frame)[rows]
    remark = (
        f"{stream.stream_id}: the part of the picture was looked for in the {_BOX_FRAMES:,} of {len(rows):,} frames "
        "that are most like the whole picture; choose a shorter time to look into all."
    )
    return np.sort(rows[np.argsort(-near, kind="stable")[:_BOX_FRAMES]]), [remark]


def _box_vector(desk: Desk, stream: ResidentStream, row: int, box: Box) -> NDArray[np.float32]:
    """The mean of the patches of a frame in the box, float32[Dp] of unit norm."""
    try:
        side = desk.store.encoders.grid_side()
    except UsageError as error:
        raise UsageError(f"like.box: {error}; leave the box out") from None
    patches = _read_patches(desk, stream, np.array([row]))[0].astype(np.float32)
    left, top, right, bottom = box
    centre = (np.arange(side) + 0.5) / side
    columns = (centre >= left) & (centre <= right)
    lines = (centre >= top) & (centre <= bottom)
    if not columns.any():
        columns[min(side - 1, int((left + right) / 2 * side))] = True
    if not lines.any():
        lines[min(side - 1, int((top + bottom) / 2 * side))] = True
    mean = patches.reshape(side, side, -1)[np.ix_(lines, columns)].reshape(-1, patches.shape[1])
    mean = (mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-6)).mean(0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32)


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


def _found(desk: Desk, query: SearchQuery, ranking: Ranking, moment: Moment) -> Found:
    share = ranking.moments.percentile(moment)
    return Found(
        id=encode_cursor({"stream": moment.stream_id, "best": moment.best}),
        stream_id=moment.stream_id,
        start=rfc3339(moment.start),
        end=rfc3339(moment.end),
        best=rfc3339(moment.best),
        score=round(moment.score, 6),
        percentile=round(share, 2),
        meaning=meaning_of(share, moment.stream_id),
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
