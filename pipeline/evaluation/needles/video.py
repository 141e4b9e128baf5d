"""VideoNIAH: short videos hidden in long ones, `sightline eval needles video` (ViLAMP, section 5.3).

Each case is asked with the needle in its haystack, and, beside it, with the needle alone (what is possible), with the
haystack alone (whether the haystack gives the answer away) and with nothing (what the question gives away).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from model.answerer import Answerer
from pipeline.evaluation.needles.asking import Shown, SpliceAsker, begin_run
from pipeline.evaluation.needles.cases import Case, Piece
from pipeline.evaluation.needles.heatmap import HeatMap, heat_map, heat_picture, heat_rows
from pipeline.evaluation.needles.record import SETTINGS, AnswerLine, NeedleFolder, NeedleHead, Setting
from pipeline.evaluation.needles.splice import Streams
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_share

__all__ = ["VideoSummary", "run_cases", "summarize_video"]

_UNANSWERABLE = "Information Synopsis"  # "What is this video about?" has no right answer in a haystack


class VideoSummary(BaseModel):
    """The figures of a run of VideoNIAH."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    head: NeedleHead
    """What the run was."""
    asked: dict[str, int]
    """Answers of each setting."""
    refused: dict[str, int]
    """Questions of each setting that did not fit the model; they count as wrong."""
    accuracy: dict[str, dict[str, ClusteredShare]]
    """Right answers: `accuracy[setting][length or "all"]`."""
    kinds: dict[str, dict[str, ClusteredShare]]
    """Right answers: `kinds[setting][type of question]`."""
    answerable: ClusteredShare
    """Right answers of `spliced` without questions about the whole video, which a haystack makes unanswerable."""
    needle_hit: dict[str, ClusteredShare]
    """Cases with a keyframe in the needle, by length."""
    evidence_hit: dict[str, ClusteredShare]
    """Cases whose keyframes show all events of the evidence, by length; empty if that is not known."""
    seconds: dict[str, float]
    """Mean seconds of a spliced question, by length."""
    peak_bytes: dict[str, int]
    """Peak resident memory of the process up to the end of each length, lengths ascending."""
    heat: HeatMap
    """Accuracy by length and depth."""


