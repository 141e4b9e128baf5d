"""MVBench: 20 tasks of 200 questions about short clips (Li et al. 2024).

Read are `json/{task}.json`. Some rows are about a part of their video (`start`, `end`): frames are sampled in it. The
videos of `episodic_reasoning` are folders of pictures at three a second, and its rows have subtitles of their own,
which are not given to the model here. The score is the mean of the tasks' accuracies. A question with a single option
is always right; there are five, in `counterfactual_inference`.
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
    unique_ids,
    with_suffixes,
)
from pipeline.evaluation.benchmarks.mlvu import mean_of_tasks
from pipeline.evaluation.benchmarks.rows import answer_or_problem, read_rows, strip_options

__all__ = ["FOLDERS", "MvBench"]

FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Folder of each task's videos, below `video` or the data folder."""


class MvBench(Benchmark):
    """Questions about what changes in a clip."""

    name = "mvbench"
    title = "MVBench"
    groups = ("task",)
    prompt_id = "mvbench-best-option-1"
    sizes: ClassVar[Mapping[str, int]] = {"test": 4000}

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the file of every task that the folder has; see `Benchmark.read`."""
        files = [find for task in FOLDERS for find in sorted(data.glob(f"**/{task}.json"))[:1]]
        if not files:
            raise UsageError(f"--data {data}: has no json/{{task}}.json, such as json/action_sequence.json")
        items = [_item(path.stem, number, row) for path in files for number, row in enumerate(read_rows(path))]
        return Split(unique_ids(items), files)

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """Question, options and the request for the best one; see `Benchmark.prompt`."""
        shown = lettered(options, "({letter}) {option}")
        return f"Question: {item.question}\nOption:\n{shown}\nOnly give the best option."

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """The file, or the folder of pictures, in the folder of the task."""
        folder = FOLDERS[item.groups["task"][0]]
        places = (f"video/{folder}", folder)
        return [data / place / item.video for place in places] + with_suffixes(data, places, item.video)

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        """The mean of the tasks."""
        return [mean_of_tasks(scored, "task", "average")]


def _item(task: str, number: int, row: Mapping[str, Any]) -> Item:
    options = strip_options(row.get("candidates"))
    answer, problem = answer_or_problem(row.get("answer"), options, ("text",))
    start = row.get("accurate_start", row.get("start"))
    end = row.get("accurate_end", row.get("end"))
    return Item(
        id=f"{task}-{number}",
        video=str(row.get("video", "")),
        question=str(row.get("question", "")).strip(),
        options=options,
        answer=answer,
        clip=None if start is None or end is None else (float(start), float(end)),
        groups={"task": (task,)},
        problem=problem,
        extra={"pictures_per_second": float(row.get("fps") or 3.0)},
    )
