"""Subtitles: SubRip files and the JSON of LongVideoBench, and the three rules by which lines reach a prompt.

`none` gives no text, `aligned` the lines that a frame which the model reads falls into, `all` the whole file. Video-MME
and LongVideoBench define "falls into" differently (`Alignment`). Which rule is used is part of a result: accuracies
under two rules are not comparable.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.evaluation.benchmarks.rows import seconds_of

__all__ = ["Alignment", "Cue", "SubtitleRule", "read_subtitles", "select_cues"]

SubtitleRule = Literal["none", "aligned", "all"]
"""Which subtitles a prompt has."""

_CLOCK = r"((?:\d{1,4}:)?\d{1,4}:\d\d[.,]\d{1,9})"  # bounded, so that searching a line takes linear time
_TIMES = re.compile(rf"{_CLOCK}\s{{0,9}}-->\s{{0,9}}{_CLOCK}")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Alignment:
    """When a line of subtitles is aligned with a frame: the frame is in it. The default is the rule of Video-MME."""

    least_seconds: float = 0.0
    """A shorter line is widened to this length about its middle."""
    at_start: bool = True
    """Whether a frame at the very start of a line is in it; one at its end is not."""


@dataclass(frozen=True, slots=True)
class Cue:
    """One line of subtitles."""

    start: float
    """Seconds since the beginning of the video."""
    end: float
    """Seconds, exclusive."""
    text: str
    """One line without tags."""


def read_subtitles(path: Path, offset: float = 0.0) -> list[Cue]:
    """The cues of an `.srt` or `.json` file in the order of time; those without text are left out.

    Args:
        path: the file; a damaged cue is passed over, and bytes that are not UTF-8 are replaced.
        offset: seconds to subtract, for a video that is a cut of a longer one.
    """
    text = path.read_bytes().decode("utf-8-sig", "replace")
    cues = _from_json(text) if path.suffix == ".json" else _from_srt(text)
    shifted = [Cue(cue.start - offset, cue.end - offset, cue.text) for cue in cues]
    return sorted((cue for cue in shifted if cue.end > 0 and cue.text), key=lambda cue: cue.start)


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", text)).split())


def _from_srt(text: str) -> list[Cue]:
    cues = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    starts = [number for number, line in enumerate(lines) if _TIMES.search(line)]
    for number, following in zip(starts, [*starts, len(lines) + 1][1:], strict=True):
        found = _TIMES.search(lines[number])
        start, end = (seconds_of(each) for each in found.groups()) if found else (None, None)
        body = lines[number + 1 : following - 1]
        if "" in body:
            body = body[: body.index("")]
        if start is not None and end is not None:
            cues.append(Cue(start, end, _plain(" ".join(body))))
    return cues


def _from_json(text: str) -> list[Cue]:
    """Rows {start, end, line} with clock texts, or {timestamp: [seconds, seconds or null], text}."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):  # also a number of thousands of digits, and thousands of brackets
        return []
    cues = []
    for row in rows if isinstance(rows, list) else []:
        start: float | None
        end: float | None
        if not isinstance(row, dict):
            continue
        if "timestamp" in row:
            first, last = (*row["timestamp"], None, None)[:2]
            start = None if first is None else float(first)
            end = start if last is None else float(last)
        else:
            start, end = seconds_of(str(row.get("start"))), seconds_of(str(row.get("end")))
        if start is not None and end is not None:
            cues.append(Cue(start, max(start, end), _plain(str(row.get("line", row.get("text", ""))))))
    return cues


def select_cues(
    cues: Sequence[Cue], rule: SubtitleRule, seconds: Sequence[float], alignment: Alignment = Alignment()
) -> list[str]:
    """The lines that a prompt has; a line that repeats its predecessor is left out.

    Args:
        cues: the subtitles.
        rule: which lines.
        seconds: times of the frames that the model reads, ascending, in seconds since the beginning of the video.
        alignment: when a line holds a frame, for the rule `aligned`.
    """
    chosen = [] if rule == "none" else [cue for cue in cues if rule == "all" or _holds(cue, seconds, alignment)]
    lines: list[str] = []
    for cue in chosen:
        if not lines or lines[-1] != cue.text:
            lines.append(cue.text)
    return lines


def _holds(cue: Cue, seconds: Sequence[float], alignment: Alignment) -> bool:
    start, end = cue.start, cue.end
    if end - start < alignment.least_seconds:
        middle, half = (start + end) / 2, alignment.least_seconds / 2
        start, end = middle - half, middle + half
    return any(start < second < end or (alignment.at_start and second == start < end) for second in seconds)
