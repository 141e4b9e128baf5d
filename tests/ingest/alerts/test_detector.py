"""Score histories and hysteresis against naive references; a detector continues from its state without a difference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from index.standing_questions import AlertRule
from ingest.alerts.detector import UNIT, AlertDetector, AlertTransition, DetectorState, Hysteresis, ScoreHistory

HIGH, LOW = 60.0, 40.0
scores = st.lists(st.integers(-UNIT, UNIT), min_size=1, max_size=80)
# Seconds between frames, mostly one, and scores on both sides of both thresholds.
frames = st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 2, 5, 9]), st.integers(30, 70)), max_size=60)
rules = st.builds(
    lambda n, more, clear, gap: AlertRule(
        raise_frames=n, of_frames=n + more, clear_seconds=clear, gap_seconds=gap, warm_up=10
    ),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(2, 8),
)


@settings(deadline=None)
@given(scores, st.integers(1, 40), st.floats(0, 1))
def test_quantiles_are_those_of_the_last_scores(values: list[int], size: int, share: float) -> None:
    background = ScoreHistory(size)
    for i, value in enumerate(values):
        background.add(value)
        last = values[max(0, i + 1 - size) : i + 1]
        assert background.scores() == last
        assert background.quantile(share) == pytest.approx(float(np.quantile(last, share)), abs=1e-6)
        for score in (value, value + 1, -UNIT, UNIT + 1):
            assert background.percentile(score) == 100 * sum(held < score for held in last) / len(last)
    assert ScoreHistory(size, values).scores() == background.scores()


def naive(rows: list[tuple[int, int]], rule: AlertRule) -> list[AlertTransition]:
    """The whole footage at once: cut at gaps, then search forward for the frame that raises and the one that clears."""
    runs: list[list[tuple[int, int]]] = []
    for row in rows:
        if not runs or row[0] - runs[-1][-1][0] > rule.gap_seconds:
            runs.append([])
        runs[-1].append(row)
    transitions: list[AlertTransition] = []
    for number, run in enumerate(runs):
        begin = 0
        while True:
            raised = None
            for i in range(begin, len(run)):
                some = run[max(begin, i - rule.of_frames + 1) : i + 1]
                if run[i][1] > HIGH and sum(score > HIGH for _, score in some) >= rule.raise_frames:
                    raised = i, [row for row in some if row[1] > HIGH]
                    break
            if raised is None:
                break
            i, above = raised
            start, best = above[0][0], max(score for _, score in above)
            peak = next(second for second, score in above if score == best)
            transitions.append(AlertTransition("raised", start, run[i][0], None, peak, best, HIGH))
            for j in range(i + 1, len(run) + 1):
                rest = run[i + 1 : j + 1] if j < len(run) else run[i + 1 :]
                held = max([run[i][0], *(second for second, score in rest if score >= LOW)])
                for second, score in rest:
                    if score > best:
                        peak, best = second, score
                if j < len(run) and run[j][1] < LOW and run[j][0] - held >= rule.clear_seconds:
                    transitions.append(AlertTransition("cleared", start, run[j][0], held, peak, best, HIGH))
                    break
                if j == len(run) and number + 1 < len(runs):
                    transitions.append(
                        AlertTransition("cleared", start, runs[number + 1][0][0], held, peak, best, HIGH)
                    )
            begin = j + 1
    return transitions


@settings(max_examples=300, deadline=None)
@given(frames, rules)
def test_hysteresis_against_a_naive_search(steps: list[tuple[int, int]], rule: AlertRule) -> None:
    second, rows = 1000, []
    for gap, score in steps:
        second += gap
        rows.append((second, score))
    state = Hysteresis(rule)
    transitions = [transition for at, score in rows for transition in state.step(at, score, HIGH, LOW)]
    assert transitions == naive(rows, rule)
    states = [transition.state for transition in transitions]
    assert states == (["raised", "cleared"] * len(states))[: len(states)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, UNIT), min_size=30, max_size=120), st.integers(0, 119))
def test_a_detector_continues_from_its_state(values: list[int], cut: int) -> None:
    rule = AlertRule(floor=0.2, warm_up=12, samples=20, every=2, settle_seconds=10)
    whole, parts = AlertDetector(rule), AlertDetector(rule)
    for second, value in enumerate(values):
        if second == cut:
            parts = AlertDetector(rule, DetectorState.model_validate_json(parts.state().model_dump_json()))
        assert parts.step(second, value) == whole.step(second, value)
    assert parts.state() == whole.state()


def run(detector: AlertDetector, values: list[int], first: int = 0) -> list[AlertTransition]:
    return [transition for i, value in enumerate(values) for transition in detector.step(first + i, value)]


RULE = AlertRule(floor=0.3, warm_up=30, samples=100, every=1)


def test_an_alert_is_reported_once_and_is_not_background() -> None:
    detector = AlertDetector(RULE)
    assert run(detector, [100, 200] * 20) == []
    before = detector.background.scores()
    transitions = run(detector, [4000, 5000, 4500, 4800], 40)
    assert [(t.state, t.start, t.at) for t in transitions] == [("raised", 40, 41)]
    assert detector.background.scores() == before
    # The fourth second after the last that was high clears it: three seconds below low.
    transitions = run(detector, [100] * 5, 44)
    assert [(t.state, t.start, t.at, t.end, t.peak, t.score) for t in transitions] == [
        ("cleared", 40, 46, 43, 41, 5000)
    ]
    assert detector.background.scores()[: len(before)] == before


def test_a_single_frame_is_no_alert() -> None:
    detector = AlertDetector(RULE)
    assert run(detector, [100, 200] * 20 + [9000] + [100] * 20) == []


def test_nothing_is_reported_during_the_warm_up() -> None:
    detector = AlertDetector(RULE)
    assert run(detector, [100] * 15 + [5000] * 5 + [100] * 9) == []  # raised and cleared, not reported
    assert max(detector.background.scores()) == 100  # and not part of the background
    assert [t.state for t in run(detector, [5000] * 5 + [100] * 9, 40)] == ["raised", "cleared"]


def test_an_object_that_was_there_at_first_is_not_background() -> None:
    """Five seconds before there is a threshold; a similar object is reported later."""
    detector = AlertDetector(RULE)
    assert run(detector, [5000] * 5 + [0, 100] * 20) == []
    assert max(detector.background.scores()) == 100
    assert [t.state for t in run(detector, [5000] * 5 + [100] * 9, 45)] == ["raised", "cleared"]
    often = AlertDetector(RULE)
    run(often, ([5000] * 5 + [0, 100] * 5) * 3)  # a third of the time
    assert max(often.background.scores()) == 5000
    learnt = AlertDetector(RULE)
    learnt.learn(enumerate([5000] * 5 + [0] * 20), 50)
    assert max(learnt.background.scores()) == 0


def test_the_threshold_is_higher_for_what_the_camera_often_shows() -> None:
    quiet, busy = AlertDetector(RULE), AlertDetector(RULE)
    run(quiet, [0, 100] * 50)
    run(busy, ([0] * 18 + [2900, 0]) * 5)  # single frames, below the floor
    assert quiet.thresholds()[0] == pytest.approx(3050)
    assert busy.thresholds()[0] == pytest.approx(1.4 * 2900)


def test_what_stays_becomes_background() -> None:
    rule = RULE.model_copy(update={"settle_seconds": 20, "samples": 40})
    detector = AlertDetector(rule)
    run(detector, [0] * 60)
    transitions = run(detector, [6000] * 200, 60)
    assert [t.state for t in transitions] == ["raised", "cleared"]
    assert detector.thresholds()[0] == pytest.approx(9000)


def test_an_invalid_rule() -> None:
    with pytest.raises(ValidationError, match="less than raise_frames"):
        AlertRule(raise_frames=4, of_frames=3)
