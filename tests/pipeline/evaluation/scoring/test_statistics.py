from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scoring.intervals import clustered_mean, clustered_share, wilson
from pipeline.evaluation.scoring.pairs import mcnemar
from pipeline.evaluation.scoring.positions import position_table, rotate, rotation_spread, unrotate


def test_questions_of_their_own_videos_have_the_plain_interval() -> None:
    right = [True] * 10 + [False] * 10
    found = clustered_share(right, range(20))
    low, high = wilson(0.5, 20 * 19 / 20)  # n / (n - 1) is the correction of the variance over clusters
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.right, found.total, found.share, found.clusters) == (10, 20, 0.5, 20)


def test_known_wilson_interval() -> None:
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0.3, 0) == (0.0, 1.0)


def test_equal_answers_within_a_video_count_once() -> None:
    right = [value for value in [True] * 10 + [False] * 10 for _ in range(3)]
    videos = [video for video in range(20) for _ in range(3)]
    found = clustered_share(right, videos)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 19))
    alone = clustered_share([True] * 30, [video for video in range(10) for _ in range(3)])
    assert alone.low == pytest.approx(wilson(1.0, 10)[0])


def test_the_interval_covers_the_truth() -> None:
    """Answers of 60 videos with three questions each, alike within a video: 95 % intervals cover about 95 %."""
    rng = np.random.default_rng(3)
    covered = plain = 0
    for _ in range(400):
        chance = rng.beta(2, 2, 60)
        right = rng.random((60, 3)) < chance[:, None]
        found = clustered_share(right.ravel().tolist(), np.repeat(np.arange(60), 3).tolist())
        covered += found.low <= 0.5 <= found.high
        low, high = wilson(found.share, 180)
        plain += low <= 0.5 <= high
    assert covered >= 370
    assert plain < covered


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), max_size=30))
def test_an_interval_holds_its_mean(rows: list[tuple[float, int]]) -> None:
    found = clustered_mean([value for value, _ in rows], [cluster for _, cluster in rows])
    assert 0 <= found.low <= found.share + 1e-9
    assert found.share - 1e-9 <= found.high <= 1


def test_mcnemar_against_all_tables_by_hand() -> None:
    first = [True] * 9 + [False] * 3 + [True] * 5 + [False] * 4
    second = [False] * 9 + [True] * 3 + [True] * 5 + [False] * 4
    found = mcnemar(first, second, range(21))
    assert (found.both, found.only_first, found.only_second, found.neither) == (5, 9, 3, 4)
    assert found.p == pytest.approx(2 * sum([1, 12, 66, 220]) / 2**12)
    assert found.difference == pytest.approx(-6 / 21)
    assert found.p_clustered == pytest.approx(0.0833, abs=1e-3)  # chi-squared of 36 / 12 with one degree of freedom


def test_mcnemar_of_equal_runs() -> None:
    assert mcnemar([True, False], [True, False], "ab").p == 1.0
    assert mcnemar([], [], []).p_clustered == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=9))
def test_mcnemar_p_equals_the_count_of_sign_patterns(pairs: list[tuple[bool, bool]]) -> None:
    differences = [int(b) - int(a) for a, b in pairs if a != b]
    size = abs(sum(differences))
    patterns = list(product((-1, 1), repeat=len(differences)))
    p = sum(abs(sum(each)) >= size for each in patterns) / len(patterns)
    found = mcnemar([a for a, _ in pairs], [b for _, b in pairs], range(len(pairs)))
    assert found.p == pytest.approx(p)


def test_position_table_shows_a_preference() -> None:
    table = position_table([(0, 1, 4), (1, 1, 4), (2, 1, 4), (3, None, 4)])
    assert [(row.letter, row.keys, row.chosen, row.right) for row in table] == [
        ("A", 1, 0, 0),
        ("B", 1, 3, 1),
        ("C", 1, 0, 0),
        ("D", 1, 0, 0),
        ("–", 0, 1, 0),
    ]


@given(st.integers(1, 6), st.integers(0, 10))
def test_rotation_is_undone(count: int, by: int) -> None:
    options = tuple(map(str, range(count)))
    assert [unrotate(i, by, count) for i in range(count)] == [int(text) for text in rotate(options, by)]


def test_rotation_spread_uses_the_questions_of_all_rotations() -> None:
    answers = [("a", 0, True), ("a", 1, False), ("b", 0, True), ("b", 1, True), ("c", 0, False)]
    found = rotation_spread(answers)
    assert found is not None
    assert (found.accuracy, found.questions, found.spread, found.always) == ({0: 1.0, 1: 0.5}, 2, 0.5, 0.5)
    assert rotation_spread([("a", 0, True)]) is None
