"""The figures of an ablation, and its report as Markdown and as a page.

Every row is compared with the profile as it is by McNemar's test over the same questions. Within a run many rows are
compared, so p is also given adjusted by Holm's method over all of them. Does not load models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.files import write_atomically
from model.profiles.profile import Profile
from pipeline.bench.counted.merging import question_flops
from pipeline.evaluation.ablations.plan import AblationRow, Group, base_row
from pipeline.evaluation.ablations.run import AblationAnswer, AblationFolder, AblationHead
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_share
from pipeline.evaluation.scoring.pairs import McNemar, holm, mcnemar
from pipeline.figures.charts import Interval, intervals
from pipeline.pages import page, write_page

__all__ = ["AblationReport", "RowFigures", "ablation_text", "summarize_ablation", "write_ablation"]

_TITLES: dict[Group, str] = {
    "selectors": "Selection of keyframes (table 2)",
    "mergers": "Merging of other frames (table 2)",
    "keyframes": "Number of keyframes K (figure 6)",
    "temperature": "Temperature α and threshold τ (table 6)",
    "similarity": "Weight λ of the similarity to the keyframe",
}
_WORDS = {"dks": "DKS", "top-k": "query-guided", "uniform": "uniform", "dfm": "DFM", "mean": "mean pooling"}
_WORDS |= {"none": "keyframes only", "q-former": "Q-former, trained here", "single token": "single token, trained here"}
_WORDS |= {"dfm tuned": "DFM, MLP_n trained further", "mean tuned": "mean pooling, MLP_n trained further"}
_KINDS = {"q-former": "q-former", "single token": "single token", "none": "none", "mean": "mean", "mean tuned": "mean"}


class RowFigures(BaseModel):
    """The figures of one row."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    row: AblationRow
    """Its settings."""
    accuracy: ClusteredShare
    """Right answers, clustered by stream."""
    kinds: dict[str, ClusteredShare]
    """Right answers by kind of question."""
    evidence: ClusteredShare
    """Questions whose keyframes show every event of the evidence."""
    keyframes: float
    """Mean number of keyframes."""
    frames: float
    """Mean number of frames that are read."""
    visual_tokens: float
    """Mean number of vision tokens."""
    prompt_tokens: float
    """Mean number of tokens of the prompt."""
    flops: int | None
    """Operations of merging, projectors and prefill at these means, counted; None for a profile without a shape."""
    cache_bytes: int | None
    """Bytes of keys and values in bfloat16, counted; None likewise."""
    first_token_seconds: float
    """Median time from the question to the scores of its options."""
    cpu_seconds: float
    """Time that cores worked for all questions of the row."""
    peak_bytes: int
    """Growth of the peak resident memory of the process while it answered."""
    against_base: McNemar | None
    """Comparison with the profile as it is, which comes first; None for that row itself."""
    adjusted_p: float | None
    """p of the exact test, adjusted by Holm's method over all rows."""


