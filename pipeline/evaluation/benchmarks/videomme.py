"""Video-MME: 900 videos, 2,700 questions, with and without subtitles (Fu et al. 2024).

Rows are those of the released Parquet file. The prompt is the official one. `duration` is a word, `video_id` a counter,
and `videoID` names the file. Only some videos have subtitles; a question without any is asked without, as the official
code does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pipeline.evaluation.benchmarks.benchmark import Benchmark, Item, Split, lettered, unique_ids
from pipeline.evaluation.benchmarks.rows import answer_or_problem, find_file, read_rows, strip_options

__all__ = ["VideoMme"]


class VideoMme(Benchmark):
    """Questions about videos of seconds to an hour, in six domains."""

    name = "videomme"
    title = "Video-MME"
    groups = ("duration", "domain", "sub_category", "task_type")
    subtitled = True
    reference_tokens = 1
    prompt_id = "videomme-official-1"
    lmms_tasks: ClassVar[Mapping[str, str]] = {"test": "videomme"}
    sizes: ClassVar[Mapping[str, int]] = {"test": 2700}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the rows of `videomme/test-*.parquet`; see `Benchmark.read`."""
        path = find_file(data, ("videomme/test-*.parquet", "test-*.parquet", "*.parquet", "*.jsonl", "*.json"))
        items = []
        for number, row in enumerate(read_rows(path)):
            options = strip_options(row.get("options"))
            answer, problem = answer_or_problem(row.get("answer"), options, ("letter",))
            items.append(
                Item(
                    id=str(row.get("question_id", number)),
                    video=str(row.get("videoID", "")),
                    question=str(row.get("question", "")).strip(),
                    options=options,
                    answer=answer,
                    groups={name: (str(row[name]),) for name in self.groups if row.get(name)},
                    problem=problem,
                )
            )
        return Split(unique_ids(items), [path])

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """The official prompt; see `Benchmark.prompt`."""
        head = "This video's subtitles are listed below:\n" + "\n".join(subtitles) + "\n" if subtitles else ""
        return (
            f"{head}Select the best answer to the following multiple-choice question based on the video. Respond with "
            f"only the letter (A, B, C, or D) of the correct option.\n{item.question}\n{lettered(options)}\n"
            "The best answer is:"
        )

    def subtitle_path(self, data: Path, item: Item) -> tuple[Path, float] | None:
        """`subtitle/{videoID}.srt`, if it exists."""
        path = data / "subtitle" / f"{item.video}.srt"
        return (path, 0.0) if path.is_file() else None
