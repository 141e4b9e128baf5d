"""Exported answers, scored by lmms-eval's own code, against our figures of the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.benchmarks.registry import benchmark
from pipeline.evaluation.runs.export import export_run
from pipeline.evaluation.runs.record import AnswerLine, RunFolder, RunHead
from pipeline.evaluation.runs.summary import Summary, summarize
from tests.support.benchmark_data import mme_row, write_parquet

pytestmark = pytest.mark.system

FOUR = ["a cup", "a saw", "a hat", "a key"]
Row = dict[str, Any]


def labelled(options: list[str], form: str = "{}. {}") -> list[str]:
    """Options with their letters."""
    return [form.format(letter, option) for letter, option in zip("ABCDEF", options, strict=False)]


def videomme() -> list[Row]:
    """Rows of Video-MME over three videos."""
    rows = [mme_row(f"00{n}-1", f"v{n // 2}", "Which?", FOUR, "ABCD"[n % 4]) for n in range(6)]
    return [{**row, "duration": duration} for row, duration in zip(rows, ["short", "long"] * 3, strict=True)]


def lvbench() -> list[Row]:
    """Rows of lmms-eval's LVBench."""
    return [
        {"video_path": f"v{n}.mp4", "question": "Which?", "options": FOUR, "answer": "ABCD"[n % 4], "type": "tv",
         "question_type": ["reasoning"], "time_reference": "00:01-00:02", "uid": str(n)}
        for n in range(6)
    ]  # fmt: skip


def egoschema() -> list[Row]:
    """Rows of lmms-eval's EgoSchema, with five options."""
    options = labelled([f"C does {n}." for n in range(5)])
    return [
        {"question_idx": str(n), "question": "Which?", "video_idx": f"v{n}", "option": options, "answer": str(n % 5)}
        for n in range(6)
    ]


def longvideobench() -> list[Row]:
    """Rows of lmms-eval's LongVideoBench; columns without an option are filled."""
    return [
        {"id": f"v{n}_0", "video_id": f"v{n}", "video_path": f"v{n}.mp4", "question": "Which?", "correct_choice": n % 3,
         **{f"option{i}": option for i, option in enumerate([*FOUR, "N/A"])}, "duration_group": (15, 600)[n % 2],
         "question_category": "T2A", "level": "L1-Perception", "position": "[1]", "subtitle_path": "x.json"}
        for n in range(6)
    ]  # fmt: skip


def mlvu(task_names: tuple[str, ...], options: list[str]) -> list[Row]:
    """Rows of lmms-eval's MLVU, whose questions hold their options; one task has three rows, the others one."""
    listed = "\n".join(labelled(options, "({}) {}"))
    names = [task_names[0], task_names[0], *task_names]
    return [
        {"video_name": f"v{n}.mp4", "duration": "402", "question": f"Which {n}?\n{listed}", "candidates": options,
         "answer": "ABCDEF"[n % len(options)], "task_type": name, "question_id": f"q{n}"}
        for n, name in enumerate(names)
    ]  # fmt: skip


DEV = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
TEST = ("anomaly_reco", "count", "ego", "needleQA", "order", "plotQA", "sportsQA", "topic_reasoning", "tutorialQA")


def charades() -> list[Row]:
    """Rows of lmms-eval's Charades-STA."""
    return [{"video": f"v{n}.mp4", "caption": "person runs.", "timestamp": [1.0, 4.0 + n]} for n in range(6)]


def figure(name: str) -> Callable[[Summary], float]:
    """A figure of a summary."""
    return lambda summary: next(each.value for each in summary.figures if each.name == name)


def share(summary: Summary) -> float:
    """Accuracy in [0, 1]."""
    return summary.accuracy.share


