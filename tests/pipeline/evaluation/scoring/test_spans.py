from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scoring.highlights import (
    average_precision,
    best_clips,
    highlight_hit,
    highlight_map,
    hit_at,
    moment_map,
    moment_r1,
    random_hit,
)
from pipeline.evaluation.scoring.spans import parse_span, recall_at, temporal_iou

REPLIES = [
    ("The event happens in the 24.3 - 30.4 seconds.", (24.3, 30.4)),
    ("The event happens in 3 to 9.8 seconds", (3.0, 9.8)),
    ("9.8 - 3.1", (3.1, 9.8)),
    ("from 0:12 to 1:05.5", (12.0, 65.5)),
    ("1:02:03 - 1:02:13", (3723.0, 3733.0)),
    ("3 s - 9 s", (3.0, 9.0)),
    ("3 seconds to 9 seconds", (3.0, 9.0)),
    ("It starts at 3.5 and ends at 7.", (3.5, 7.0)),
    ("The video lasts 30 seconds. It starts at 3.5 and ends at 7.", (3.5, 7.0)),
    ("Start time: 0.8 seconds.\nEnd time: 1.1 seconds.", (0.8, 1.1)),
    ("It begins at 0:12.\nThe video has 30 frames.\nIt ends at 1:05.", (12.0, 65.0)),
    ("It starts at 3.\nIt ends at 5.\nAnother starts at 9.", None),  # which two is not said
    ("It ends at 5.", None),
    ("There are 3 people and 2 dogs", None),
    ("At 5 seconds", None),
    ("I cannot tell.", None),
    ("", None),
]


@pytest.mark.parametrize(("reply", "span"), REPLIES, ids=[repr(reply) for reply, _ in REPLIES])
def test_golden_spans(reply: str, span: tuple[float, float] | None) -> None:
    assert parse_span(reply) == span


def test_iou_by_hand() -> None:
    assert temporal_iou((0, 10), (5, 15)) == pytest.approx(1 / 3)
    assert temporal_iou((0, 10), (0, 10)) == 1.0
    assert temporal_iou((0, 5), (5, 10)) == 0.0
    assert temporal_iou((0, 1), (8, 9)) == 0.0
    assert temporal_iou((3, 3), (3, 3)) == 0.0
    assert recall_at([0.3, 0.29, 0.7], 0.3) == pytest.approx(2 / 3)
    assert recall_at([], 0.5) == 0.0


@given(*(st.tuples(st.integers(0, 30), st.integers(1, 30)) for _ in range(2)))
def test_iou_against_seconds(one: tuple[int, int], other: tuple[int, int]) -> None:
    a, b = (one[0], sum(one)), (other[0], sum(other))
    first, second = set(range(*a)), set(range(*b))
    expected = len(first & second) / len(first | second) if first & second else 0.0
    assert temporal_iou(a, b) == pytest.approx(expected)


def test_hit_at_reads_the_order_of_selection() -> None:
    clips = best_clips([5, 6, 9], [[4, 3, 2], [3, 3, 1], [2, 3, 4]])
    assert clips == [5, 9]
    assert not hit_at([0.0, 12.0, 19.0], clips, 2)  # 12 s is clip 6
    assert hit_at([0.0, 12.0, 19.0], clips, 3)
    assert not hit_at([], clips, 3)
    assert best_clips([], []) == []


def test_random_hit_is_the_chance_of_a_draw() -> None:
    assert random_hit(4, 1, 1) == pytest.approx(0.25)
    assert random_hit(150, 2, 30) == pytest.approx(1 - (120 * 119) / (150 * 149))
    assert random_hit(3, 1, 30) == 1.0
    assert random_hit(3, 0, 2) == 0.0
    rng = np.random.default_rng(0)
    drawn = np.mean([(rng.permutation(20)[:5] < 3).any() for _ in range(4000)])
    assert random_hit(20, 3, 5) == pytest.approx(drawn, abs=0.03)


def test_moment_scores_by_hand() -> None:
    truth = [(10.0, 20.0), (40.0, 50.0)]
    predicted = [[12.0, 20.0, 0.4], [40.0, 50.0, 0.9], [60.0, 70.0, 0.95]]
    assert moment_r1(predicted, truth, 0.7)  # the first of the list, whatever its score: IoU 0.8
    assert not moment_r1(predicted[2:], truth, 0.5)
    assert not moment_r1([], truth, 0.5)
    # By score: miss, hit, and up to IoU 0.8 another hit. Precision made falling from the right: 2/3, 2/3, 2/3; else 1/2.
    assert moment_map(predicted, truth) == pytest.approx((7 * 2 / 3 + 3 * 1 / 4) / 10)
    assert moment_map([], truth) == 0.0


def test_a_window_is_found_once() -> None:
    assert moment_map([[0, 10, 0.9], [0, 10, 0.8]], [(0.0, 10.0), (50.0, 60.0)]) == pytest.approx(0.5)


def test_highlight_scores_by_hand() -> None:
    scores = [[4, 3, 2], [3, 3, 1]]
    assert highlight_hit([0, 0, 0, 0, 0, 0.9, 0.1], 20, [5, 6], scores, 4)
    assert not highlight_hit([0, 0, 0, 0, 0, 0.1, 0.9], 20, [5, 6], scores, 4)
    assert highlight_hit([0, 0, 0, 0, 0, 0.1, 0.9], 20, [5, 6], scores, 3)
    # Annotators 1 to 3 at 3 or more: clips {5, 6}, {5, 6} and none.
    ranked = [0.5, 0, 0, 0, 0, 0.9, 0.1]
    assert highlight_map(ranked, 20, [5, 6], scores, 3) == pytest.approx((2 * (1 / 2 + 1 / 2 * 2 / 3) + 0) / 3)
    assert highlight_map([], 1, [], [], 4) == 0.0
    assert not highlight_hit([], 1, [], [], 4)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_average_precision_against_thresholds(rows: list[tuple[bool, int]]) -> None:
    relevant, scores = np.array([r for r, _ in rows]), np.array([float(s) for _, s in rows])
    points = []
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        points.append((relevant[taken].sum() / max(1, relevant.sum()), relevant[taken].mean()))
    expected, before = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        expected += (recall - before) * max(p for _, p in points[i:])
        before = recall
    assert average_precision(relevant, scores) == pytest.approx(expected if relevant.any() else 0.0)
