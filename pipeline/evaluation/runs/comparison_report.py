"""The comparison of two runs as one HTML page: figures, groups, and the questions that only one run answers right.

Each of these questions has the choices of both runs and their keyframes, read from the store. The page is
self-contained and has no script.
"""

from __future__ import annotations

from typing import Any

from index.store import Store
from pipeline.evaluation.benchmarks.benchmark import Item
from pipeline.evaluation.benchmarks.registry import benchmark
from pipeline.evaluation.runs.comparison import Comparison
from pipeline.evaluation.runs.record import AnswerLine, RunFolder, RunHead
from pipeline.evaluation.runs.report import frame_views, keyframe_pictures, span_text, truth_text
from pipeline.evaluation.runs.summary import judged, percent
from pipeline.evaluation.scoring.reply import LETTERS
from pipeline.figures.charts import Interval, intervals
from pipeline.pages import page
from pipeline.pictures.stored import FrameKey

__all__ = ["comparison_report"]

_BARS = 12
_NAMES = ("first", "second")


def comparison_report(
    first: RunFolder, second: RunFolder, result: Comparison, *, store: Store | None, pictures: int
) -> str:
    """The comparison as one HTML text.

    Args:
        first: a run.
        second: the run that it is compared with.
        result: what `compare_runs` found.
        store: gives the pictures of keyframes; none are shown if None.
        pictures: number of changed questions that are shown.
    """
    bench = benchmark(result.benchmark)
    measure = {"choice": "accuracy", "grounding": "mean IoU", "highlights": "MR-R1@0.5"}[bench.task]
    theirs = {item.id: line for item, line in judged(second)}
    listed = set(result.changed)
    changed = [
        (item, line, other)
        for item, line in judged(first)
        if item.id in listed and line is not None and (other := theirs.get(item.id)) is not None
    ][:pictures]
    found = keyframe_pictures([line for _, *lines in changed for line in lines], store)
    shares = (result.first, result.second)
    return page(
        "comparison.html.j2",
        title=f"{bench.title}: two runs",
        measure=measure,
        result=result,
        runs=[
            {**_run(name, folder.head()), "value": percent(share)}
            for name, folder, share in zip(_NAMES, (first, second), shares, strict=True)
        ],
        plots=_plots(result, measure),
        groups=[(name.replace("_", " "), _rows(values)) for name, values in _shown(result).items()],
        changed=[_changed(item, (line, other), found) for item, line, other in changed],
    )


def _run(name: str, head: RunHead) -> dict[str, str]:
    parts = [head.profile, head.mode, *([head.baseline] if head.baseline != "none" else [])]
    parts += ["reference"] if head.reference else []
    return {
        "name": name,
        "model": ", ".join(parts),
        "rule": f"{head.frame_rule}; K = {head.k}; subtitles: {head.subtitle_rule}",
    }


def _shown(result: Comparison) -> dict[str, Any]:
    return {name: values for name, values in result.groups.items() if len(values) > 1}


def _plots(result: Comparison, measure: str) -> list[tuple[str, Any]]:
    plots = []
    for name, values in _shown(result).items():
        if len(values) > _BARS:
            continue
        rows = [
            Interval(
                f"{value} ({share.total}), {which}", share.share, share.low, share.high, f"{100 * share.share:.1f}", n
            )
            for value, pair in values.items()
            for n, (which, share) in enumerate(zip(_NAMES, (pair.first, pair.second), strict=True))
        ]
        plots.append((name.replace("_", " "), intervals(rows, title=f"{measure} of both runs by {name}")))
    return plots


def _rows(values: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "value": value,
            "count": str(pair.first.total),
            "first": percent(pair.first),
            "second": percent(pair.second),
            "points": f"{100 * (pair.second.share - pair.first.share):+.1f}",
        }
        for value, pair in values.items()
    ]


def _changed(item: Item, lines: tuple[AnswerLine, AnswerLine], found: dict[FrameKey, bytes]) -> dict[str, Any]:
    options = []
    for number, text in enumerate(item.options):
        notes = ["right"] if number == item.answer else []
        notes += [name for name, line in zip(_NAMES, lines, strict=True) if line.predicted == number]
        options.append(
            {"letter": LETTERS[number], "text": text, "true": number == item.answer, "notes": ", ".join(notes)}
        )
    return {
        "id": item.id,
        "video": item.video,
        "question": item.question,
        "truth": truth_text(item),
        "options": options,
        "winner": _NAMES[0] if lines[0].value >= lines[1].value else _NAMES[1],
        "runs": [
            {
                "name": name,
                "state": line.state,
                "reply": line.reply,
                "span": span_text(line),
                "hit": line.evidence_hit,
                "frames": frame_views(line, found),
            }
            for name, line in zip(_NAMES, lines, strict=True)
        ],
    }
