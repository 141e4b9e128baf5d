"""HTML report of questions: each with its answer, the truth if it is known, and the moments that prove it.

The report is one self-contained file: pictures are data URIs, timelines are inline SVG, and there is no script. The
template escapes every text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.records import parse_rfc3339, rfc3339
from index.search.scores import ScoredFrames
from pipeline.pages import data_uri, page, write_page
from pipeline.pictures.stored import FrameKey
from pipeline.pictures.timeline import WIDTH, Mark, Span, Timeline, clock, timeline

if TYPE_CHECKING:
    from pipeline.questions.asker import Asked, Selection

__all__ = ["Reported", "StageTime", "answer_report", "render_report", "write_report"]

_SHOWN = 6
_COLOURS = 5


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


def _timeline(item: Reported) -> Timeline:
    """The timeline of one question."""
    window, scores = item.selection.window, item.selection.scores
    scored = []
    for number in np.unique(window.stream_index).tolist():
        rows = window.stream_index == number
        scored.append(ScoredFrames(window.stream_ids[number], window.captured_at[rows], scores[rows]))
    keyframes = item.selection.keyframes
    marks = [
        Mark(window.stream_ids[window.stream_index[row]], at, item.proves(at))
        for row, at in zip(keyframes.tolist(), window.captured_at[keyframes].tolist(), strict=True)
    ]
    names = window.stream_ids if item.stream_id is None else [item.stream_id]
    spans = [Span(name, a, b) for name in names for a, b in item.evidence]
    return timeline(scored, marks, spans)


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
                    "src": data_uri(picture),
                    "time": clock(at),
                    "stream": name if several else "",
                    "score": f"{scores[row]:.3f}",
                    "proof": item.proves(at),
                }
            )
    return result


def _view(number: int, item: Reported) -> dict[str, Any]:
    """Return the values of one question for the template."""
    asked = item.asked
    drawn = _timeline(item)
    keyframes = _keyframes(item, several=len(drawn.lanes) > 1)
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
        "timeline": drawn,
        "evidence": [f"{clock(a)} to {clock(b)}" for a, b in item.evidence],
        "shown": keyframes[:_SHOWN],
        "more": keyframes[_SHOWN:],
        "frames": asked.frames,
        "tokens": asked.visual_tokens,
        "seconds": [(name, value) for name, value in seconds.items() if name != "total" and value >= 0.005],
        "total": seconds.get("total", sum(seconds.values())),
        "notices": asked.notices,
        "streams": ", ".join(lane.stream for lane in drawn.lanes),
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


def answer_report(
    asked: Asked, selection: Selection, pictures: Mapping[FrameKey, bytes], *, title: str, subtitle: str = ""
) -> str:
    """The report of an answer, or of keyframes if the answer is empty, as one HTML text.

    Args:
        asked: question and answer.
        selection: the keyframes and the relevance of every frame.
        pictures: pictures of the keyframes.
        title: title of the report.
        subtitle: a sentence below it.
    """
    keyed = {
        (frame.stream_id, frame.captured_at): jpeg
        for frame in asked.keyframes
        if (jpeg := pictures.get((frame.stream_id, parse_rfc3339(frame.captured_at)))) is not None
    }
    return render_report([Reported(asked, selection, keyed)], title=title, subtitle=subtitle)
