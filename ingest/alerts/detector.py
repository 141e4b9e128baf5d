"""One standing question at one camera: what its scores usually are there, and when a score is an alert.

Scores are whole ten-thousandths of a cosine, so that a worker that starts again from the store's frames comes to the
very same numbers, whatever batches they were in. Time is whole UTC seconds. Nothing here knows of texts, frames,
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

UNIT = 10_000  # scores a cosine
_LEAST = 10  # samples without which there is no threshold at all


class ScoreHistory:
    """The last `size` scores, with exact quantiles: O(log n) to find, one memmove to add."""

    def __init__(self, size: int, scores: Iterable[int] = ()) -> None:
        self._order = deque(scores, maxlen=size)
        self._sorted = sorted(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, score: int) -> None:
        if len(self._order) == self._order.maxlen:
            del self._sorted[bisect_left(self._sorted, self._order[0])]
        self._order.append(score)
        insort(self._sorted, score)

    def quantile(self, share: float) -> float:
        """Linear between neighbours, as `numpy.quantile` has it; `share` in [0, 1]. Needs at least one score."""
        at = share * (len(self._sorted) - 1)
        low = int(at)
        high = min(low + 1, len(self._sorted) - 1)
        return self._sorted[low] + (self._sorted[high] - self._sorted[low]) * (at - low)

    def scores(self) -> list[int]:
        """The oldest first."""
        return list(self._order)


class AlertTransition(NamedTuple):
    """An alert was raised or cleared at second `at`. `end`: the last second that was not low, None when raised.

    `score` is the peak's so far, `threshold` what had to be passed when it was raised.
    """

    state: Literal["raised", "cleared"]
    start: int
    at: int
    end: int | None
    peak: int
    score: int
    threshold: float


@dataclass(slots=True)
class Hysteresis:
    """Raised by `raise_frames` above high among the last `of_frames`, cleared by `clear_seconds` below low, or a gap.

    `start` is None while nothing is raised; it is the first of the frames that raised it.
    """

    rule: AlertRule
    recent: list[tuple[int, int, bool]] = field(default_factory=list)  # second, score, above high
    start: int | None = None
    held: int = 0  # the last second that was not low
    peak: int = 0
    score: int = 0
    threshold: float = 0.0
    last: int | None = None

    def step(self, second: int, score: int, high: float, low: float) -> list[AlertTransition]:
        """One more frame, later than all before."""
        turns: list[AlertTransition] = []
        if self.last is not None and second - self.last > self.rule.gap_seconds:
            if self.start is not None:
                turns.append(self._cleared(second))
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
                turns.append(AlertTransition("raised", self.start, second, None, self.peak, self.score, high))
            return turns
        if score > self.score:
            self.peak, self.score = second, score
        if score >= low:
            self.held = second
        elif second - self.held >= self.rule.clear_seconds:
            turns.append(self._cleared(second))
        return turns

    def _cleared(self, second: int) -> AlertTransition:
        assert self.start is not None  # only called while something is raised
        turn = AlertTransition("cleared", self.start, second, self.held, self.peak, self.score, self.threshold)
        self.start = None
        return turn


class DetectorState(BaseModel):
    """A `AlertDetector` as it is written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: list[int]
    seen: int
    silent: bool
    recent: list[tuple[int, int, bool]]
    start: int | None
    held: int
    peak: int
    score: int
    threshold: float
    last: int | None


class AlertDetector:
    """One question at one camera."""

    def __init__(self, rule: AlertRule, kept: DetectorState | None = None) -> None:
        self.rule = rule
        self.background = ScoreHistory(rule.samples, kept.scores if kept else ())
        self.hysteresis = Hysteresis(rule)
        self.seen, self.silent = 0, False
        if kept is not None:
            self.seen, self.silent = kept.seen, kept.silent
            for name in ("recent", "start", "held", "peak", "score", "threshold", "last"):
                setattr(self.hysteresis, name, getattr(kept, name))
            self.hysteresis.recent = list(kept.recent)

    def thresholds(self) -> tuple[float, float]:
        """High and low; infinite while there is too little to compare with."""
        if len(self.background) < _LEAST:
            return float("inf"), float("inf")
        median = self.background.quantile(0.5)
        spread = self.rule.spread * (self.background.quantile(self.rule.quantile) - median)
        rise = max(spread, self.rule.floor * UNIT)
        return median + rise, median + self.rule.low_share * rise

    def step(self, second: int, score: int) -> list[AlertTransition]:
        """One more frame, later than all before; what is to be told of it."""
        high, low = self.thresholds()
        turns = self.hysteresis.step(second, score, high, low)
        told: list[AlertTransition] = []
        for turn in turns:
            if turn.state == "raised":
                self.silent = self.seen < self.rule.warm_up
            if not self.silent:
                told.append(turn)
        self.seen += 1
        start = self.hysteresis.start
        # What stands there for long is part of the scene, whatever it looks like.
        plain = score <= high if start is None else second - start >= self.rule.settle_seconds
        if plain and second % self.rule.every == 0:
            self.background.add(score)
        if self.seen == self.rule.warm_up:
            self._trim()
        return told

    def _trim(self) -> None:
        """Set aside what looked like the thing while there was no threshold yet, unless that was there a fifth of the time.

        A thing that stood there when the camera was first seen would otherwise be in the tail for as long as the
        background remembers, and everything like it would be missed.
        """
        if not len(self.background):
            return
        most = self.background.quantile(0.5) + self.rule.floor * UNIT
        held = self.background.scores()
        plain = [score for score in held if score <= most]
        if 5 * len(plain) >= 4 * len(held):
            self.background = ScoreHistory(self.rule.samples, plain)

    def learn(self, pairs: Iterable[tuple[int, int]], frames: int) -> None:
        """Take (second, score) of frames from before the question was there as background; `frames` they stand for."""
        for second, score in pairs:
            self.step(second, score)
        self.hysteresis, self.silent = Hysteresis(self.rule), False
        self.seen = frames
        if frames >= self.rule.warm_up:
            self._trim()

    def kept(self) -> DetectorState:
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
