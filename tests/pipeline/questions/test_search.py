"""Search: what is checked before a model is loaded, pages, percentiles, streams that a caller may not see, queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.errors import EmptyWindow, UnknownFrame, UnknownStream, UsageError
from index.records import parse_rfc3339
from index.search.faiss_shards import FaissShard
from index.store import Store
from pipeline.questions import search as module
from pipeline.questions.query import combine, query_vector, stored_vector
from pipeline.questions.search import FoundMoment, Page, find, find_page
from pipeline.times import DayTime
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

NAMES = ("back", "front", "gate")


@pytest.fixture
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        """Fail: a model is loaded."""
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "load_encoders", fail)


@pytest.fixture
def hour(tmp_path: Path) -> Store:
    """A store with ten minutes of random vectors of each of three streams, of which one day is sealed."""
    opened = Store.create(tmp_path / "hour", PAIR)
    for seed, name in enumerate(NAMES):
        add(opened, name, 0, seed)
    opened.seal()
    return opened


def add(store: Store, name: str, chunk: int, seed: int) -> None:
    """Ten minutes more of a stream."""
    records = make_records(name, BEGAN + chunk * 600 * SECOND, 600, seed=seed)
    assert store.append(make_segment(records, chunk), records)


def query(seed: int = 5) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).normal(size=16).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def pages(turn: Callable[[str | None], Page]) -> list[list[FoundMoment]]:
    """All pages of a search."""
    found, cursor = [], None
    while True:
        page = turn(cursor)
        found.append(page.moments)
        cursor = page.next
        if cursor is None:
            return found


@pytest.mark.usefixtures("_no_models")
def test_streams_and_windows_are_checked_before_models_are_loaded(filled: str) -> None:
    with pytest.raises(UnknownStream, match=r"^frnt: the store has no such stream; did you mean front\? It has back"):
        find("a car", store=filled, streams=["frnt"])
    with pytest.raises(EmptyWindow, match="no frames in that time; the store has back 2024-03-01T08:01:00Z to"):
        find("a car", store=filled, end="2020-01-01T00:00:00Z")
    with pytest.raises(EmptyWindow, match="the store has front 2024-03-01T08:00:00Z to"):
        find("a car", store=filled, streams=["front"], start="2024-03-02T08:00:00Z")
    with pytest.raises(UsageError, match="nothing to look for"):
        find(store=filled)


@pytest.mark.usefixtures("_no_models")
def test_a_stored_frame_is_found_by_itself_without_a_model(filled: str) -> None:
    at = parse_rfc3339("2024-03-01T08:00:07Z")
    best = find(store=filled, like=("front", at + 400_000)).moments[0]
    assert (best.stream_id, best.best) == ("front", "2024-03-01T08:00:07Z")
    assert best.score == pytest.approx(1.0)
    for stream, when in (("front", at + 60 * SECOND), ("nowhere", at)):
        with pytest.raises(UnknownFrame, match=f"^{stream} has no frame at 2024-03-01T08:0"):
            find(store=filled, like=(stream, when))
    with pytest.raises(UnknownFrame, match=r"^front has no frame at"):
        stored_vector(Store.open(filled), "front", at, streams=["back"])


@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_pages_are_the_whole_list_in_order_and_without_repeats(hour: Store, limit: int) -> None:
    whole = find_page(hour, query(), streams=NAMES, limit=1000)
    assert whole.next is None
    assert (whole.frames, whole.streams) == (1800, 3)
    assert len(whole.moments) > 60
    turned = pages(lambda cursor: find_page(hour, query(), streams=NAMES, limit=limit, cursor=cursor))
    assert list(itertools.chain(*turned)) == whole.moments
    assert all(len(page) == limit for page in turned[:-1])
    skipped = find_page(hour, query(), streams=NAMES, limit=limit, offset=11).moments
    assert skipped == whole.moments[11 : 11 + limit]


def test_a_store_that_grows_repeats_no_moment(hour: Store) -> None:
    before = {(m.stream_id, m.best) for m in find_page(hour, query(), streams=NAMES, limit=1000).moments}
    grown = itertools.count(1)

    def turn(cursor: str | None) -> Page:
        """Read a page, and add ten minutes to a stream."""
        page = find_page(hour, query(), streams=NAMES, limit=10, cursor=cursor)
        if (chunk := next(grown)) < 4:
            add(hour, "gate", chunk, seed=50 + chunk)
        return page

    found = [(m.stream_id, m.best) for page in pages(turn) for m in page]
    assert len(found) == len(set(found))
    assert before <= set(found)


def test_each_percentile_is_the_share_of_frames_that_score_less(hour: Store) -> None:
    scored = {part.stream_id: part.scores for part in hour.score(query(), NAMES)}
    moments = find_page(hour, query(), streams=NAMES, limit=1000).moments
    for moment in moments:
        scores = scored[moment.stream_id]
        share = 100 * float((scores < scores[np.abs(scores - moment.score).argmin()]).mean())
        assert moment.percentile == pytest.approx(share, abs=0.01)
        assert moment.meaning.endswith(f"% of the frames of {moment.stream_id}")
    narrow = find_page(hour, query(), streams=["front"], end=BEGAN + 20 * SECOND, limit=1).moments[0]
    assert narrow.percentile == next(m.percentile for m in moments if m.best == narrow.best)  # of the stream, not of
    for least in (0, 90, 99.0, 100):  # the window
        kept = find_page(hour, query(), streams=NAMES, limit=1000, min_percentile=least).moments
        assert kept == [m for m in moments if m.percentile >= least]


def test_a_stream_outside_is_never_counted_named_or_read(hour: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = hour.vectors.shards.open

    def opened(name: str, day: str) -> FaissShard | None:
        """Open a shard and note its stream."""
        read.append(name)
        return original(name, day)

    monkeypatch.setattr(hour.vectors.shards, "open", opened)
    page = find_page(hour, query(), streams=["back"], limit=1000)
    assert {moment.stream_id for moment in page.moments} == {"back"} == set(read)
    assert (page.frames, page.streams) == (600, 1)
    alone = [m for m in find_page(hour, query(), streams=NAMES, limit=1000).moments if m.stream_id == "back"]
    assert page.moments == alone  # whatever else is searched
    with pytest.raises(EmptyWindow) as caught:
        find_page(hour, query(), streams=["back"], end=BEGAN)
    assert "front" not in str(caught.value)
    assert "gate" not in str(caught.value)


def test_a_time_of_day_leaves_out_the_frames_of_other_times(hour: Store) -> None:
    stretch = DayTime(9 * 60 + 3, 9 * 60 + 5, ZoneInfo("Europe/Amsterdam"))  # 08:03 to 08:05 UTC
    page = find_page(hour, query(), streams=NAMES, limit=1000, day_time=stretch)
    assert page.frames == 3 * 120
    assert min(m.start for m in page.moments) >= "2024-03-01T08:03:00Z"
    assert max(m.end for m in page.moments) < "2024-03-01T08:05:00Z"
    none = find_page(hour, query(), streams=NAMES, day_time=DayTime(0, 60, ZoneInfo("UTC")))
    assert (none.moments, none.next, none.frames) == ([], None, 0)


@given(cursor=st.text(max_size=60) | st.just("W10") | st.just("WzEuMCwgImEiLCB0cnVlXQ") | st.just("A" * 5000))
def test_an_invalid_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(UsageError, match="cursor is invalid"):
        find_page(None, query(), streams=["front"], cursor=cursor)  # type: ignore[arg-type]  # refused before it is read


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 10_001}, {"offset": -1}, {"min_percentile": 101}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"^--(top|offset|min-percentile) must be"):
        find_page(None, query(), streams=["front"], **wrong)  # type: ignore[arg-type]


def test_texts_and_pictures_are_combined_as_documented() -> None:
    a, b, c = (query(seed) for seed in (1, 2, 3))
    np.testing.assert_allclose(combine(a, [], 0.9), a, atol=1e-6)
    np.testing.assert_allclose(combine(None, [b], 0.1), b, atol=1e-6)
    both = combine(a, [b], 0.25)
    expected = 0.75 * a + 0.25 * b
    np.testing.assert_allclose(both, expected / np.linalg.norm(expected), atol=1e-6)
    mean = (b + c) / np.linalg.norm(b + c)
    np.testing.assert_allclose(combine(a, [b, c]), (a + mean) / np.linalg.norm(a + mean), atol=1e-6)
    np.testing.assert_allclose(combine(a, [b], 0), a, atol=1e-6)
    np.testing.assert_allclose(combine(a, [b], 1), b, atol=1e-6)
    with pytest.raises(UsageError, match="cancel each other out"):
        combine(a, [-a])
    with pytest.raises(UsageError, match="--weight must be between"):
        combine(a, [b], 1.5)
    with pytest.raises(UsageError, match="nothing to look for"):
        query_vector(None)
