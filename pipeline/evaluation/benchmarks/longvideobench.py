"""LongVideoBench: videos of seconds to an hour with subtitles, 1,337 questions of the split `val` (Wu et al. 2024).

Read is `lvb_val.json` (or `lvb_test_wo_gt.json`, whose answers are hidden) or the Parquet of lmms-eval. `position`
counts frames of the original file: a copy with another rate makes the evidence wrong. Subtitles begin at
`starting_timestamp_for_subtitles`, because a video may be a cut. They are one block before the question here; the
reference loader puts each line between the frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pipeline.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Split,
    lettered,
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.rows import answer_index, find_file, read_rows, strip_options
from pipeline.evaluation.benchmarks.subtitles import Alignment

__all__ = ["LongVideoBench"]

_FILES = {
    "val": ("lvb_val.json", "validation-*.parquet", "*val*.parquet", "*.parquet"),
    "test": ("lvb_test_wo_gt.json", "test-*.parquet"),
}


class LongVideoBench(Benchmark):
    """Questions that refer to a moment, which is often named by a subtitle."""

    name = "longvideobench"
    title = "LongVideoBench"
    splits = ("val", "test")
    groups = ("duration_group", "question_category", "level", "topic_category")
    subtitled = True
    reference_tokens = 128
    prompt_id = "longvideobench-letter-1"
    lmms_tasks: ClassVar[Mapping[str, str]] = {"val": "longvideobench_val_v", "test": "longvideobench_test_v"}
    sizes: ClassVar[Mapping[str, int]] = {"val": 1337, "test": 5341}
    alignment = Alignment(least_seconds=1.0, at_start=False)

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the rows of a split; see `Benchmark.read`."""
        path = find_file(data, _FILES[split])
        return Split(
            unique_ids([_item(number, row, self.groups) for number, row in enumerate(read_rows(path))]), [path]
        )

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """Subtitles as one block, question, options, and the request for a letter; see `Benchmark.prompt`."""
        head = "Subtitles of the video:\n" + "\n".join(subtitles) + "\n" if subtitles else ""
        tail = "Answer with the option's letter from the given choices directly.\n"
        return f"{head}{item.question}\n{lettered(options)}\n{tail}"

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """The file that the row names, in `videos` or the folder itself."""
        return with_suffixes(data, ("videos", "data", "."), str(item.extra.get("file") or item.video))

    def subtitle_path(self, data: Path, item: Item) -> tuple[Path, float] | None:
        """The file that the row names in `subtitles`, and the second at which the video begins."""
        path = data / "subtitles" / str(item.extra.get("subtitles", ""))
        return (path, float(item.extra.get("subtitles_from", 0.0))) if path.is_file() else None


def _item(number: int, row: Mapping[str, Any], groups: Sequence[str]) -> Item:
    columns = [row.get(f"option{i}") for i in range(5)]
    options = strip_options(row.get("candidates") or columns)
    answer, problem = None, None
    try:
        answer = answer_index(row.get("correct_choice"), options, ("index",))
    except ValueError as error:
        problem = str(error)
    position = row.get("position") or []
    frames = json.loads(position) if isinstance(position, str) else position
    file = str(row.get("video_path") or "")
    return Item(
        id=str(row.get("id", number)),
        video=str(row.get("video_id") or Path(file).stem),
        question=str(row.get("question", "")).strip(),
        options=options,
        answer=answer,
        frames=tuple(int(frame) for frame in frames),
        groups={name: (str(row[name]),) for name in groups if row.get(name) is not None},
        problem=problem,
        extra={
            "file": file,
            "subtitles": str(row.get("subtitle_path") or ""),
            "subtitles_from": float(row.get("starting_timestamp_for_subtitles") or 0.0),
        },
    )
