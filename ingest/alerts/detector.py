"""Detection of alerts: one standing question at one camera, from the history of its scores to raised and cleared
alerts.

Scores are integers, ten-thousandths of a cosine, so that a worker that computes them again from the stored frames gets
exactly the same numbers, whatever the batches. Times are whole UTC seconds. This module knows nothing of texts, frames,
stores or Kafka.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from index.standing_questions import AlertRule

__all__ = ["UNIT", "AlertDetector", "AlertTransition", "DetectorState", "Hysteresis", "ScoreHistory"]

UNIT = 10_000
"""The score of cosine 1."""
_MIN_SAMPLES = 10  # scores without which there is no threshold


class ScoreHistory:
    """The latest scores of a camera, with exact quantiles. Adding a score costs a binary search and one memmove.

    Args:
        size: the number of scores that are kept.
        scores: the first scores, the oldest first.
    """

    def __init__(self, size: int, scores: Iterable[int] = ()) -> None:
        self._order = deque(scores, maxlen=size)
        self._sorted = sorted(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, score: int) -> None:
        """Add a score; the oldest one is removed when there are more than `size`."""
        if len(self._order) == self._order.maxlen:
            del self._sorted[bisect_left(self._sorted, self._order[0])]
        self._order.append(score)
        insort(self._sorted, score)

    def quantile(self, share: float) -> float:
        """The quantile `share`, in [0, 1], interpolated linearly as by `numpy.quantile`. Needs at least one score."""
        at = share * (len(self._sorted) - 1)
        low = int(at)
        high = min(low + 1, len(self._sorted) - 1)
        return self._sorted[low] + (self._sorted[high] - self._sorted[low]) * (at - low)

    def percentile(self, score: int) -> float:
        """The share of the scores that are less, in percent, 0 to 100. Needs at least one score."""
        return 100.0 * bisect_left(self._sorted, score) / len(self._sorted)

    def scores(self) -> list[int]:
        """All scores, the oldest first."""
        return list(self._order)


class AlertTransition(NamedTuple):
    """An alert that is raised or cleared."""

    state: Literal["raised", "cleared"]
    """What happens."""
    start: int
    """The first second of the alert."""
    at: int
    """The second of the frame that raises or clears it."""
    end: int | None
    """The last second at or above the low threshold; None when raised."""
    peak: int
    """The second with the highest score so far."""
    score: int
    """The score at `peak`."""
    threshold: float
    """The high threshold at the time when the alert was raised."""
    usual: float | None = None
    """The median of the background, the camera's own usual scores, at `at`; None without a background."""
    percentile: float | None = None
    """The share of the background that scores less than `score`, in percent; None without a background."""


@dataclass(slots=True)
class Hysteresis:
    """The state machine of an alert.

    An alert is raised when `raise_frames` of the last `of_frames` frames are above the high threshold. It is cleared
    after `clear_seconds` below the low threshold, or by a gap between frames.
    """

    rule: AlertRule
    """The rule of the question."""
    recent: list[tuple[int, int, bool]] = field(default_factory=list)
    """The latest frames while no alert is raised: second, score, and whether it was above the high threshold."""
    start: int | None = None
    """The first of the frames that raised the alert; None while no alert is raised."""
    held: int = 0
    """The last second at or above the low threshold."""
    peak: int = 0
    """The second of the highest score of the alert."""
    score: int = 0
    """That score."""
    threshold: float = 0.0
    """The high threshold when the alert was raised."""
    last: int | None = None
    """The second of the last frame."""

    def step(self, second: int, score: int, high: float, low: float) -> list[AlertTransition]:
        """Add a frame, later than all before.

        Args:
            second: the UTC second of the frame.
            score: its score.
            high, low: the current thresholds.

        Returns:
            The transitions that it causes, at most two.
        """
        transitions: list[AlertTransition] = []
        if self.last is not None and second - self.last > self.rule.gap_seconds:
            if self.start is not None:
                transitions.append(self._cleared(second))
            self.recent.clear()
        self.last = second
        if self.start is None:
            self.recent = [*self.recent[1 - self.rule.of_frames :], (second, score, score > high)][
                -self.rule.of_frames :
            ]
            above = [(at, value) for at, value, over in self.recent if over]
            if score > high and len(above) >= self.rule.raise_frames:
                self.start, self.held, self.threshold = above[0][0], second, high
                self.peak, self.score = max(above, key=lambda pair: (pair[1], -pair[0]))
                self.recent.clear()
                transitions.append(AlertTransition("raised", self.start, second, None, self.peak, self.score, high))
            return transitions
        if score > self.score:
            self.peak, self.score = second, score
        if score >= low:
            self.held = second
        elif second - self.held >= self.rule.clear_seconds:
            transitions.append(self._cleared(second))
        return transitions

    def _cleared(self, second: int) -> AlertTransition:
        assert self.start is not None  # only called while an alert is raised
        transition = AlertTransition("cleared", self.start, second, self.held, self.peak, self.score, self.threshold)
        self.start = None
        return transition


