"""EgoSchema: 5,031 clips of three minutes, one question each with five options; answers are public for 500 (2023).

Read are the official `questions.json` with `subset_answers.json`, the rows of lmms-eval, and the JSON Lines of
ViLAMP's evaluation. The split `subset` holds the questions whose answer is public, `full` all; there the answers are
hidden and a run gives the file to submit (`sightline eval export --format submission`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from index.errors import UsageError
from pipeline.evaluation.benchmarks.benchmark import Benchmark, Item, Split, lettered, unique_ids
from pipeline.evaluation.benchmarks.rows import answer_index, find_file, read_rows, strip_options

__all__ = ["EgoSchema"]


class EgoSchema(Benchmark):
    """Questions about what a person who wears the camera does."""

    name = "egoschema"
    title = "EgoSchema"
    splits = ("subset", "full")
    prompt_id = "egoschema-letter-1"
    lmms_tasks: ClassVar[Mapping[str, str]] = {"subset": "egoschema_subset"}
    sizes: ClassVar[Mapping[str, int]] = {"subset": 500, "full": 5031}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the questions, and their answers where they are public; see `Benchmark.read`."""
        path = find_file(data, ("questions.json", "**/Subset/*.parquet", "*.parquet", "*.jsonl", "*.json"))
        files, answers = [path], dict[str, Any]()
        public = path.parent / "subset_answers.json"
        if public.is_file():
            files.append(public)
            try:
                answers = dict(json.loads(public.read_text("utf-8-sig")))
            except (OSError, ValueError, TypeError) as error:
                raise UsageError(f"{public}: cannot be read as answers: {error}") from None
        items = [_item(number, row, answers) for number, row in enumerate(read_rows(path))]
        if split == "subset":
            items = [item for item in items if item.answer is not None or item.problem is not None]
        return Split(unique_ids(items), files)

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """Question, options, and the request for a letter; see `Benchmark.prompt`."""
        return f"{item.question}\n{lettered(options)}\nAnswer with the option's letter from the given choices directly."


def _item(number: int, row: Mapping[str, Any], answers: Mapping[str, Any]) -> Item:
    official = [row[f"option {i}"] for i in range(5) if f"option {i}" in row]
    options = strip_options(official or row.get("option") or row.get("options"))
    video = str(row.get("q_uid") or row.get("video_idx") or row.get("videoID", "")).removesuffix(".mp4")
    name = str(row.get("q_uid") or row.get("question_idx") or f"{video}-{number}")
    answer, problem = None, None
    try:
        answer = answer_index(row.get("answer", answers.get(name)), options, ("index", "text"))
    except ValueError as error:
        problem = str(error)
    return Item(
        id=name,
        video=video,
        question=str(row.get("question", "")).strip(),
        options=options,
        answer=answer,
        problem=problem,
    )
