"""Cases of VideoNIAH: exact lengths, balanced types and bins, one list for every profile; and the rendered footage."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import UsageError
from model.world.questions import participants
from pipeline.evaluation.needles.cases import Case, Draw, Needle, Piece, depth_bin, draw_cases
from pipeline.evaluation.needles.rendered import RenderedFootage


def needle(number: int, frames: int = 30, kind: str = "what") -> Needle:
    return Needle(
        id=f"n{number}", stream=f"needle-{number}", frames=frames, kind=kind, question="?", options=("a", "b"), answer=0
    )


HAY = {f"hay-{i}": 50 + i for i in range(20)}


def rows(case: Case, **shown: bool) -> list[tuple[str, int]]:
    return [(piece.stream, row) for piece in case.pieces(**shown) for row in range(piece.first, piece.stop)]


@given(st.integers(0, 10**6), st.integers(100, 700), st.integers(30, 60))
def test_a_splice_is_the_haystack_with_the_needle_at_its_depth(seed: int, length: int, frames: int) -> None:
    (case,) = draw_cases([needle(0, frames)], HAY, Draw(lengths=(length,), per_length=1, seed=seed))
    whole, hay = rows(case), rows(case, needle=False)
    assert len(whole) == length
    assert len(hay) == length - frames
    assert rows(case, haystack=False) == [("needle-0", row) for row in range(frames)]
    assert whole == hay[: case.insertion] + rows(case, haystack=False) + hay[case.insertion :]
    assert case.insertion % 4 == 0 or case.insertion == length - frames
    assert abs(case.insertion - case.depth * (length - frames)) <= 4
    assert len(set(hay)) == len(hay)


def test_types_and_bins_are_balanced_and_needles_are_used_again() -> None:
    needles = [needle(i, kind=("what", "where", "colour")[i % 3]) for i in range(7)]
    cases = draw_cases(needles, HAY, Draw(lengths=(200, 300), per_length=30, seed=3))
    for length in (200, 300):
        chosen = [case for case in cases if case.length == length]
        assert Counter(case.needle.kind for case in chosen) == {"what": 10, "where": 10, "colour": 10}
        assert set(Counter(depth_bin(case.depth) for case in chosen).values()) == {3}
        assert len({case.needle.id for case in chosen}) == 7
        kinds_of_bin = Counter((case.needle.kind, depth_bin(case.depth)) for case in chosen)
        assert len(kinds_of_bin) > 15  # a type does not always have the same depth
    assert len({case.id for case in cases}) == 60
    assert cases == draw_cases(needles, HAY, Draw(lengths=(200, 300), per_length=30, seed=3))
    assert cases != draw_cases(needles, HAY, Draw(lengths=(200, 300), per_length=30, seed=4))


def test_a_stream_that_is_not_allowed_is_never_in_the_haystack() -> None:
    cases = draw_cases(
        [needle(0)],
        HAY,
        Draw(lengths=(300,), per_length=20),
        lambda needle, stream: stream.endswith(("0", "2", "4", "6")),
    )
    assert {piece.stream[-1] for case in cases for piece in case.haystack} <= set("0246")


@pytest.mark.parametrize(
    ("needles", "length", "message"),
    [([], 300, "no needles"), ([needle(0, 300)], 300, "no room"), ([needle(0)], 5000, r"needs 4970 frames .* hold")],
)
def test_what_cannot_be_drawn_is_an_error(needles: list[Needle], length: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_cases(needles, HAY, Draw(lengths=(length,), per_length=1))


def test_pieces_around_an_insertion_between_streams() -> None:
    hay = (Piece(stream="a", first=0, stop=8), Piece(stream="b", first=0, stop=8))
    case = Case(id="1", seed=0, length=46, depth=0.5, insertion=8, haystack=hay, needle=needle(0))
    assert [(p.stream, p.first, p.stop) for p in case.pieces()] == [("a", 0, 8), ("needle-0", 0, 30), ("b", 0, 8)]


def test_depth_one_is_in_the_last_bin() -> None:
    assert [depth_bin(depth) for depth in (0.0, 0.0999, 0.1, 0.95, 1.0)] == [0, 0, 1, 9, 9]


def test_no_participant_of_a_rendered_haystack_fits_what_its_question_states() -> None:
    footage = RenderedFootage(5, longest=1200, each=2)
    assert Counter(each.kind for each in footage.needles) == dict.fromkeys(
        ("what", "colour", "where", "how many", "before/after"), 2
    )
    assert all(60 <= stream.seconds <= 120 for stream in footage.needle_streams)
    events = {stream.name: stream.events for stream in footage.haystacks}
    for each in footage.needles:
        for name in events:
            if not footage.allowed(each, name):
                continue
            for event, actor in participants(events[name]):
                words = {"what": (None, 1), "how many": (None, 2)}.get(each.kind)
                if words is None:
                    continue
                # The text names colour and place, of "how many" the kind too.
                place = ("gate", "door", "bench", "fountain", "tree", "tower")[event.place]
                if f"at the {place}" in each.question and actor.name.split()[0] in each.question.split():
                    assert each.kind == "how many"
                    assert f"{actor.name.split()[1][:3]}" not in each.question


def test_no_answer_of_a_rendered_kind_is_a_good_guess() -> None:
    """Four in five groups are of one participant; without a limit "one" answers 79 % of the questions "how many"."""
    footage = RenderedFootage(0, longest=600, each=12)
    for kind, total in Counter(each.kind for each in footage.needles).items():
        assert total == 12
        answers = Counter(each.options[each.answer] for each in footage.needles if each.kind == kind)
        assert max(answers.values()) <= 4