# Adapter, split, file, rows, task of lmms-eval, and our figure for each of its metrics.
TASKS: dict[str, tuple[str, str, list[Row], dict[str, Callable[[Summary], float]]]] = {
    "videomme": ("videomme", "test", videomme(), {"videomme_perception_score": lambda s: 100 * share(s)}),
    "lvbench": ("lvbench", "test", lvbench(), {"lvbench_score": share}),
    "egoschema_subset": ("egoschema", "subset", egoschema(), {"score": share}),
    "longvideobench_val_v": ("longvideobench", "val", longvideobench(), {"lvb_acc": share}),
    "mlvu_dev": ("mlvu", "dev", mlvu(DEV, FOUR), {"mlvu_percetion_score": figure("M-Avg")}),
    "mlvu_test": ("mlvu", "test", mlvu(TEST, FOUR), {"mlvu_percetion_score": figure("M-Avg")}),
    "temporal_grounding_charades": (
        "charades",
        "test",
        charades(),
        {
            "charades_sta_IOU@3": figure("R@1 IoU ≥ 0.3"),
            "charades_sta_IOU@5": figure("R@1 IoU ≥ 0.5"),
            "charades_sta_IOU@7": figure("R@1 IoU ≥ 0.7"),
            "charades_sta_mIOU": figure("mIoU"),
        },
    ),
}
CHOICES = ("A", "(B)", "C. a hat", "The answer is (A).", "Best answer: C", "B)")
LETTERS = ("A", "(B)", "C.", "D", "(B)", "(A)")
SPANS = (
    "The event happens in the 1.0 - 4.0 seconds.",
    "The event happens in 2 to 9.5 seconds.",
    "It happens in 0:02 - 0:05.",
    "12.0 - 3.0",
    "Start time: 3.5 seconds.\nEnd time: 7 seconds.",
    "I cannot tell.",
)


def head(name: str, split: str, rows: int) -> RunHead:
    """The head of a run of generated answers."""
    return RunHead(
        **{"benchmark": name, "split": split, "annotations": "", "rows": rows, "questions": rows, "prompt_id": ""},
        **{"parser_id": "", "mode": "generated", "baseline": "none", "reference": False, "rotations": 1, "k": 32},
        **{"frame_rule": "", "subtitle_rule": "none", "decoding": "greedy", "seed": 0, "tau": 0.85, "selector": "dks"},
        **{"profile": "tiny", "profile_digest": "", "encoders": {}, "service": False, "version": "", "store": ""},
    )


def answered(name: str, split: str, rows: list[Row], folder: Path, replies: tuple[str, ...]) -> RunFolder:
    """A run whose replies are given, over rows that the adapter reads from a Parquet file."""
    bench, stem = benchmark(name), {"val": "validation", "subset": "Subset", "test": "test"}.get(split, split)
    write_parquet(folder / "data" / f"{stem}-00000-of-00001.parquet", rows)
    items = bench.read(folder / "data", split).items
    run = RunFolder(folder / "run")
    run.begin(head(name, split, len(items)), items)
    for n, item in enumerate(items):
        reply = replies[n % len(replies)]
        predicted = bench.parse(reply, item.options)
        state = "unparsed" if predicted is None else "answered"
        value = bench.score(item, predicted)
        run.append(AnswerLine(id=item.id, state=state, reply=reply, predicted=predicted, value=value))
    return run


def scored(jobs: list[Row]) -> list[dict[str, float]]:
    """Scores of lmms-eval, from a process of its own: it sets up logging, and modules stand in for some packages."""
    command = [sys.executable, "-m", "tests.support.lmms_tasks"]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_scores_of_lmms_eval_are_ours(tmp_path: Path) -> None:
    """Seven tasks; and an option E, which lmms-eval's parser of MLVU's test split does not know."""
    jobs, ours = [], []
    for task, (name, split, rows, metrics) in TASKS.items():
        folder = tmp_path / task
        # lmms-eval's parser of EgoSchema draws an option at random for "B)".
        replies = {"charades": SPANS, "egoschema": LETTERS}.get(name, CHOICES)
        run = answered(name, split, rows, folder, replies)
        assert export_run(run, folder / "logs" / "log.json", "lmms-eval") == len(rows)
        jobs.append({"task": task, "docs": rows, "logs": str(folder / "logs")})
        summary = summarize(run)
        ours.append({metric: value(summary) for metric, value in metrics.items()})
        assert 0 < share(summary) < 1
    six = mlvu(TEST, ["one", "two", "three", "four", "five", "six"])
    run = answered("mlvu", "test", six, tmp_path / "six", tuple(str(row["answer"]) for row in six))
    export_run(run, tmp_path / "six" / "logs" / "log.json", "lmms-eval")
    jobs.append({"task": "mlvu_test", "docs": six, "logs": str(tmp_path / "six" / "logs")})
    *theirs, wrong = scored(jobs)
    for task, mine, found in zip(TASKS, ours, theirs, strict=True):
        assert found == pytest.approx(mine, abs=1e-5), task
    assert figure("M-Avg")(summarize(run)) == pytest.approx(100)
    hit = [row["task_type"] for row in six if row["answer"] in "ABCD"]
    means = [hit.count(name) / (3 if name == TEST[0] else 1) for name in TEST]
    assert wrong["mlvu_percetion_score"] == pytest.approx(100 * sum(means) / 9)
