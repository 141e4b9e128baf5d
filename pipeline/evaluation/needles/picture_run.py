"""Runs over cases with pictures: asked, resumed, counted (VideoChat-Flash, single-hop and multi-hop needles).

Of a chain three figures are given: Q1, Q2, and both right. The paper's question score counts a right Q2 only where Q1
is right, which its random row of 6.25 % shows, and is the third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model.answerer import Answerer
from pipeline.evaluation.needles.asking import Shown, SpliceAsker, begin_run
from pipeline.evaluation.needles.cases import CLIP, Piece
from pipeline.evaluation.needles.chains import DEPTHS, PictureCase, inserted
from pipeline.evaluation.needles.heatmap import HeatMap, Point, heat_grid, heat_picture, heat_rows
from pipeline.evaluation.needles.record import SETTINGS, AnswerLine, NeedleFolder, NeedleHead, Setting
from pipeline.evaluation.needles.splice import Streams

__all__ = ["PictureSummary", "run_pictures"]


class PictureSummary(BaseModel):
    """The figures of a run with pictures."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    head: NeedleHead
    """What the run was."""
    tables: dict[str, HeatMap]
    """By what is shown: accuracy by length and depth, or, of chains, by length and Q1, Q2 and both."""
    pairs: dict[str, int]
    """Of chains in their haystack: both right, only Q1, only Q2, none."""
    refused: int
    """Questions that did not fit the model; they count as wrong."""


def run_pictures(
    cases: Sequence[PictureCase],
    streams: Streams,
    answerer: Answerer,
    out: Path,
    *,
    kind: str,
    source: str,
    seed: int,
    settings: Sequence[Setting] = SETTINGS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> PictureSummary:
    """Ask what a folder of a run lacks, and write its report.

    Args:
        cases: the cases.
        streams: streams of the store that has them.
        answerer: the models.
        out: folder of the run; a run that is there goes on.
        kind: `image` or `chain`.
        source: where pictures and haystacks come from.
        seed: seed of the list.
        settings: what is asked of each case; `spliced` is always asked.
        on_progress: called with the cases done and the cases in all.

    Raises:
        UsageError: the folder has another run.
    """
    folder = begin_run(out, kind, cases, streams, answerer, source=source, seed=seed, settings=settings)
    chosen = folder.head().settings
    asker, done = SpliceAsker(streams, answerer), folder.answers()
    for number, case in enumerate(cases, 1):
        for setting in chosen:
            for question in case.questions:
                key = case.id, f"{question.name}, {setting}"
                if key not in done:
                    line = asker.ask(
                        question.text,
                        question.options,
                        question.answer,
                        _pieces(case, setting),
                        case=key[0],
                        setting=key[1],
                        look=partial(_look, case),
                    )
                    folder.append(line)
        on_progress(number, len(cases))
    summary = summarize_pictures(folder, cases)
    folder.write(summary, summary.tables["spliced"], _picture(summary), _report(summary))
    return summary


def _look(case: PictureCase, line: AnswerLine, shown: Shown) -> None:
    """Note how many keyframes are pictures of the case."""
    rows = {int(row) for _, stream in case.needles for row in shown.splice.rows_of(stream)}
    line.needle_keyframes = len(rows & set(shown.keyframes.tolist()))


def _picture(summary: PictureSummary) -> bytes:
    if summary.head.kind == "chain":
        return heat_picture(summary.tables["spliced"], corner="question", means=False)
    return heat_picture(summary.tables["spliced"])


def _pieces(case: PictureCase, setting: Setting) -> list[Piece]:
    if setting == "blind":
        return []
    if setting == "haystack alone":
        return list(case.haystack)
    if setting == "needle alone":
        return [Piece(stream=stream, first=0, stop=CLIP) for _, stream in case.needles]
    return inserted(case.haystack, case.needles)


def summarize_pictures(folder: NeedleFolder, cases: Sequence[PictureCase]) -> PictureSummary:
    """The figures of a run; what was not asked counts as wrong."""
    head, answers = folder.head(), folder.answers()
    chain = head.kind == "chain"

    def right(case: PictureCase, name: str, setting: str) -> bool:
        """Whether a question was answered rightly."""
        line = answers.get((case.id, f"{name}, {setting}"))
        return line is not None and line.right

    tables = {}
    for setting in head.settings:
        points = []
        for case in cases:
            values = [right(case, question.name, setting) for question in case.questions]
            if chain:
                values.append(all(values))
            first = 0 if case.depth is None else DEPTHS.index(case.depth)
            points += [Point(case.length, first + n, case.cluster, value) for n, value in enumerate(values)]
        names = ["Q1", "Q2", "both"] if chain else [f"{depth:.0%}" for depth in DEPTHS]
        what = "chains of pictures" if chain else "pictures"
        tables[setting] = heat_grid(points, names, f"{what}, {setting}, {head.profile}, {head.source}")
    pairs = Counter(
        ("none", "only Q2", "only Q1", "both")[2 * right(case, "Q1", "spliced") + right(case, "Q2", "spliced")]
        for case in cases
        if chain
    )
    refused = sum(line.problem is not None for line in answers.values())
    return PictureSummary(head=head, tables=tables, pairs=dict(pairs), refused=refused)


def _report(summary: PictureSummary) -> str:
    head, chain = summary.head, summary.head.kind == "chain"
    rows = [f"# {'Chains of pictures' if chain else 'Pictures'} in haystacks, {head.profile}", ""]
    rows += [f"Source: {head.source}. Cases: {head.cases_digest[:16]}, seed {head.seed}.", ""]
    for setting, heat in summary.tables.items():
        rows += [f"## {setting}", "", "Right answers, percent, with the number of cases.", ""]
        rows += heat_rows(heat, "figure" if chain else "depth", means=not chain)
        rows.append("")
    if chain:
        rows += [", ".join(f"{name}: {count}" for name, count in sorted(summary.pairs.items())) + ".", ""]
    if summary.refused:
        rows += [f"{summary.refused} questions did not fit the model and count as wrong.", ""]
    return "\n".join([*rows, "![heat map](heatmap.png)", ""])
