"""HTML report of questions: each with its answer, the truth if it is known, and the moments that prove it.

The report is one self-contained file: pictures are data URIs, timelines are inline SVG, and there is no script. The
template escapes every text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from index.records import from_micros, rfc3339
from pipeline.pages import page, write_page

if TYPE_CHECKING:
    from pipeline.questions.asker import Asked, Selection

__all__ = ["Reported", "StageTime", "heat_strip", "render_report", "write_report"]

WIDTH = 1000  # width of a timeline in its own units, which the page scales
CELLS = 250
_TICKS = 6
_SHOWN = 6
_COLOURS = 5
_RAMP = ((241, 245, 249), (199, 210, 254), (129, 140, 248), (79, 70, 229), (49, 46, 129))


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage of the work."""

    name: str
    """Its name."""
    seconds: float
    """Its duration."""
    detail: str = ""
    """A few words about it."""


@dataclass(frozen=True, slots=True)
class Reported:
    """One question of the report."""

    asked: Asked
    """The question with its answer."""
    selection: Selection
    """Keyframes, scores and window of the question."""
    pictures: dict[tuple[str, str], bytes]
    """JPEG pictures of the keyframes, by (stream, RFC 3339 time)."""
    stream_id: str | None = None
    """The stream that the question is about; all streams if None."""
    kind: str = ""
    """Kind of the question."""
    truth: str | None = None
    """The true answer; None if it is not known."""
    evidence: list[tuple[int, int]] = field(default_factory=list)
    """True evidence, (start, end) in UTC microseconds."""

    @property
    def right(self) -> bool | None:
        """Whether the answer is right; None if the truth is not known."""
        return None if self.truth is None else self.asked.answer == self.truth

    def proves(self, at: int) -> bool:
        """Return whether the time `at` (UTC microseconds) is in the true evidence."""
        return any(start <= at <= end for start, end in self.evidence)


