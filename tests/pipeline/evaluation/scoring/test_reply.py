from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scoring.reply import LETTERS, parse_reply, strip_label
from tests.support.published_parsers import flash_letter, lvbench_letter, mlvu_letter, videomme_letter

FOUR = ("a cup", "a saw", "a hat", "a key")

GOLDEN = [
    # rule 1: at the start
    ("B", 1),
    ("b", 1),
    ("B.", 1),
    ("B)", 1),
    ("b) a saw", 1),
    ("B. a saw", 1),
    ("B: a saw", 1),
    ("B, a saw", 1),
    (" \n C \n", 2),
    ("**D**", 3),
    ("D. A book", 3),  # the older parser of VideoChat-Flash reads A
    ("A) or (B)", 0),
    ("E", None),  # only four options
    ("E. a lamp", None),
    ("B.a lamp", 1),
    ("A.5 meters", 0),
    ("D.C. is the place", None),  # an abbreviation
    ("B,C", None),
    ("B, C", 1),
    ("（Ｂ）", 1),  # full-width signs
    # rule 2: in brackets
    ("(C)", 2),
    ("(c) a hat", 2),
    ("I believe it is (C), because of the brim.", 2),
    ("(A) or (B)", None),
    ("It is (A). Yes, (A).", 0),
    # rule 3: a letter with a full stop
    ("I choose B.", 1),
    ("We can rule out A. It must be C.", None),
    ("It was made in the U.S.A. in 1990", None),
    # rule 4: the answer is
    ("Best answer: C", 2),  # the official script of Video-MME reads B
    ("The answer is C", 2),
    ("the best answer is: (D)", 3),
    ("Answer: option A", 0),
    ("Option B is correct", 1),
    ("The answer is B because the saw is shown", 1),
    ("The answer is a man", None),
    ("The answer is A man", None),  # lmms-eval reads A
    ("answer is not shown", None),
    # rule 5: the text of an option
    ("a hat", 2),
    ("A hat.", 2),
    ('"a key"', 3),
    ("a man", None),  # VideoChat-Flash and lmms-eval read A
    ("A man", None),
    ("a hat and a key", None),
    ("a hat (the last one)", None),
    # nothing: with one new token a model that begins so has no answer
    ("(", None),
    ("The", None),
    ("A", 0),
    ("", None),
    ("...", None),
    ("I cannot see a video.", None),
    ("[E]CUDA out of memory", None),  # ViLAMP's scripts read E or C
    ("None of the above", None),
]


@pytest.mark.parametrize(("reply", "index"), GOLDEN, ids=[repr(reply) for reply, _ in GOLDEN])
def test_golden_replies(reply: str, index: int | None) -> None:
    assert parse_reply(reply, FOUR) == index


def test_the_range_of_letters_is_that_of_the_question() -> None:
    assert parse_reply("F", tuple("uvwxyz")) == 5  # the test split of MLVU has six options
    assert parse_reply("F", tuple("uvwxy")) is None
    assert parse_reply("C", ("yes", "no")) is None


def test_a_text_that_looks_like_a_letter_is_read_by_its_text() -> None:
    """A letter that no option has decides nothing."""
    assert parse_reply("E. coli", ("a virus", "a fungus", "E. coli", "an amoeba")) == 2
    assert parse_reply("E. coli", ("a virus", "a fungus", "yeast", "an amoeba")) is None
    assert parse_reply("C cooks.", ("C sits.", "C cooks.", "C runs.", "C eats.", "C reads.")) == 1  # EgoSchema
    assert parse_reply("[E]CUDA out of memory", tuple("uvwxyz")) is None  # ViLAMP's scripts, where E is an option


def test_two_options_of_one_text_are_ambiguous() -> None:
    assert parse_reply("red", ("red", "Red.", "blue")) is None
    assert parse_reply("blue", ("red", "Red.", "blue")) == 2


DIFFERENT = [
    # reply, here, Video-MME's script, LVBench's script, MLVU's script, VideoChat-Flash's parser
    ("B", 1, "B", "B", "B", "B"),
    ("(B)", 1, "B", "B", "B", "B"),
    ("B) a saw", 1, "B", "B", "B", "B"),
    ("B. a saw", 1, "B", "B", "", "B"),
    ("The answer is B", 1, "B", "T", "", "B"),
    ("Best answer: C", 2, "B", "B", "", "C"),
    ("A man", None, "A", "A", "", "A"),
    ("a man", None, "", "a", "", "A"),
    ("It is a hat", None, "", "I", "", "A"),
    ("D. A book", 3, "D", "D", "", "D"),
    ("I cannot Decide", None, "D", "I", "", ""),
    ("[E]CUDA out of memory", None, "C", "[", "", "E"),
    ("", None, "", "", "", ""),
]


@pytest.mark.parametrize("row", DIFFERENT, ids=[repr(row[0]) for row in DIFFERENT])
def test_where_published_parsers_differ(row: tuple[str, int | None, str, str, str, str]) -> None:
    """The rules of the released scorers, written down from their descriptions, on the replies that tell them apart."""
    reply, here, *published = row
    assert parse_reply(reply, FOUR) == here
    assert [rule(reply) for rule in (videomme_letter, lvbench_letter, mlvu_letter, flash_letter)] == published


@given(st.integers(2, 6), st.data())
def test_each_way_to_write_a_letter_is_read(count: int, data: st.DataObject) -> None:
    options = tuple(f"thing number {i}" for i in range(count))
    index = data.draw(st.integers(0, count - 1))
    letter = LETTERS[index]
    for form in ("{}", "{}.", "({})", "{})", "({}) thing", "Answer: {}", "The answer is {}.", "The answer is ({})."):
        assert parse_reply(form.format(letter), options) == index
    assert parse_reply(options[index].upper(), options) == index


@given(st.text(max_size=60), st.integers(1, 6))
def test_any_text_gives_an_option_or_nothing(reply: str, count: int) -> None:
    found = parse_reply(reply, tuple(f"thing {i}" for i in range(count)))
    assert found is None or 0 <= found < count


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("A. red", "red"),
        ("(A) red", "red"),
        ("b) red", "red"),
        ("A man", "A man"),
        ("C cooks.", "C cooks."),
        ("A. C cooks.", "C cooks."),
        ("a. m.", "a. m."),
        ("D.", "D."),
    ],
)
def test_labels_are_stripped_once(option: str, text: str) -> None:
    assert strip_label(option) == text