class AblationReport(BaseModel):
    """The figures of a run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    command: str = ""
    """The command that made it."""
    machine: str = ""
    """The machine, and what else it did."""
    head: AblationHead
    """What was run."""
    trained: list[str]
    """Mergings that were trained by the run."""
    groups: dict[Group, list[RowFigures]]
    """Figures of each group; the profile as it is comes first."""
    cpu_seconds: float
    """Time that cores worked for all questions of all rows, without loading, footage and training."""
    load: float
    """Mean number of processes that wanted a core in the minute before the end."""


def summarize_ablation(
    folder: AblationFolder, groups: Mapping[Group, Sequence[AblationRow]], profile: Profile
) -> AblationReport:
    """The figures of a run whose rows are all done.

    Args:
        folder: the run.
        groups: its rows.
        profile: the profile, whose shape gives operations.

    Raises:
        UsageError: a row is not done.
    """
    answers: dict[AblationRow, list[AblationAnswer]] = {}
    for row in (row for rows in groups.values() for row in rows):
        found = folder.answers(row)
        if found is None:
            raise UsageError(f"{folder.path}: the row {row.name} is not done; run the same command again")
        answers[row] = found
    base = base_row(profile)
    figures = {row: _figures(row, found, answers.get(base), profile) for row, found in answers.items()}
    compared = [row for row, each in figures.items() if each.against_base is not None]
    tests = [figures[row].against_base for row in compared]
    for row, p in zip(compared, holm([test.p for test in tests if test is not None]), strict=True):
        figures[row].adjusted_p = p
    return AblationReport(
        head=folder.head(),
        trained=sorted({row.merging for row in answers if "tuned" in row.merging or "trained" in _WORDS[row.merging]}),
        groups={group: [figures[row] for row in rows] for group, rows in groups.items()},
        cpu_seconds=round(sum(answer.cpu_seconds for found in answers.values() for answer in found), 1),
        load=round(os.getloadavg()[0], 1),
    )


def _figures(
    row: AblationRow, answers: Sequence[AblationAnswer], base: Sequence[AblationAnswer] | None, profile: Profile
) -> RowFigures:
    streams = [answer.stream for answer in answers]

    def mean(name: str) -> float:
        """Mean of a number."""
        return round(float(np.mean([getattr(answer, name) for answer in answers])), 2)

    def share(name: str, kind: str | None = None) -> ClusteredShare:
        """Share of questions, or of those of a kind."""
        chosen = [answer for answer in answers if kind in (None, answer.kind)]
        return clustered_share([getattr(answer, name) for answer in chosen], [answer.stream for answer in chosen])

    shape, flops, cache = profile.shape, None, None
    keyframes, frames, prompt = round(mean("keyframes")), round(mean("frames")), round(mean("prompt_tokens"))
    if shape is not None:
        flops = question_flops(shape, _KINDS.get(row.merging, "dfm"), keyframes, frames - keyframes, prompt)
        cache = 2 * 2 * shape.width // shape.heads * shape.kv_heads * shape.layers * prompt
    against = None
    if base is not None and base is not answers:
        against = mcnemar([answer.right for answer in base], [answer.right for answer in answers], streams)
    return RowFigures(
        row=row,
        accuracy=share("right"),
        kinds={kind: share("right", kind) for kind in dict.fromkeys(answer.kind for answer in answers)},
        evidence=share("evidence"),
        keyframes=mean("keyframes"),
        frames=mean("frames"),
        visual_tokens=mean("visual_tokens"),
        prompt_tokens=mean("prompt_tokens"),
        flops=flops,
        cache_bytes=cache,
        first_token_seconds=float(np.median([answer.first_token for answer in answers])),
        cpu_seconds=round(sum(answer.cpu_seconds for answer in answers), 2),
        peak_bytes=max(answer.peak_bytes for answer in answers),
        against_base=against,
        adjusted_p=None,
    )


def _name(group: Group, row: AblationRow) -> str:
    """What distinguishes a row in its group."""
    merging = _WORDS[row.merging]
    match group:
        case "selectors":
            return f"{_WORDS[row.selector]} + {merging}" if row.merging != "none" else f"{_WORDS[row.selector]} alone"
        case "mergers":
            return f"{merging}, K = {row.k}"
        case "keyframes":
            return f"K = {row.k}"
        case "temperature":
            return f"α = {row.alpha:g}, τ = {row.tau:g}"
        case "similarity":
            return f"λ = {row.lam:g}"


def _percent(share: ClusteredShare) -> str:
    return f"{100 * share.share:.0f} ({100 * share.low:.0f}–{100 * share.high:.0f})"


def _cells(group: Group, each: RowFigures) -> list[str]:
    test = each.against_base
    paired = ["", "", ""]
    if test is not None:
        paired = [f"{100 * test.difference:+.1f}", f"{test.only_second}/{test.only_first}", f"{test.p:.2g}"]
        paired[2] += f" ({each.adjusted_p:.2g})" if each.adjusted_p is not None else ""
    return [
        _name(group, each.row),
        _percent(each.accuracy),
        *paired,
        _percent(each.evidence),
        f"{each.keyframes:.1f}",
        f"{each.visual_tokens:.0f}",
        "–" if each.flops is None else f"{each.flops / 1e9:.1f}",
        "–" if each.cache_bytes is None else f"{each.cache_bytes / 2**20:.1f}",
        f"{1000 * each.first_token_seconds:.0f}",
        f"{each.cpu_seconds / each.accuracy.total:.2f}",
    ]


_HEADS = [
    "row",
    "right, %",
    "difference",
    "won/lost",
    "p (Holm)",
    "evidence in keyframes, %",
    "keyframes",
    "vision tokens",
    "GFLOP",
    "cache, MiB",
    "first token, ms",
    "core seconds",
]


def _notes(report: AblationReport) -> list[str]:
    head = report.head
    notes = [
        f"{head.questions} questions, {head.streams} rendered streams of {head.seconds} seconds, seed {head.seed}. "
        "The first row of each table is the profile as it is. Intervals are at 95 % and clustered by stream; p is "
        "McNemar's exact test against the first row over the same questions, in brackets by Holm's method over "
        "all rows. Operations and cache are counted; the time to the first token is measured, with patches in memory, "
        "and depends on what else the machine does. Core seconds are what the cores work for a question, with its "
        "selection.",
    ]
    if report.trained:
        notes.append(
            f"The profile's language model was trained with DFM. The rows 'trained' and 'trained further' changed only "
            f"the merger and its MLP_n, {head.training_steps} steps of four questions on {head.training_streams} other "
            "streams with 4 to 16 keyframes; 'mean pooling' without that remark uses the MLP_n that was trained with "
            "DFM. None of them is what would result if the language model, too, were trained with that merger, "
            "as in the paper."
        )
    return notes


def ablation_text(report: AblationReport) -> str:
    """The figures as Markdown, one table a group."""
    lines = [f"# Ablations of `{report.head.profile}`", ""]
    for note in _notes(report):
        lines += [note, ""]
    for group, rows in report.groups.items():
        lines += [f"## {_TITLES[group]}", "", f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
        lines += [f"| {' | '.join(_cells(group, each))} |" for each in rows] + [""]
    return "\n".join(lines)


def write_ablation(folder: AblationFolder, report: AblationReport) -> Path:
    """Write `report.json`, `report.md` and `report.html` into the folder; returns the page."""
    write_atomically(folder.path / "report.json", report.model_dump_json(indent=1) + "\n")
    write_atomically(folder.path / "report.md", ablation_text(report))
    sections: list[dict[str, Any]] = []
    for group, rows in report.groups.items():
        marks = [
            Interval(_name(group, each.row), share.share, share.low, share.high, f"{100 * share.share:.1f}", min(1, i))
            for i, each in enumerate(rows)
            for share in [each.accuracy]
        ]
        first = (rows[0].accuracy.share, "the profile as it is")
        sections.append(
            {
                "title": _TITLES[group],
                "charts": [("", intervals(marks, title=_TITLES[group], mark=first))],
                "heads": _HEADS,
                "rows": [_cells(group, each) for each in rows],
                "text": "",
            }
        )
    text = page(
        "study.html.j2",
        title=f"Ablations of {report.head.profile}",
        notes=_notes(report),
        sections=sections,
    )
    return write_page(folder.path / "report.html", text)
