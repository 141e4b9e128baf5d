"""QVHighlights: moments and highlights that a sentence names, in clips of 150 s (Lei et al. 2021).

No language model is asked: the relevance of frames to the sentence ranks clips of two seconds, neighbouring frames of
high relevance are moments, and Hit@k looks at the first k frames of the selection with K = k (ViLAMP, table 3). Its
random row, and that of plain top-k, are printed beside it, because the paper does not define its truth; see
`pipeline.evaluation.scoring.highlights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Metric,
    Scored,
    Split,
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.rows import find_file, read_rows
from pipeline.evaluation.scoring.highlights import (
    CLIP_SECONDS,
    best_clips,
    highlight_hit,
    highlight_map,
    hit_at,
    moment_map,
    moment_r1,
    random_hit,
)
from pipeline.evaluation.scoring.spans import Span

__all__ = ["HIT_AT", "QvHighlights"]

HIT_AT = (1, 5, 10, 30)
"""The k of Hit@k."""

_FILES = {
    "val": ("highlight_val_release.jsonl", "*val*.jsonl"),
    "test": ("highlight_test_with_gt.jsonl", "highlight_test*.jsonl", "*test*.jsonl"),
    "train": ("highlight_train_release.jsonl", "*train*.jsonl"),
}
_RANGES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, math.inf)}
_LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}


class QvHighlights(Benchmark):
    """Retrieval of moments and highlights."""

    name = "qvhighlights"
    title = "QVHighlights"
    task = "highlights"
    splits = ("val", "test", "train")
    prompt_id = "qvhighlights-query-1"
    parser_id = "none"
    sizes: ClassVar[Mapping[str, int]] = {"val": 1550, "test": 1542, "train": 7218}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the queries; see `Benchmark.read`."""
        path = find_file(data, _FILES[split])
        return Split(unique_ids([_item(number, row) for number, row in enumerate(read_rows(path))]), [path])

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """The query itself, which only the frame encoder reads."""
        return item.question

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """Files of `videos`, named `{youtube}_{start}_{end}`."""
        return [path for folder in ("videos", "videos/val", ".") for path in with_suffixes(data, (folder,), item.video)]

    def score(self, item: Item, predicted: int | Span | None) -> float:
        """1 if the predicted span, the first moment, has IoU ≥ 0.5 with a true one (MR-R1)."""
        return float(isinstance(predicted, tuple) and moment_r1([predicted], item.spans, 0.5))

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        """MR-R1, MR-mAP, HL-mAP, HL-Hit1 and Hit@k with their random rows."""
        count = max(1, len(scored))
        found: list[Metric] = []
        for threshold in (0.5, 0.7):
            hits = sum(moment_r1(_windows(each), each.item.spans, threshold) for each in scored)
            found.append(Metric(f"MR-R1@{threshold}", 100 * hits / count, "first window"))
        mean = sum(moment_map(_windows(each), each.item.spans) for each in scored) / count
        found.append(Metric("MR-mAP", 100 * mean, "IoU 0.50 to 0.95"))
        for name, (low, high) in _RANGES.items():
            ranged = [(_windows(each), [s for s in each.item.spans if low < s[1] - s[0] <= high]) for each in scored]
            aps = [moment_map(windows, spans) for windows, spans in ranged if spans]
            if aps:
                found.append(Metric(f"MR-mAP {name}", 100 * sum(aps) / len(aps), f"{len(aps)} queries"))
        for name, least in _LEVELS.items():
            rows = [(list(each.detail.get("saliency", [])), *_labels(each.item), least) for each in scored]
            found.append(Metric(f"HL-mAP {name}", 100 * sum(highlight_map(*row) for row in rows) / count))
            found.append(Metric(f"HL-Hit1 {name}", 100 * sum(highlight_hit(*row) for row in rows) / count))
        for k in HIT_AT:
            found += self._hits(scored, k, count)
        return found

    def _hits(self, scored: Sequence[Scored], k: int, count: int) -> list[Metric]:
        selected = plain = chance = chosen = 0.0
        for each in scored:
            duration, ids, scores = _labels(each.item)
            clips = best_clips(ids, scores)
            order = list(each.detail.get("selected", {}).get(str(k), []))
            chosen += len(order)
            selected += hit_at(order, clips, k)
            plain += hit_at(list(each.detail.get("top", [])), clips, k)
            chance += random_hit(int(duration), len(clips) * CLIP_SECONDS, k)
        return [
            Metric(f"Hit@{k}", 100 * selected / count, f"{chosen / count:.1f} frames selected on average"),
            Metric(f"Hit@{k} top-k", 100 * plain / count, "the k frames of highest relevance"),
            Metric(f"Hit@{k} random", 100 * chance / count, "k frames drawn at random"),
        ]


def _windows(each: Scored) -> list[list[float]]:
    return [list(window) for window in each.detail.get("windows", [])]


def _labels(item: Item) -> tuple[float, list[int], list[list[int]]]:
    return float(item.extra["duration"]), list(item.extra["clip_ids"]), [list(row) for row in item.extra["scores"]]


def _item(number: int, row: Mapping[str, Any]) -> Item:
    windows = row.get("relevant_windows") or []
    spans = tuple((float(start), float(end)) for start, end in windows)
    return Item(
        id=str(row.get("qid", number)),
        video=str(row.get("vid", "")),
        question=str(row.get("query", "")).strip(),
        spans=spans,
        problem=None if spans else "the row has no relevant window",
        extra={
            "duration": float(row.get("duration") or 150),
            "clip_ids": [int(clip) for clip in row.get("relevant_clip_ids") or []],
            "scores": [[int(score) for score in scores] for scores in row.get("saliency_scores") or []],
        },
    )
