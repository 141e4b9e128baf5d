"""Charades-STA: the span of an event that a sentence names, 3,720 sentences (Gao et al. 2017).

Read are the list with `caption` and `timestamp`, JSON Lines with `relevant_windows`, and the original text file. Spans
are true seconds of the video. A reply without a span has IoU 0. Figures are R@1 at IoU 0.3, 0.5 and 0.7, and mIoU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Metric,
    Scored,
    Split,
    row_id,
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.rows import find_file, read_rows
from pipeline.evaluation.scoring.spans import Span, parse_span, recall_at, temporal_iou

__all__ = ["CharadesSta"]


class CharadesSta(Benchmark):
    """Temporal grounding of sentences."""

    name = "charades"
    title = "Charades-STA"
    task = "grounding"
    prompt_id = "charades-event-1"
    parser_id = "sightline-span-2"
    lmms_tasks: ClassVar[Mapping[str, str]] = {"test": "temporal_grounding_charades"}
    sizes: ClassVar[Mapping[str, int]] = {"test": 3720}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the sentences; see `Benchmark.read`."""
        path = find_file(data, ("charades_sta_test.txt", "charades*.json", "*.jsonl", "*.json", "*.parquet", "*.txt"))
        rows = _text_rows(path) if path.suffix == ".txt" else read_rows(path)
        return Split(unique_ids([_item(row) for row in rows]), [path])

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """The prompt of VideoChat-Flash and lmms-eval, with their spelling; its example is a row of the test split."""
        return (
            "Please find the visual event described by a sentence in the video, determining its starting and ending "
            "times. The format should be: 'The event happens in the start time - end time'. For example, The event "
            "'person turn a light on' happens in the 24.3 - 30.4 seonds. Now I will give you the textual sentence: "
            f"{item.question}. Please return its start time and end time."
        )

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """Files of `Charades_v1_480`."""
        return with_suffixes(data, ("Charades_v1_480", "Charades_v1", "videos", "."), item.video)

    def parse(self, reply: str, options: Sequence[str]) -> int | Span | None:
        """The first span of the reply."""
        return parse_span(reply)

    def score(self, item: Item, predicted: int | Span | None) -> float:
        """IoU with the true span; the best one if there are several."""
        if not isinstance(predicted, tuple):
            return 0.0
        return max((temporal_iou(predicted, span) for span in item.spans), default=0.0)

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        """R@1 at three thresholds, and mIoU."""
        ious = [each.value for each in scored]
        recalls = [Metric(f"R@1 IoU ≥ {t}", 100 * recall_at(ious, t)) for t in (0.3, 0.5, 0.7)]
        return [*recalls, Metric("mIoU", 100 * sum(ious) / max(1, len(ious)), "mean IoU × 100")]


def _text_rows(path: Path) -> list[dict[str, Any]]:
    """Lines `VIDEO START END##SENTENCE`."""
    rows = []
    for line in path.read_text("utf-8-sig").splitlines():
        head, found, caption = line.partition("##")
        parts = head.split()
        if found and len(parts) == 3:
            rows.append({"video": parts[0], "caption": caption, "timestamp": [float(parts[1]), float(parts[2])]})
    return rows


def _item(row: Mapping[str, Any]) -> Item:
    video = str(row.get("video") or row.get("vid") or "").removesuffix(".mp4")
    caption = str(row.get("caption") or row.get("query") or "").strip().rstrip(".")
    windows = row.get("relevant_windows") or [row.get("timestamp") or []]
    spans = tuple((min(w), max(w)) for w in ([float(end) for end in each] for each in windows) if len(w) == 2)
    return Item(
        id=str(row.get("qid") or row_id(video, caption, spans)),
        video=video,
        question=caption,
        spans=spans,
        problem=None if spans and caption else "the row has no sentence or no span",
    )
