"""LVBench: 103 videos of half an hour to more than two, 1,549 questions (Wang et al. 2024).

Read are the official `video_info.meta.jsonl`, whose questions end with their options, and the lists with `candidates`
that were released with VideoChat-Flash. A question counts in each of its one to three types. `time_reference` names the
evidence; reversed ends are swapped, and what is not a time is no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from index.errors import UsageError
from pipeline.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Split,
    lettered,
    row_id,
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.rows import answer_or_problem, options_in_text, read_rows, seconds_of, strip_options
from pipeline.evaluation.scoring.spans import Span

__all__ = ["LvBench"]


class LvBench(Benchmark):
    """Questions about very long videos."""

    name = "lvbench"
    title = "LVBench"
    groups = ("question_type", "type")
    prompt_id = "lvbench-letter-1"
    lmms_tasks: ClassVar[Mapping[str, str]] = {"test": "lvbench"}
    sizes: ClassVar[Mapping[str, int]] = {"test": 1549}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read `video_info.meta.jsonl`, else every `lvbench_clean*.json`, else a Parquet file; see `Benchmark.read`."""
        official = sorted(data.glob("video_info.meta.jsonl")) or sorted(data.glob("**/video_info.meta.jsonl"))
        if official:
            rows = [(video, question) for video in read_rows(official[0]) for question in video.get("qa", [])]
            items = [_item(str(video.get("key", "")), str(video.get("type", "")), row) for video, row in rows]
            return Split(unique_ids(items), official[:1])
        files = sorted(data.glob("lvbench_clean*.json")) or sorted(data.glob("**/*.parquet"))
        if not files:
            raise UsageError(f"--data {data}: has none of video_info.meta.jsonl, lvbench_clean*.json and *.parquet")
        items = [
            _item(str(row.get("video") or row.get("video_path", "")), str(row.get("type", "")), row)
            for path in files
            for row in read_rows(path)
        ]
        return Split(unique_ids(items), files)

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """Question, options, and the request for a letter; see `Benchmark.prompt`."""
        shown = lettered(options, "({letter}) {option}")
        return f"{item.question}\n{shown}\nAnswer the question with the option letter"

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """Files of `all_videos`, `videos` or the folder itself."""
        return with_suffixes(data, ("all_videos", "videos", "data", "."), item.video)


def _item(video: str, kind: str, row: Mapping[str, Any]) -> Item:
    question, options = str(row.get("question", "")).strip(), strip_options(row.get("candidates") or row.get("options"))
    if not options:
        question, options = options_in_text(question)
    answer, problem = answer_or_problem(row.get("answer"), options, ("letter", "text"))
    types = row.get("question_type") or []
    span = _span(str(row.get("time_reference", "")))
    return Item(
        id=str(row.get("uid") or row_id(video, question, options)),
        video=video,
        question=question,
        options=options,
        answer=answer,
        spans=() if span is None else (span,),
        groups={
            "question_type": tuple(map(str, [types] if isinstance(types, str) else types)),
            **({"type": (kind,)} if kind else {}),
        },
        problem=problem,
    )


def _span(text: str) -> Span | None:
    """`MM:SS-MM:SS` in seconds; None where an end is not a time."""
    ends = [seconds_of(part) for part in text.split("-")]
    known = [end for end in ends if end is not None]
    return (min(known), max(known)) if len(ends) == len(known) == 2 else None
