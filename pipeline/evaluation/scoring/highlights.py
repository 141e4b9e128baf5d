"""Scores of QVHighlights: moments, highlights, and Hit@k of selected frames.

Moments and highlights follow the data set's published scorer (Moment-DETR, `standalone_eval`): MR-R1 takes the first
predicted window in the order of the list; MR-mAP at most ten windows, interpolated average precision, IoU 0.50 to 0.95;
the highlight scores compare one prediction per clip of 2 s with each annotator. IoU of windows is overlap by union.

Hit@k is the metric of ViLAMP's table 3, whose "truth keyframe" the paper does not define. Read here: the clips with the
highest mean of the annotators' scores, all ties; a frame hits if its second is in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scoring.spans import Span, temporal_iou

__all__ = [
    "CLIP_SECONDS",
    "average_precision",
    "best_clips",
    "highlight_hit",
    "highlight_map",
    "hit_at",
    "moment_map",
    "moment_r1",
    "random_hit",
]

CLIP_SECONDS = 2
"""Length of a clip."""

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""IoU thresholds of MR-mAP."""

_MAX_WINDOWS = 10


def best_clips(clip_ids: Sequence[int], scores: Sequence[Sequence[int]]) -> list[int]:
    """The clips whose mean score is the highest, all ties; empty if there are no scores.

    Args:
        clip_ids: clips that are relevant.
        scores: the annotators' scores of each, 0 to 4.
    """
    sums = [sum(each) for each in scores]
    return [clip for clip, total in zip(clip_ids, sums, strict=True) if total == max(sums)]


def hit_at(seconds: Sequence[float], clips: Sequence[int], k: int) -> bool:
    """Whether one of the first `k` frames is in one of `clips`; `seconds` are the frames' times in selection order."""
    wanted = set(clips)
    return any(int(second // CLIP_SECONDS) in wanted for second in seconds[:k])


def random_hit(frames: int, hits: int, k: int) -> float:
    """Probability that k of `frames` frames, drawn without replacement, include one of `hits`."""
    k = min(k, frames)
    return 1.0 if frames - hits < k else 1 - math.comb(frames - hits, k) / math.comb(frames, k) if frames else 0.0


def moment_r1(predicted: Sequence[Sequence[float]], truth: Sequence[Span], threshold: float) -> bool:
    """MR-R1: whether the first predicted window has IoU ≥ `threshold` with a true one."""
    if not predicted:
        return False
    first = (predicted[0][0], predicted[0][1])
    return max((temporal_iou(first, window) for window in truth), default=0.0) >= threshold


def moment_map(predicted: Sequence[Sequence[float]], truth: Sequence[Span]) -> float:
    """MR-mAP of one query: mean over IoU thresholds of the interpolated average precision.

    Args:
        predicted: windows (start, end, score); the ten first of the list count, ranked by score.
        truth: true windows.
    """
    ranked = sorted(predicted[:_MAX_WINDOWS], key=lambda window: -window[2])
    return float(np.mean([_detection(ranked, truth, threshold) for threshold in THRESHOLDS]))


def _detection(ranked: Sequence[Sequence[float]], truth: Sequence[Span], threshold: float) -> float:
    """Interpolated average precision at one threshold: each true window is found once, by the best-ranked window."""
    if not truth:
        return 0.0
    free = set(range(len(truth)))
    correct = np.zeros(len(ranked))
    for rank, window in enumerate(ranked):
        ious = [temporal_iou((window[0], window[1]), each) for each in truth]
        fits = [i for i in sorted(free, key=lambda i: -ious[i]) if ious[i] >= threshold]
        if fits:
            free.discard(fits[0])
            correct[rank] = 1
    found = np.cumsum(correct)
    precision = found / np.arange(1, len(ranked) + 1) if len(ranked) else found
    return _interpolated(precision, found / len(truth))


def _interpolated(precision: NDArray[np.floating], recall: NDArray[np.floating]) -> float:
    """Area below the precision, made falling from the right, over the recall."""
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    steps = np.diff(np.concatenate([[0.0], recall, [1.0]]))
    return float((steps * envelope).sum())


def average_precision(relevant: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Interpolated average precision of a ranking; 0 if nothing is relevant. Equal scores are one step.

    Args:
        relevant: bool[n].
        scores: float[n], higher is ranked first.
    """
    if not relevant.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    found = np.cumsum(relevant[order])[ends]
    return _interpolated(found / (ends + 1), found / relevant.sum())


def _annotated(duration: float, clip_ids: Sequence[int], scores: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The annotators' scores of every clip, int64[clips, annotators]; 0 where nothing is relevant."""
    clips = int(duration / CLIP_SECONDS)
    table = np.zeros((clips, max((len(each) for each in scores), default=3)), np.int64)
    for clip, row in zip(clip_ids, scores, strict=True):
        if 0 <= clip < clips:
            table[clip] = row
    return table


def _padded(predicted: Sequence[float], clips: int) -> NDArray[np.float64]:
    scores = np.zeros(clips)
    scores[: len(predicted)] = predicted[:clips]
    return scores


def highlight_hit(
    predicted: Sequence[float], duration: float, clip_ids: Sequence[int], scores: Sequence[Sequence[int]], least: int
) -> bool:
    """HL-Hit1: whether the clip with the highest prediction has a score ≥ `least` from any annotator."""
    table = _annotated(duration, clip_ids, scores)
    if not len(table):
        return False
    return bool((table[int(_padded(predicted, len(table)).argmax())] >= least).any())


def highlight_map(
    predicted: Sequence[float], duration: float, clip_ids: Sequence[int], scores: Sequence[Sequence[int]], least: int
) -> float:
    """HL-mAP of one query: average precision for each annotator, then their mean."""
    table = _annotated(duration, clip_ids, scores)
    if not len(table):
        return 0.0
    ranked = _padded(predicted, len(table))
    return float(np.mean([average_precision(column >= least, ranked) for column in table.T]))
