"""Questions as the published evaluation of ViLAMP asks them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import UsageError
from index.keyframes import select_keyframes
from model.selection import even_rows
from pipeline.questions.asker import Asker
from pipeline.questions.reference import ask_as_reference, select_as_reference
from tests.support.command import Command

QUESTION = "what colour was the truck at the gate ?"
OPTIONS = ("red", "blue car", "green")


@pytest.fixture(scope="module")
def asker(filled: str, profile: str) -> Asker:
    return Asker(filled, profile, "cpu")


@given(st.integers(0, 3000), st.integers(1, 700))
def test_even_rows(total: int, limit: int) -> None:
    rows = even_rows(total, limit)
    assert len(rows) == min(total, limit)
    assert (np.diff(rows) > 0).all()
    if total <= limit:
        assert rows.tolist() == list(range(total))
        return
    assert rows[0] == 0
    exact = [Fraction(i * (total - 1), max(1, limit - 1)) for i in range(limit)]
    for row, place in zip(rows.tolist(), exact, strict=True):
        assert row == int(place) or (place.denominator == 1 and row == place - 1)  # floats, as in the scripts
    assert limit == 1 or rows[-1] == total - 1


def test_even_rows_of_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        even_rows(10, 0)


def test_frames_are_thinned_before_keyframes_are_selected(asker: Asker) -> None:
    whole = asker.store.window(["front"])
    selection = select_as_reference(asker, QUESTION, streams=["front"], k=4, tau=0.5, frames=9)
    rows = even_rows(len(whole), 9)
    assert selection.window.captured_at.tolist() == whole.captured_at[rows].tolist()
    query = asker.encoders.frame.encode_text([QUESTION])[0]
    expected = select_keyframes(whole.frame_vectors[rows], query, k=4, tau=0.5, fill=True)
    assert selection.keyframes.tolist() == expected.tolist()
    assert len(selection.keyframes) == 4  # gaps are filled


def test_the_answer_is_decoded_text(asker: Asker) -> None:
    asked = ask_as_reference(asker, QUESTION, options=OPTIONS, streams=["front"], frames=9, max_new_tokens=3)
    chosen = asker.ask(QUESTION, options=OPTIONS, streams=["front"])
    assert chosen.answer in OPTIONS
    assert chosen.probabilities
    assert asked.answer not in OPTIONS  # random weights decode random words
    assert asked.option is None
    assert asked.probabilities == {}
    assert asked.frames == asked.window_frames == 9
    tokens = asker.answerer.language.tokenizer(asked.answer, add_special_tokens=False).input_ids
    assert 0 < len(tokens) <= 3
    assert "Reference mode" in asked.notices[-1]


def test_several_streams_are_refused(asker: Asker) -> None:
    with pytest.raises(UsageError, match=r"one video, and 2 streams.*--stream"):
        select_as_reference(asker, QUESTION)


def test_the_command(filled: str, profile: str, sightline: Command) -> None:
    asked = ("ask", QUESTION, "--reference", "--store", filled, "--profile", profile)
    result = sightline(*asked, "--stream", "front", "--option", "red", "--option", "blue", "--max-frames", 9, "--json")
    assert result.code == 0, result.err
    assert result.data["frames"] == result.data["window_frames"] == 9
    assert result.data["probabilities"] == {}
    refused = sightline(*asked, "--stream", "front", "--redundancy", "background")
    assert (refused.code, refused.out) == (2, "")
    assert "leave --selector, --redundancy, --temperature and --service out" in refused.err
    several = sightline(*asked)
    assert several.code != 0
    assert "2 streams were asked about (back, front)" in several.err