def run_cases(
    cases: Sequence[Case],
    streams: Streams,
    answerer: Answerer,
    out: Path,
    *,
    source: str,
    settings: Sequence[Setting] = SETTINGS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> VideoSummary:
    """Ask what a folder of a run lacks, and write its report.

    Args:
        cases: the cases, by length.
        streams: streams of the store that has them.
        answerer: the models.
        out: folder of the run; a run that is there goes on.
        source: where footage and questions come from.
        settings: what is asked of each case; `spliced` is always asked.
        on_progress: called with the questions done and the questions in all.

    Raises:
        UsageError: the folder has another run.
    """
    seed = cases[0].seed if cases else 0
    folder = begin_run(out, "video", cases, streams, answerer, source=source, seed=seed, settings=settings)
    chosen = folder.head().settings
    asker, done = SpliceAsker(streams, answerer), folder.answers()
    count, total = 0, len(cases) * len(chosen)
    for case in cases:
        for setting in chosen:
            if (case.id, setting) not in done:
                line = asker.ask(
                    case.needle.question,
                    case.needle.options,
                    case.needle.answer,
                    _pieces(case, setting),
                    case=case.id,
                    setting=setting,
                    look=partial(_look, case),
                )
                folder.append(line)
            count += 1
            on_progress(count, total)
    summary = summarize_video(folder, cases)
    folder.write(summary, summary.heat, heat_picture(summary.heat), report_text(summary))
    return summary


def _pieces(case: Case, setting: Setting) -> list[Piece]:
    if setting == "blind":
        return []
    return case.pieces(needle=setting != "haystack alone", haystack=setting != "needle alone")


def _look(case: Case, line: AnswerLine, shown: Shown) -> None:
    """Note what the keyframes show of the needle."""
    rows = shown.splice.rows_of(case.needle.stream)
    in_needle = np.isin(rows, shown.keyframes)
    line.needle_keyframes = int(in_needle.sum())
    if len(rows) and case.needle.evidence:
        seconds = shown.splice.seconds_of(case.needle.stream)[in_needle]
        line.evidence = all(bool(((seconds >= a) & (seconds <= b)).any()) for a, b in case.needle.evidence)


def summarize_video(folder: NeedleFolder, cases: Sequence[Case]) -> VideoSummary:
    """The figures of a run; a case that was not asked counts as wrong."""
    head, answers = folder.head(), folder.answers()

    def line_of(case: Case, setting: str) -> AnswerLine:
        """The answer to a case."""
        missing = AnswerLine(case=case.id, setting=setting, predicted=None, right=False, problem="not asked")
        return answers.get((case.id, setting), missing)

    def share(chosen: Sequence[Case], value: Callable[[Case], bool]) -> ClusteredShare:
        """Share of cases for which a value is true, clustered by question."""
        return clustered_share([value(case) for case in chosen], [case.needle.id for case in chosen])

    lengths = sorted({case.length for case in cases})
    by_length = {str(length): [case for case in cases if case.length == length] for length in lengths}
    kinds = {
        kind: [case for case in cases if case.needle.kind == kind] for kind in sorted({c.needle.kind for c in cases})
    }
    lines = {setting: [line_of(case, setting) for case in cases] for setting in head.settings}
    known = {name: [case for case in group if case.needle.evidence] for name, group in by_length.items()}

    def right(setting: str) -> Callable[[Case], bool]:
        """Whether a case was answered rightly in a setting."""
        return lambda case: line_of(case, setting).right

    return VideoSummary(
        head=head,
        asked={name: sum(line.problem != "not asked" for line in each) for name, each in lines.items()},
        refused={name: sum(line.problem not in (None, "not asked") for line in each) for name, each in lines.items()},
        accuracy={
            setting: {name: share(group, right(setting)) for name, group in {**by_length, "all": list(cases)}.items()}
            for setting in head.settings
        },
        kinds={s: {kind: share(group, right(s)) for kind, group in kinds.items()} for s in head.settings},
        answerable=share([case for case in cases if case.needle.kind != _UNANSWERABLE], right("spliced")),
        needle_hit={
            n: share(g, lambda case: line_of(case, "spliced").needle_keyframes > 0) for n, g in by_length.items()
        },
        evidence_hit={n: share(g, lambda case: bool(line_of(case, "spliced").evidence)) for n, g in known.items() if g},
        seconds={
            name: float(np.mean([line_of(case, "spliced").seconds for case in group]))
            for name, group in by_length.items()
        },
        peak_bytes={
            name: max((line.peak_bytes for (c, _), line in answers.items() if c.startswith(f"{name}-")), default=0)
            for name in by_length
        },
        heat=heat_map(cases, lines["spliced"], f"VideoNIAH, {head.profile}, {head.source}"),
    )


def report_text(summary: VideoSummary) -> str:
    """The figures as Markdown: a table by length, one by type of question, and the heat map."""
    head, lengths = summary.head, [name for name in next(iter(summary.accuracy.values())) if name != "all"]
    rows = [
        f"# VideoNIAH, {head.profile}",
        "",
        f"Source: {head.source}. Cases: {head.cases_digest[:16]}, seed {head.seed}.",
    ]
    rows += ["", "Right answers, percent, with 95 % intervals clustered by question.", ""]
    rows.append("| shown | " + " | ".join(f"{int(name):,} frames" for name in lengths) + " | all |")
    rows.append("|---" * (len(lengths) + 2) + "|")
    for setting, shares in summary.accuracy.items():
        rows.append(f"| {setting} | " + " | ".join(_percent(shares[name]) for name in [*lengths, "all"]) + " |")
    rows.append("| keyframe in the needle | " + " | ".join(_percent(summary.needle_hit[n]) for n in lengths) + " | |")
    if summary.evidence_hit:
        found = [_percent(summary.evidence_hit[n]) if n in summary.evidence_hit else "–" for n in lengths]
        rows.append("| evidence in keyframes | " + " | ".join(found) + " | |")
    rows.append("| seconds a question | " + " | ".join(f"{summary.seconds[n]:.1f}" for n in lengths) + " | |")
    rows.append("| peak memory, MiB | " + " | ".join(f"{summary.peak_bytes[n] / 2**20:.0f}" for n in lengths) + " | |")
    rows += [
        "",
        "| type of question | cases | " + " | ".join(summary.kinds) + " |",
        "|---" * (len(summary.kinds) + 2) + "|",
    ]
    for kind, share in summary.kinds["spliced"].items():
        each = " | ".join(_percent(shares[kind]) for shares in summary.kinds.values())
        rows.append(f"| {kind} | {share.total} | {each} |")
    if summary.answerable.total != summary.heat.overall.total:
        rows += ["", f"Without {_UNANSWERABLE}: {_percent(summary.answerable)}."]
    if any(summary.refused.values()):
        rows += ["", f"Did not fit the model, counted as wrong: {summary.refused}."]
    rows += ["", *heat_rows(summary.heat)]
    return "\n".join([*rows, "", "![heat map](heatmap.png)", ""])


def _percent(share: ClusteredShare) -> str:
    return f"{100 * share.share:.0f} ({100 * share.low:.0f}–{100 * share.high:.0f})" if share.total else "–"


__all__ += ["report_text"]
