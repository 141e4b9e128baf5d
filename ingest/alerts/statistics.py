"""Statistics of a replay: why a standing question raised alerts over stored frames, or none.

`RecordingDetector` detects alerts as a worker does, and keeps every score. `score_statistics` sums them up and suggests
a
floor: the largest one, out of a few, that would have raised an alert. Knows numbers only; see `ingest.alerts.detector`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.standing_questions import AlertRule, StandingQuestion
from ingest.alerts.detector import UNIT, AlertDetector, AlertTransition

__all__ = ["RecordingDetector", "ScoreStatistics", "score_statistics"]

_SHARES = (0.9, 0.75, 0.5)  # of the largest rise, which are tried as floors
_LEAST_WARM_UP = 10


class RecordingDetector(AlertDetector):
    """An `AlertDetector` that keeps every score.

    Args:
        question: the question, whose rule it applies.

    Attributes:
        seconds: UTC second of each frame.
        scores: score of each frame, in units of 1/`UNIT`.
        raised: number of alerts that were reported.
    """

    def __init__(self, question: StandingQuestion) -> None:
        super().__init__(question.rule)
        self.question = question
        self.seconds, self.scores = array("q"), array("q")
        self.raised = 0

    def step(self, second: int, score: int) -> list[AlertTransition]:
        """Add a frame, later than all before. Returns the transitions to report."""
        self.seconds.append(second)
        self.scores.append(score)
        reported = super().step(second, score)
        self.raised += sum(transition.state == "raised" for transition in reported)
        return reported


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """The scores of one question at one stream. Scores are cosines."""

    stream: str
    """The stream."""
    name: str
    """Name of the question."""
    frames: int
    """Number of frames that were scored."""
    warm_up: int
    """Number of frames before the first alert; none is raised if `frames` is not larger."""
    raised: int
    """Number of alerts."""
    median: float
    """The usual score."""
    highest: float
    """The highest score."""
    highest_second: int
    """UTC second of the highest score."""
    floor: float
    """The floor of the question."""
    suggested_floor: float | None
    """A floor that raises alerts; None if there are alerts already, or no floor raises any."""
    suggested_raised: int
    """Number of alerts with the suggested floor."""


def score_statistics(stream: str, detector: RecordingDetector) -> ScoreStatistics | None:
    """Sum up the scores of a detector; None if it has seen no frame. The warm-up is ignored by the suggestion.

    Args:
        stream: the stream of the detector.
        detector: a detector after the replay.
    """
    scores = np.asarray(detector.scores, np.int64)
    if not len(scores):
        return None
    rule, best = detector.question.rule, int(scores.argmax())
    floor, count = (None, 0) if detector.raised else _suggest(detector, scores)
    return ScoreStatistics(
        stream=stream,
        name=detector.question.name,
        frames=len(scores),
        warm_up=rule.warm_up,
        raised=detector.raised,
        median=round(float(np.median(scores)) / UNIT, 3),
        highest=round(int(scores[best]) / UNIT, 3),
        highest_second=detector.seconds[best],
        floor=rule.floor,
        suggested_floor=floor,
        suggested_raised=count,
    )


def _suggest(detector: RecordingDetector, scores: NDArray[np.int64]) -> tuple[float | None, int]:
    """The largest of a few floors that raises an alert, and the number of alerts it raises; None and 0 if none does."""
    rule = detector.question.rule
    warm_up = rule.warm_up if rule.warm_up < len(scores) else _LEAST_WARM_UP
    rise = (int(scores.max()) - float(np.median(scores))) / UNIT
    for floor in (rule.floor, *(float(f"{share * rise:.2g}") for share in _SHARES)):
        if 0 < floor <= rule.floor:
            count = _alerts(detector, rule.model_copy(update={"floor": floor, "warm_up": warm_up}))
            if count:
                return floor, count
    return None, 0


def _alerts(detector: RecordingDetector, rule: AlertRule) -> int:
    """The number of alerts that another rule would have raised."""
    other = AlertDetector(rule)
    pairs = zip(detector.seconds, detector.scores, strict=True)
    return sum(transition.state == "raised" for pair in pairs for transition in other.step(*pair))
