"""The report of a run as one HTML page: what was measured, how surely, and what wrong answers looked at.

Tables stand beside published figures, which are marked as such. Plots show accuracy by length, task and depth of the
evidence. Wrong answers come with their keyframes, read from the store. The page is self-contained and has no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from index.records import parse_rfc3339
from index.store import Store
from pipeline.evaluation.benchmarks.benchmark import Item
from pipeline.evaluation.benchmarks.registry import benchmark
from pipeline.evaluation.runs.published import published
from pipeline.evaluation.runs.record import AnswerLine, RunFolder, RunHead, ShownFrame
from pipeline.evaluation.runs.summary import Summary, judged, percent, rows_note
from pipeline.evaluation.scoring.intervals import ClusteredShare
from pipeline.evaluation.scoring.reply import LETTERS
from pipeline.figures.charts import Interval, intervals
from pipeline.pages import data_uri, page
from pipeline.pictures.stored import FrameKey, frame_pictures

__all__ = ["frame_views", "keyframe_pictures", "run_report", "span_text", "truth_text"]

_FRAMES = 6
_BARS = 24


def run_report(
    folder: RunFolder,
    summary: Summary,
    *,
    store: Store | None,
    pictures: int,
    beside: Sequence[Summary] = (),
) -> str:
    """The report as one HTML text.

    Args:
        folder: the run.
        summary: its figures.
        store: gives the pictures of keyframes; none are shown if None.
        pictures: number of wrong answers that are shown.
        beside: figures of other runs, such as the blind baseline.
    """
    bench, head = benchmark(summary.head.benchmark), summary.head
    measure = {"choice": "accuracy", "grounding": "mean IoU", "highlights": "MR-R1@0.5"}[bench.task]
    wrong = _wrong(folder)
    return page(
        "evaluation.html.j2",
        title=f"{bench.title}, {head.profile}",
        subtitle=_subtitle(head),
        measure=measure,
        overall="–" if summary.hidden else percent(summary.accuracy),
        facts=_facts(summary),
        states=list(summary.states.items()),
        runs=[_run_row(each) for each in (summary, *beside)],
        figures=summary.figures,
        published=published(bench.name),
        plots=[] if summary.hidden else _plots(summary, measure),
        groups=[] if summary.hidden else [(name, _rows(values)) for name, values in summary.groups.items()],
        positions=summary.positions,
        rotations=summary.rotations,
        letters=LETTERS,
        missing=summary.missing,
        problems=list(summary.problems.items()),
        settings=_settings(head),
        wrong_total=len(wrong),
        wrong=_views(wrong[:pictures], store),
    )


def _subtitle(head: RunHead) -> str:
    whole = "the whole split" if head.questions == head.rows else f"{head.questions} of {head.rows} rows"
    note = rows_note(head)
    text = f"Split {head.split}, {whole}; {head.decoding}; subtitles: {head.subtitle_rule}."
    return text if note is None else f"{text} Not the published split: {note}."


def _facts(summary: Summary) -> list[tuple[str, str]]:
    facts = [("questions", f"{summary.head.questions:,}"), ("videos", f"{summary.accuracy.clusters:,}")]
    if summary.chance is not None:
        facts.append(("chance", f"{100 * summary.chance:.1f}"))
    if summary.common.total != summary.accuracy.total and not summary.hidden:
        facts.append((f"on the {summary.common.total} whose video was read", percent(summary.common)))
    if summary.evidence is not None:
        facts.append((f"evidence shown, of {summary.evidence.total}", percent(summary.evidence)))
    facts += [
        ("frames a question", f"{summary.mean_frames:.0f}"),
        ("visual tokens", f"{summary.mean_tokens:.0f}"),
        ("seconds a question", f"{summary.mean_seconds:.2f}"),
    ]
    return facts


def _run_row(summary: Summary) -> dict[str, str]:
    head = summary.head
    parts = [head.profile, head.mode, *([head.baseline] if head.baseline != "none" else [])]
    parts += ["reference"] if head.reference else []
    return {
        "name": ", ".join(parts),
        "rule": f"{head.frame_rule}; K = {head.k}; subtitles: {head.subtitle_rule}",
        "value": "–" if summary.hidden else percent(summary.accuracy),
        "questions": str(summary.accuracy.total),
    }


def _rows(values: dict[str, ClusteredShare]) -> list[tuple[str, int, str]]:
    return [(name, share.total, percent(share)) for name, share in values.items()]


def _plots(summary: Summary, measure: str) -> list[tuple[str, Markup]]:
    shown = {**summary.groups, "length of the video": summary.by_length, "depth of the evidence": summary.by_depth}
    mark = None if summary.chance is None else (summary.chance, "chance")
    plots = []
    for name, values in shown.items():
        if not 1 < len(values) <= _BARS and name not in ("length of the video", "depth of the evidence"):
            continue
        rows = [
            Interval(f"{value} ({share.total})", share.share, share.low, share.high, f"{100 * share.share:.1f}")
            for value, share in values.items()
        ]
        if rows:
            plots.append((name.replace("_", " "), intervals(rows, title=f"{measure} by {name}", mark=mark)))
    return plots


def _settings(head: RunHead) -> list[tuple[str, str]]:
    values = head.model_dump(mode="json")
    encoders = values.pop("encoders")
    rows = [(name.replace("_", " "), "–" if value is None else str(value)) for name, value in values.items()]
    for name, identity in encoders.items():
        if isinstance(identity, dict):
            rows.append((f"{name} encoder", f"{identity['name']}, weights {identity['weights_digest'][:16]}…"))
    return rows


def _wrong(folder: RunFolder) -> list[tuple[Item, AnswerLine]]:
    """Questions that were answered wrong or not parsed; those with keyframes first."""
    found = [
        (item, line)
        for item, line in judged(folder)
        if line is not None and line.state in ("answered", "unparsed") and line.value < 0.5
    ]
    return sorted(found, key=lambda pair: not pair[1].keyframes)


def _views(wrong: Sequence[tuple[Item, AnswerLine]], store: Store | None) -> list[dict[str, Any]]:
    found = keyframe_pictures([line for _, line in wrong], store)
    return [_view(item, line, found) for item, line in wrong]


def keyframe_pictures(lines: Sequence[AnswerLine], store: Store | None) -> dict[FrameKey, bytes]:
    """The pictures of the keyframes that `frame_views` shows of some answers; none without a store."""
    keys = [_key(frame) for line in lines for frame in _best(line)]
    return {} if store is None else frame_pictures(store, keys)


def frame_views(line: AnswerLine, found: dict[FrameKey, bytes]) -> list[dict[str, Any]]:
    """The keyframes of an answer with the highest scores, in the order of time, for a template."""
    views = []
    for frame in sorted(_best(line), key=lambda each: each.seconds):
        picture = found.get(_key(frame))
        if picture is not None:
            clock = f"{int(frame.seconds) // 60}:{int(frame.seconds) % 60:02}"
            views.append(
                {"src": data_uri(picture), "time": clock, "score": f"{frame.score:.3f}", "proof": frame.evidence}
            )
    return views


def span_text(line: AnswerLine) -> str | None:
    """The span that an answer names; None if it names none."""
    span = line.predicted
    return f"{span[0]:.1f} to {span[1]:.1f} s" if isinstance(span, tuple) else None


def truth_text(item: Item) -> str:
    """Where the evidence of a question is; empty if that is not known."""
    return ", ".join(f"{a:.1f} to {b:.1f} s" for a, b in item.spans)


def _key(frame: ShownFrame) -> FrameKey:
    return frame.stream_id, parse_rfc3339(frame.captured_at)


def _best(line: AnswerLine) -> list[ShownFrame]:
    return sorted(line.keyframes, key=lambda frame: -frame.score)[:_FRAMES]


def _view(item: Item, line: AnswerLine, found: dict[FrameKey, bytes]) -> dict[str, Any]:
    options = [
        {"letter": LETTERS[n], "text": text, "true": n == item.answer, "chosen": n == line.predicted}
        for n, text in enumerate(item.options)
    ]
    return {
        "id": item.id,
        "video": item.video,
        "question": item.question,
        "options": options,
        "reply": line.reply,
        "state": line.state,
        "span": span_text(line),
        "truth": truth_text(item),
        "hit": line.evidence_hit,
        "frames": frame_views(line, found),
    }