def _colour(level: float) -> str:
    place = min(max(level, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def heat_strip(
    captured_at: NDArray[np.int64], scores: NDArray[np.float32], *, start: int, end: int, low: float, high: float
) -> list[dict[str, Any]]:
    """Return the largest R_f in each of CELLS equal intervals of [start, end), as x, width and colour.

    An interval without a frame has no cell, so that gaps in the footage are visible.

    Args:
        captured_at: capture times, UTC microseconds, int64[N].
        scores: relevance R_f of the frames, float32[N].
        start: start of the strip, UTC microseconds.
        end: end of the strip, UTC microseconds.
        low: score of the lightest colour.
        high: score of the darkest colour.
    """
    width = WIDTH / CELLS
    cell = np.minimum((captured_at - start) * CELLS // max(1, end - start), CELLS - 1)
    best = np.full(CELLS, -np.inf, np.float32)
    np.maximum.at(best, cell, scores)
    span = max(high - low, 1e-9)
    return [
        {"x": round(i * width, 2), "width": round(width + 0.5, 2), "colour": _colour((float(best[i]) - low) / span)}
        for i in np.flatnonzero(np.isfinite(best)).tolist()
    ]


def _clock(micros: int, *, days: bool = False) -> str:
    return from_micros(micros).strftime("%d %b %H:%M:%S" if days else "%H:%M:%S")


def _lanes(item: Reported) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one lane for each stream, and the labels of their common time axis."""
    window, scores = item.selection.window, item.selection.scores
    start, end = int(window.captured_at.min()), int(window.captured_at.max()) + 1_000_000
    low, high = float(scores.min()), float(scores.max())

    def place(micros: int) -> float:
        """The horizontal position of a time on the timeline, in pixels."""
        return round((min(max(micros, start), end) - start) / (end - start) * WIDTH, 2)

    spans = [
        {"x": place(a), "width": max(4.0, round(place(b) - place(a), 2))}
        for a, b in item.evidence
        if a < end and b >= start
    ]
    lanes: list[dict[str, Any]] = []
    for number in np.unique(window.stream_index).tolist():
        rows = np.flatnonzero(window.stream_index == number)
        times = window.captured_at[np.intersect1d(item.selection.keyframes, rows)].tolist()
        name = window.stream_ids[number]
        lanes.append(
            {
                "stream": name,
                "heat": heat_strip(window.captured_at[rows], scores[rows], start=start, end=end, low=low, high=high),
                "marks": [{"x": place(at), "proof": item.proves(at)} for at in times],
                "spans": spans if item.stream_id in (None, name) else [],
            }
        )
    days = end - start > 20 * 3600 * 1_000_000
    anchors = ["start", *["middle"] * (_TICKS - 1), "end"]
    axis = [
        {"x": WIDTH * i / _TICKS, "text": _clock(start + (end - start) * i // _TICKS, days=days), "anchor": anchor}
        for i, anchor in enumerate(anchors)
    ]
    return lanes, axis


def _keyframes(item: Reported, *, several: bool) -> list[dict[str, Any]]:
    """Return the keyframes that have a picture, the most relevant first."""
    window, scores = item.selection.window, item.selection.scores
    result = []
    for row in sorted(item.selection.keyframes.tolist(), key=lambda r: (-scores[r], r)):
        at, name = int(window.captured_at[row]), window.stream_ids[window.stream_index[row]]
        picture = item.pictures.get((name, rfc3339(at)))
        if picture is not None:
            result.append(
                {
                    "src": "data:image/jpeg;base64," + base64.b64encode(picture).decode(),
                    "time": _clock(at),
                    "stream": name if several else "",
                    "score": f"{scores[row]:.3f}",
                    "proof": item.proves(at),
                }
            )
    return result


def _view(number: int, item: Reported) -> dict[str, Any]:
    """Return the values of one question for the template."""
    asked = item.asked
    lanes, axis = _lanes(item)
    keyframes = _keyframes(item, several=len(lanes) > 1)
    options = [
        {"text": text, "share": share, "chosen": text == asked.answer, "true": text == item.truth}
        for text, share in asked.probabilities.items()
    ]
    seconds = asked.timings_seconds
    return {
        "number": number,
        "kind": item.kind,
        "question": asked.question,
        "answer": asked.answer,
        "truth": item.truth,
        "right": item.right,
        "options": options,
        "lanes": lanes,
        "axis": axis,
        "evidence": [f"{_clock(a)} to {_clock(b)}" for a, b in item.evidence],
        "shown": keyframes[:_SHOWN],
        "more": keyframes[_SHOWN:],
        "frames": asked.frames,
        "tokens": asked.visual_tokens,
        "seconds": [(name, value) for name, value in seconds.items() if name != "total" and value >= 0.005],
        "total": seconds.get("total", sum(seconds.values())),
        "notices": asked.notices,
        "streams": ", ".join(lane["stream"] for lane in lanes),
    }


def render_report(
    items: Sequence[Reported],
    *,
    title: str,
    subtitle: str = "",
    stages: Sequence[StageTime] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the report as one HTML text.

    Args:
        items: the questions.
        title: title of the report.
        subtitle: a sentence below it.
        stages: stages of the work, drawn as bars.
        facts: names and values for the head of the report.
    """
    total = sum(stage.seconds for stage in stages)
    at, bars = 0.0, []
    for i, stage in enumerate(stages):
        width = WIDTH * stage.seconds / total if total else 0.0
        place = {"x": round(at, 2), "width": round(width, 2), "colour": i % _COLOURS}
        bars.append({"name": stage.name, "seconds": stage.seconds, "detail": stage.detail, **place})
        at += width
    known = [item.right for item in items if item.right is not None]
    return page(
        "report.html.j2",
        title=title,
        subtitle=subtitle,
        facts=facts,
        bars=bars,
        total=total,
        right=sum(known),
        known=len(known),
        items=[_view(number, item) for number, item in enumerate(items, 1)],
        width=WIDTH,
    )


def write_report(
    path: Path,
    items: Sequence[Reported],
    *,
    title: str,
    subtitle: str = "",
    stages: Sequence[StageTime] = (),
    facts: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write `render_report` to `path`, all or nothing."""
    return write_page(path, render_report(items, title=title, subtitle=subtitle, stages=stages, facts=facts))
