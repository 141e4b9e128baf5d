from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scoring.retrieval import (
    best_iou,
    overlaps,
    precision_at,
    ranked_precision,
    recall_at_k,
    separation,
)

TRUTH = [(10.0, 20.0), (40.0, 50.0)]
MOMENTS = [(12.0, 14.0), (30.0, 35.0), (45.0, 60.0), (15.0, 20.0)]


def test_a_ranking_by_hand() -> None:
    assert [precision_at(MOMENTS, TRUTH, k) for k in (1, 2, 4, 10)] == [1, 0.5, 0.75, 0.75]
    assert [recall_at_k(MOMENTS, TRUTH, k) for k in (1, 2, 3)] == [0.5, 0.5, 1]
    assert ranked_precision(MOMENTS, TRUTH) == pytest.approx((1 + 2 / 3) / 2)
    assert best_iou(MOMENTS, TRUTH) == pytest.approx((0.5 + 5 / 20) / 2)
    for score in (ranked_precision, best_iou):
        assert score([], TRUTH) == score(MOMENTS, []) == 0
    assert precision_at([], TRUTH, 5) == recall_at_k(MOMENTS, [], 5) == 0


def test_touching_spans_do_not_overlap() -> None:
    assert not overlaps((0, 10), (10, 20))
    assert not overlaps((20, 30), (10, 20))
    assert overlaps((0, 10.5), (10, 20))


def test_separation_is_the_share_of_pairs() -> None:
    assert separation([3, 1], [2, 0]) == 0.75
    assert separation([1], [1]) == 0.5
    assert separation([], [1]) is None


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_average_precision_against_ranks(right: list[bool]) -> None:
    """One true span for each right moment: the usual average precision."""
    moments = [(10.0 * n, 10.0 * n + 5) for n in range(len(right))]
    truth = [moments[n] for n, is_right in enumerate(right) if is_right]
    ranks = [n + 1 for n, is_right in enumerate(right) if is_right]
    expected = sum((found + 1) / rank for found, rank in enumerate(ranks)) / len(ranks) if ranks else 0.0
    assert ranked_precision(moments, truth) == pytest.approx(expected)
