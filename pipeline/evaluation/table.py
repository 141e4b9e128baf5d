"""Evaluation as a page of Markdown."""

from __future__ import annotations

from pipeline.evaluation.rendered import METHODS, Evaluation
from pipeline.share import Share

__all__ = ["table"]

_NAMES = {
    "dks + dfm": "DKS + DFM (as shipped)",
    "hico": "clips (as shipped)",
    "top-k": "query-guided top-K in place of DKS",
    "uniform": "uniform sampling in place of DKS",
    "mean pooling": "mean pooling in place of DFM",
    "keyframes only": "no non-keyframe tokens",
    "blind": "blind (no visual tokens)",
}


def _cell(share: Share) -> str:
    return f"{100 * share.share:.0f} ({100 * share.low:.0f}–{100 * share.high:.0f})" if share.total else "–"


def table(result: Evaluation) -> str:
    """Return percentages with 95 % Wilson intervals, after the bars, which are marked as held or missed."""
    kinds = list(result.accuracy["blind"])
    lines = [
        f"# What the `{result.profile}` profile gets right",
        "",
        f"Seeds {', '.join(map(str, result.seeds))}, never seen in training; {result.cameras} cameras each, "
        f"{result.minutes:g} minutes a stream, {result.frames} frames, {result.questions} questions, K = {result.k}, "
        f"τ = {result.tau}. Percent right (95 % interval); chance is 25.",
        "",
        "| bar | figure | |",
        "|---|---|---|",
    ]
    for name, (held, figure) in result.bars().items():
        lines.append(f"| {name} | {figure} | {'held' if held else '**missed**'} |")
    lines += ["", f"| multiple choice | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for variant in result.variants:
        cells = " | ".join(_cell(result.accuracy[variant][kind]) for kind in kinds)
        lines.append(f"| {_NAMES[variant]} | {cells} |")
    lines += [
        "",
        "Keyframes that show the evidence. *All of several* counts questions with more than one evidence event, where "
        "any and all differ; the bars on all evidence refer to it.",
        "",
        "| K | method | any evidence | all evidence | all of several |",
        "|---|---|---|---|---|",
    ]
    for many, methods in result.hits.items():
        for method in METHODS:
            row = methods[method]
            lines.append(
                f"| {many} | {method} | {_cell(row['any'])} | {_cell(row['all'])} | {_cell(row['all of several'])} |"
            )
    return "\n".join(lines) + "\n"
