"""MLVU: seven tasks of choice over long videos (dev), nine with up to six options (test) (Zhou et al. 2024).

Read are the JSON file of each task, the Parquet of lmms-eval, and JSON Lines. M-Avg is the unweighted mean of the
tasks' accuracies, which is not the share of right answers. The dev files hold two needle rows whose answer is no
candidate and one empty row: they stay in the denominator, so 355 needle questions can give at most 353. The two open
tasks (sub-scene captioning and summary) need a judge and are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from index.errors import UsageError
from pipeline.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Metric,
    Scored,
    Split,
    lettered,
    row_id,
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.rows import answer_or_problem, find_file, options_in_text, read_rows, strip_options

__all__ = ["Mlvu", "mean_of_tasks"]

_TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
_OPEN = frozenset({"subPlot", "sub_scene", "summary", "SSC", "VS"})
_NAMES = {"findNeedle": "needle"}


class Mlvu(Benchmark):
    """Multi-task questions about long videos."""

    name = "mlvu"
    title = "MLVU"
    splits = ("dev", "test")
    groups = ("task",)
    prompt_id = "mlvu-best-option-1"
    lmms_tasks: ClassVar[Mapping[str, str]] = {"dev": "mlvu_dev", "test": "mlvu_test"}
    sizes: ClassVar[Mapping[str, int]] = {"dev": 2175, "test": 502}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the rows of a split; see `Benchmark.read`."""
        files = _dev_files(data) if split == "dev" else []
        if not files:
            names = ("test_multi_choice_tasks.json", "test-*.parquet", "*test*.jsonl", "*test*.json")
            dev = ("MLVU_val.json", "dev-*.parquet", "*dev*.parquet", "*dev*.json*", "test-*.parquet", "*.parquet")
            files = [find_file(data, names if split == "test" else dev)]
        items = []
        for path in files:
            items += [item for n, row in enumerate(read_rows(path)) if (item := _item(path, n, row)) is not None]
        if not items:
            raise UsageError(f"--data {data}: {', '.join(path.name for path in files)} have no questions of choice")
        return Split(unique_ids(items), files)

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """The official prompt; the opening of the answer ends the user's turn; see `Benchmark.prompt`."""
        return (
            "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
            f"option that accurately addresses the question.\nQuestion: {item.question}\nOptions:\n"
            f"{lettered(options, '({letter}) {option}')}\nOnly give the best option.\nBest option: ("
        )

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """The file in the folder of its task, or in `video`, `videos` or the folder itself."""
        folder = str(item.extra.get("folder", ""))
        named = [f"video/{folder}", f"videos/{folder}", folder] if folder else []
        return with_suffixes(data, (*named, "video", "videos", "."), str(item.extra.get("file") or item.video))

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        """M-Avg."""
        return [mean_of_tasks(scored, "task", "M-Avg")]


def mean_of_tasks(scored: Sequence[Scored], group: str, name: str) -> Metric:
    """The unweighted mean of the accuracies of all values of a group, in percent."""
    tasks: dict[str, list[float]] = {}
    for each in scored:
        for value in each.item.groups.get(group, ()):
            tasks.setdefault(value, []).append(each.value)
    means = [sum(values) / len(values) for values in tasks.values()]
    return Metric(name, 100 * sum(means) / len(means) if means else 0.0, f"mean of {len(means)} tasks, unweighted")


def _dev_files(data: Path) -> list[Path]:
    found = [find for task in _TASKS for find in sorted(data.glob(f"**/{task}.json"))[:1]]
    if found and len(found) < len(_TASKS):
        missing = sorted(set(_TASKS) - {path.stem for path in found})
        raise UsageError(f"--data {data}: lacks {', '.join(f'{task}.json' for task in missing)} of the dev split")
    return found


def _item(path: Path, number: int, row: Mapping[str, Any]) -> Item | None:
    """The item of a row; None for a row of an open task."""
    kind = str(row.get("question_type") or row.get("task_type") or path.stem.partition("_")[2])
    if kind in _OPEN:
        return None
    given, question = row.get("candidates") or row.get("options") or [], str(row.get("question") or "")
    options = strip_options(given)
    in_text, listed = options_in_text(question)
    question, options = (in_text, options or listed) if listed else (question.strip(), options)
    lettered_file = bool(listed) or list(options) != [str(each).strip() for each in given]
    answer, problem = answer_or_problem(
        row.get("answer"), options, ("letter", "text") if lettered_file else ("text", "letter")
    )
    if not question or not options:
        problem = "the row is empty"
    file = str(row.get("video") or row.get("video_name") or row.get("videoID") or "")
    return Item(
        id=str(row.get("question_id") or f"{path.stem}-{number}-{row_id(file, question)[:6]}"),
        video=file.removesuffix(".mp4"),
        question=question,
        options=options,
        answer=answer,
        groups={"task": (_NAMES.get(kind, kind),)},
        problem=problem,
        extra={"file": file, "folder": path.stem if path.stem in _TASKS else ""},
    )
