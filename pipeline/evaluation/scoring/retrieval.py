"""Scores of a search for moments: precision and recall at k, average precision, temporal IoU, and abstention.

A moment is right if it overlaps a true span. A search for what is nowhere should return nothing; a ranked list always
returns something, so what a threshold on the score could do is told by the area below the ROC curve: the chance that
the best score of a query that has a truth exceeds that of one that has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluation.scoring.spans import Span, temporal_iou

__all__ = ["best_iou", "overlaps", "precision_at", "ranked_precision", "recall_at_k", "separation"]


def overlaps(one: Span, other: Span) -> bool:
    """Whether two spans have a point in common that is not only an end of the first."""
    return one[0] < other[1] and one[1] > other[0]


def precision_at(moments: Sequence[Span], truth: Sequence[Span], k: int) -> float:
    """Share of the first `k` moments that are right; of those that there are, if there are fewer. 0 without any."""
    first = moments[:k]
    return sum(any(overlaps(each, span) for span in truth) for each in first) / len(first) if first else 0.0


def recall_at_k(moments: Sequence[Span], truth: Sequence[Span], k: int) -> float:
    """Share of the true spans that one of the first `k` moments overlaps; 0 without a true span."""
    return sum(any(overlaps(each, span) for each in moments[:k]) for span in truth) / len(truth) if truth else 0.0


def ranked_precision(moments: Sequence[Span], truth: Sequence[Span]) -> float:
    """Average precision: the mean over true spans of the precision at the rank that first finds each; 0 if never."""
    total = 0.0
    for span in truth:
        rank = next((n for n, each in enumerate(moments, 1) if overlaps(each, span)), None)
        total += precision_at(moments, truth, rank) if rank is not None else 0.0
    return total / len(truth) if truth else 0.0


def best_iou(moments: Sequence[Span], truth: Sequence[Span]) -> float:
    """Mean over true spans of the largest IoU of a moment with it; 0 without a true span."""
    return (
        sum(max((temporal_iou(m, span) for m in moments), default=0.0) for span in truth) / len(truth) if truth else 0.0
    )


def separation(present: Sequence[float], absent: Sequence[float]) -> float | None:
    """Chance that a score of `present` exceeds one of `absent`, ties by half; None if either is empty."""
    if not present or not absent:
        return None
    wins = sum((a > b) + 0.5 * (a == b) for a in present for b in absent)
    return wins / (len(present) * len(absent))