class DetectorState(BaseModel):
    """The state of an `AlertDetector`, as it is stored. `recent` to `last` are those of `Hysteresis`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scores: list[int]
    """The background, the oldest score first."""
    seen: int
    """The number of frames so far."""
    silent: bool
    """Whether the alert that is raised now is not reported, because it was raised during the warm-up."""
    recent: list[tuple[int, int, bool]]
    """Second, score, and whether it was above the high threshold, of the latest frames."""
    start: int | None
    """The first second of the alert that is raised now, or None."""
    held: int
    """The last second at or above the low threshold."""
    peak: int
    """The second of the highest score of the alert."""
    score: int
    """That score."""
    threshold: float
    """The high threshold when the alert was raised."""
    last: int | None
    """The second of the last frame."""


class AlertDetector:
    """Detects the alerts of one question at one camera.

    The thresholds follow the background, the usual scores of the question at this camera; see `AlertRule`.

    Args:
        rule: the rule of the question.
        state: the state to continue from; None to start without a background.

    Attributes:
        background: the scores of frames outside alerts.
        hysteresis: the state of the current alert.
        seen: the number of frames so far.
        silent: whether the current alert is not reported, because it was raised during the warm-up.
    """

    def __init__(self, rule: AlertRule, state: DetectorState | None = None) -> None:
        self.rule = rule
        self.background = ScoreHistory(rule.samples, state.scores if state else ())
        self.hysteresis = Hysteresis(rule)
        self.seen, self.silent = 0, False
        if state is not None:
            self.seen, self.silent = state.seen, state.silent
            for name in ("recent", "start", "held", "peak", "score", "threshold", "last"):
                setattr(self.hysteresis, name, getattr(state, name))
            self.hysteresis.recent = list(state.recent)

    def thresholds(self) -> tuple[float, float]:
        """The high and the low threshold, in units of a score; infinite while the background is too small."""
        if len(self.background) < _MIN_SAMPLES:
            return float("inf"), float("inf")
        median = self.background.quantile(0.5)
        spread = self.rule.spread * (self.background.quantile(self.rule.quantile) - median)
        rise = max(spread, self.rule.floor * UNIT)
        return median + rise, median + self.rule.low_share * rise

    def step(self, second: int, score: int) -> list[AlertTransition]:
        """Add a frame, later than all before. Returns the transitions to report."""
        high, low = self.thresholds()
        transitions = self.hysteresis.step(second, score, high, low)
        reported: list[AlertTransition] = []
        for transition in transitions:
            if transition.state == "raised":
                self.silent = self.seen < self.rule.warm_up
            if not self.silent:
                reported.append(self._with_meaning(transition))
        self.seen += 1
        start = self.hysteresis.start
        # An alert that lasts long enough becomes part of the scene.
        ordinary = score <= high if start is None else second - start >= self.rule.settle_seconds
        if ordinary and second % self.rule.every == 0:
            self.background.add(score)
        if self.seen == self.rule.warm_up:
            self._trim()
        return reported

    def _with_meaning(self, transition: AlertTransition) -> AlertTransition:
        """The transition with what its score means at this camera."""
        if not len(self.background):
            return transition
        return transition._replace(
            usual=self.background.quantile(0.5), percentile=self.background.percentile(transition.score)
        )

    def _trim(self) -> None:
        """Remove high scores from before the first threshold, unless they are more than a fifth of the background.

        An object that was in the picture when the camera was first read would otherwise raise the quantile for as long
        as the background remembers it, and similar objects would be missed.
        """
        if not len(self.background):
            return
        limit = self.background.quantile(0.5) + self.rule.floor * UNIT
        scores = self.background.scores()
        ordinary = [score for score in scores if score <= limit]
        if 5 * len(ordinary) >= 4 * len(scores):
            self.background = ScoreHistory(self.rule.samples, ordinary)

    def learn(self, pairs: Iterable[tuple[int, int]], frames: int) -> None:
        """Build the background from frames that are older than the question.

        Args:
            pairs: second and score of a sample of these frames, in ascending order.
            frames: the number of frames that they were sampled from.
        """
        for second, score in pairs:
            self.step(second, score)
        self.hysteresis, self.silent = Hysteresis(self.rule), False
        self.seen = frames
        if frames >= self.rule.warm_up:
            self._trim()

    def state(self) -> DetectorState:
        """The state from which another detector continues in the same way."""
        now = self.hysteresis
        return DetectorState(
            scores=self.background.scores(),
            seen=self.seen,
            silent=self.silent,
            recent=list(now.recent),
            start=now.start,
            held=now.held,
            peak=now.peak,
            score=now.score,
            threshold=now.threshold,
            last=now.last,
        )
