"""Answers of a run for other tools.

`lmms-eval` is the log that its model `from_log` replays: the replies by position of the row in the data set, so that
lmms-eval scores them with its own code. Where options were compared by likelihood the reply is the letter. A question
without an answer has an empty reply. `submission` is what the data set's own scorer reads: EgoSchema's object
{id: index}, or QVHighlights' JSON Lines of windows and one score for each clip of two seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from index.errors import UsageError
from index.files import write_atomically
from pipeline.evaluation.benchmarks.benchmark import Item
from pipeline.evaluation.benchmarks.registry import benchmark
from pipeline.evaluation.runs.record import AnswerLine, RunFolder
from pipeline.evaluation.runs.summary import judged
from pipeline.evaluation.scoring.reply import LETTERS

__all__ = ["EXPORTS", "ExportFormat", "export_run"]

ExportFormat = Literal["lmms-eval", "submission"]
"""The formats."""

EXPORTS: dict[ExportFormat, str] = {
    "lmms-eval": "score them with lmms_eval --model from_log --model_args logs=FOLDER --tasks TASK",
    "submission": "give it to the data set's own scorer",
}
"""What to do with each."""


def export_run(folder: RunFolder, out: Path, form: ExportFormat) -> int:
    """Write the answers of a run to `out` and return their number.

    Raises:
        UsageError: the run is not of the whole split, or the format does not exist for its benchmark.
    """
    head = folder.head()
    bench = benchmark(head.benchmark)
    if head.questions != head.rows:
        raise UsageError(
            f"{folder.path}: has {head.questions} of {head.rows} rows; {form} needs the whole split, without "
            "--limit and --subset"
        )
    pairs = judged(folder)
    if form == "submission" and bench.task == "highlights":
        rows = [_prediction(item, line) for item, line in pairs]
        write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), parents=True)
        return sum(bool(row["pred_relevant_windows"]) for row in rows)
    if form == "submission":
        if bench.name != "egoschema":
            raise UsageError(f"--format submission: {bench.title} has no such file; use lmms-eval")
        choices = {item.id: line.predicted for item, line in pairs if line is not None and line.predicted is not None}
        write_atomically(out, json.dumps(choices, indent=1) + "\n", parents=True)
        return len(choices)
    if head.split not in bench.lmms_tasks:
        raise UsageError(f"--format lmms-eval: it has no task with the rows of {bench.title}, split {head.split}")
    replies = [_reply(line) for _, line in pairs]
    log: dict[str, Any] = {
        "args": {"model": "sightline", "model_args": f"profile={head.profile},mode={head.mode}", "limit": None},
        "model_configs": {"task": bench.lmms_tasks[head.split]},
        "time": "unknown",
        "logs": [{"doc_id": number, "resps": [[reply]]} for number, reply in enumerate(replies)],
        "sightline": head.model_dump(mode="json"),
    }
    write_atomically(out, json.dumps(log, indent=1, ensure_ascii=False) + "\n", parents=True)
    return sum(bool(reply) for reply in replies)


def _prediction(item: Item, line: AnswerLine | None) -> dict[str, Any]:
    """A row of QVHighlights' predictions: the windows of the moments, the best first, and one score a clip."""
    detail = {} if line is None else line.detail
    number = int(item.id) if item.id.isdecimal() else item.id
    return {
        "qid": number,
        "query": item.question,
        "vid": item.video,
        "pred_relevant_windows": detail.get("windows", []),
        "pred_saliency_scores": detail.get("saliency", []),
    }


def _reply(line: AnswerLine | None) -> str:
    if line is None or line.state not in ("answered", "unparsed"):
        return ""
    by_likelihood = bool(line.probabilities)
    return LETTERS[line.predicted] if by_likelihood and isinstance(line.predicted, int) else line.reply
