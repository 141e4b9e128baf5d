"""Choosing rows, offsets, and `ask` as notebooks call it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from index.errors import BudgetExceeded, EmptyWindow, StoreNotFound, UnknownStream, UsageError
from index.keyframes import relevance, select_keyframes
from index.records import Segment, parse_time
from index.store import Store
from pipeline.questions.asker import Asker, ask
from pipeline.questions.footage_starts import FootageStarts
from pipeline.questions.search import search
from tests.support.command import BEGAN, FRAMES, Command

QUESTION = "what colour was the truck at the gate ?"


def test_times() -> None:
    eight = datetime(2024, 3, 1, 8, tzinfo=UTC)
    micros = 1_709_280_000_000_000
    assert parse_time(eight) == parse_time("2024-03-01T09:00:00+01:00") == parse_time(micros) == micros
    assert parse_time(None) is None
    with pytest.raises(UsageError, match=r"^from: 2024-03-01T08:00:00 has no time zone"):
        parse_time(datetime(2024, 3, 1, 8), "from")
    for wrong in (8.0, True, date(2024, 3, 1)):
        with pytest.raises(UsageError, match=r"^end: expected a datetime, an RFC 3339 text or whole microseconds"):
            parse_time(wrong, "end")  # type: ignore[arg-type]


def segment(source: str, chunk: int, start: int, end: int, stream: str = "front") -> Segment:
    return Segment(
        stream_id=stream,
        source=source,
        chunk=chunk,
        uri="v.mp4",
        start=start * 1_000_000,
        end=end * 1_000_000,
        frames=1,
        decode_mode="all",
        clock_source="given",
    )


def test_an_offset_is_within_its_own_file() -> None:
    origins = FootageStarts([segment("a", 0, 100, 400), segment("a", 1, 400, 500), segment("b", 0, 900, 1000)])
    assert origins.offset("front", 130_000_000, 31.4) == 30.0
    assert origins.offset("front", 450_000_000, 351.4) == 350.0  # the second segment of the same file
    assert origins.offset("front", 905_500_000, 5.9) == 5.5  # the next file begins at 0 again
    assert origins.offset("front", 700_000_000, 7.0) == 7.0  # between files: the frame's own clock
    assert origins.offset("back", 130_000_000, 3.0) == 3.0


def test_an_offset_whose_beginning_was_forgotten_is_the_frames_own_clock() -> None:
    assert FootageStarts([segment("a", 1, 400, 500)]).offset("front", 450_000_000, 351.4) == 351.4


def test_the_signature_that_notebooks_rely_on() -> None:
    parameters = inspect.signature(ask).parameters
    assert next(iter(parameters)) == "question"
    contract = {"streams": None, "start": None, "end": None, "options": None, "k": None, "tau": None}
    assert {name: parameters[name].default for name in contract} == contract
    assert parameters["store"].default is inspect.Parameter.empty
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name != "question")


def test_ask_from_python_with_an_open_store(filled: str, profile: str) -> None:
    options = ["red", "blue"]
    asked = ask(
        QUESTION,
        store=Store.open(filled),
        streams=["front"],
        start=BEGAN + timedelta(seconds=2),
        end="2024-03-01T08:00:22Z",
        options=options,
        k=5,
        tau=1.0,
        profile=profile,
        device="cpu",
    )
    assert asked.option in options
    assert (asked.frames, len(asked.keyframes)) == (20, 5)
    assert {frame.stream_id for frame in asked.keyframes} == {"front"}
    assert asked.visual_tokens == 5 * 16 + 15


def test_python_and_the_command_select_the_same_keyframes(sightline: Command, filled: str, profile: str) -> None:
    asked = ask(QUESTION, store=filled, options=["red", "blue"], profile=profile)
    command = sightline(
        "ask", QUESTION, "--option", "red", "--option", "blue", "--store", filled, "--profile", profile, "--json"
    )
    assert asked.model_dump()["keyframes"] == command.data["keyframes"]
    assert len(asked.keyframes) == Asker(filled, profile, "cpu").profile.k == 4
    (start, end) = (BEGAN + timedelta(seconds=2), "2024-03-01T08:00:22Z")
    found = [
        search("red truck", store=filled, start=low, end=high, profile=profile)
        for low, high in ((start, end), (parse_time(start), parse_time(end)))
    ]
    assert found[0] == found[1] != []


def test_questions_share_one_asker_and_agree_with_dks(filled: str, profile: str) -> None:
    asker = Asker(filled, profile, "cpu")
    assert asker.answerer is asker.answerer
    selection = asker.select(QUESTION, k=6, tau=0.999)
    window = asker.store.window()
    query = asker.encoders.frame.encode_text([QUESTION])[0]
    expected = select_keyframes(window.frame_vectors, query, k=6, tau=0.999)
    assert selection.keyframes.tolist() == expected.tolist()
    np.testing.assert_allclose(selection.scores, relevance(window.frame_vectors, query), atol=1e-6)
    pieces: list[str] = []
    asked = asker.answer(QUESTION, selection, on_text=pieces.append)
    assert "".join(pieces).strip() == asked.answer
    assert asked.option is None
    assert asked.probabilities == {}
    assert asked.frames == FRAMES
    scores = {frame.captured_at: frame.score for frame in asked.keyframes}
    assert len(scores) == len(expected)
    assert sorted(scores.values()) == sorted(round(float(selection.scores[row]), 6) for row in expected)


def test_answers_do_not_depend_on_how_patches_are_read(
    filled: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(QUESTION, store=filled, options=["red", "blue"], profile=profile)
    monkeypatch.setattr("model.read_ahead._CHUNK_BYTES", {"cpu": 3 * 16 * 24 * 2})  # three frames at a time
    assert ask(QUESTION, store=filled, options=["red", "blue"], profile=profile).probabilities == (
        pytest.approx(whole.probabilities, abs=1e-5)
    )


def test_what_python_is_told(filled: str, profile: str, tmp_path: object) -> None:
    with pytest.raises(StoreNotFound):
        ask("what", store=f"{tmp_path}/none", profile=profile)
    with pytest.raises(UnknownStream, match="roof"):
        ask("what", store=filled, streams=["roof"], profile=profile)
    with pytest.raises(EmptyWindow):
        ask("what", store=filled, start="2030-01-01T00:00:00Z", profile=profile)
    with pytest.raises(UsageError, match="before it begins"):
        ask("what", store=filled, start=BEGAN, end=BEGAN - timedelta(hours=1), profile=profile)
    with pytest.raises(UsageError, match="no time zone"):
        ask("what", store=filled, start="2024-03-01T08:00:00", profile=profile)
    with pytest.raises(UsageError, match="k must be"):
        ask("what", store=filled, k=0, profile=profile)
    with pytest.raises(UsageError, match="tau must"):
        ask("what", store=filled, tau=-1.0, profile=profile)


def test_more_keyframes_than_the_model_holds(filled: str, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Asker(filled, profile, "cpu")
    window = asker.store.window()
    crowd = np.arange(len(window), dtype=np.int64)
    selection = replace(asker.select(QUESTION), keyframes=crowd)
    monkeypatch.setattr(asker.answerer.language, "max_context", 300)
    with pytest.raises(BudgetExceeded, match="ask for fewer keyframes"):
        asker.answer(QUESTION, selection)
