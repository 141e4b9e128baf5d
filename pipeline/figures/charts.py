"""Small charts as inline SVG: horizontal bars, lines over two logarithmic axes, and shares with their intervals.

Every function returns one `<svg>` element of `WIDTH` units, which is about the width of a phone in pixels, so that text
keeps its size there. Colours are CSS classes (`c0` to `c4` for series, `axis`, `goal`), which the page defines for
light and dark. Labels are escaped. The module knows nothing of benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "Interval", "Line", "bars", "intervals", "lines"]

WIDTH = 352
_BAR = 16
_ROW = 46
_CHARACTER, _BOLD = 7.2, 8.2  # width of a character of labels and of values, for leaving room
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40
_HEIGHT = 250


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a bar chart."""

    label: str
    """What is measured, above the bar."""
    value: float
    """Length of the bar, not negative."""
    text: str
    """The value with its unit, after the bar."""
    colour: int = 0
    """Series, 0 to 4: 0 is what the section is about, 1 what it is compared with, 2 a limit."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its confidence interval, all in [0, 1]."""

    label: str
    """What is measured."""
    share: float
    """The measured share."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    text: str
    """The value as text, at the right."""
    colour: int = 0
    """Series, 0 to 4."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a line chart."""

    label: str
    """Its name in the legend."""
    points: Sequence[tuple[float, float]]
    """(x, y) in ascending x, all above 0. A single point is drawn as a dot."""
    colour: int
    """Series, 0 to 4."""


def bars(rows: Sequence[Bar], *, title: str, limit: float | None = None) -> Markup:
    """Draw horizontal bars from 0, each with its label above and its value behind it.

    Args:
        title: text for readers who do not see the chart.
        limit: a value that is marked by a dashed line across all bars.
    """
    most = max([row.value for row in rows] + ([] if limit is None else [limit])) or 1.0
    room = WIDTH - max(len(row.text) for row in rows) * _BOLD - 10
    parts: list[str] = []
    for number, row in enumerate(rows):
        y = number * _ROW
        width = max(2.0, row.value / most * room)
        parts += [
            f'<text x="0" y="{y + 14}">{escape(row.label)}</text>',
            f'<rect class="c{row.colour}" x="0" y="{y + 20}" width="{width:.1f}" height="{_BAR}" rx="3"/>',
            f'<text class="value" x="{width + 7:.1f}" y="{y + 33}">{escape(row.text)}</text>',
        ]
    height = len(rows) * _ROW
    if limit is not None:
        x = limit / most * room
        parts.append(f'<path class="goal" d="M{x:.1f} 0V{height}"/>')
    return _svg(parts, height, title)


def intervals(rows: Sequence[Interval], *, title: str, mark: tuple[float, str] | None = None) -> Markup:
    """Draw shares as dots with their intervals as lines on an axis from 0 to 100 %.

    Args:
        title: text for readers who do not see the chart.
        mark: a share and its name, marked by a dashed line.
    """
    left, right = 6.0, WIDTH - 6.0

    def x(share: float) -> float:
        return left + share * (right - left)

    height = len(rows) * 40
    parts: list[str] = []
    for number, row in enumerate(rows):
        y = number * 40
        parts += [f'<path class="axis" d="M{x(i / 4):.1f} {y + 19}V{y + 34}"/>' for i in range(5)]
        parts.append(f'<path class="axis" d="M{x(0):.1f} {y + 26}H{x(1):.1f}"/>')
        if mark is not None:
            parts.append(f'<path class="goal" d="M{x(mark[0]):.1f} {y + 19}V{y + 34}"/>')
        parts += [
            f'<text x="0" y="{y + 14}">{escape(row.label)}</text>',
            f'<text class="value end" x="{WIDTH}" y="{y + 14}">{escape(row.text)}</text>',
            f'<path class="whisker s{row.colour}" d="M{x(row.low):.1f} {y + 26}H{x(row.high):.1f}"/>',
            f'<circle class="c{row.colour}" cx="{x(row.share):.1f}" cy="{y + 26}" r="5"/>',
        ]
    anchors = ["start", "mid", "mid", "mid", "end"]
    parts += [
        f'<text class="tick {anchors[i]}" x="{(0, x(i / 4), WIDTH)[0 if i == 0 else 2 if i == 4 else 1]:.1f}" '
        f'y="{height + 16}">'
        f"{25 * i} %</text>"
        for i in range(5)
    ]
    if mark is not None:
        parts.append(f'<text class="tick mid" x="{x(mark[0]):.1f}" y="{height + 32}">{escape(mark[1])}</text>')
    return _svg(parts, height + (38 if mark is not None else 20), title)


def lines(
    series: Sequence[Line],
    *,
    title: str,
    x_label: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    x_goal: float | None = None,
    y_goal: float | None = None,
) -> Markup:
    """Draw series over two logarithmic axes.

    Args:
        title: text for readers who do not see the chart.
        x_label: name of the horizontal axis.
        x_text: writes a tick of the horizontal axis.
        y_text: writes a tick of the vertical axis.
        x_goal: marked by a dashed vertical line.
        y_goal: marked by a dashed horizontal line.
    """
    xs = [x for line in series for x, _ in line.points] + ([] if x_goal is None else [x_goal])
    ys = [y for line in series for _, y in line.points] + ([] if y_goal is None else [y_goal])
    x_low, x_high = math.log10(min(xs)) - 0.05, math.log10(max(xs)) + 0.05
    y_low, y_high = math.log10(min(ys)) - 0.08, math.log10(max(ys)) + 0.08

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - x_low) / max(1e-9, x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (math.log10(value) - y_low) / max(1e-9, y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    floor = _HEIGHT - _BOTTOM
    parts: list[str] = []
    for tick in _ticks(y_low, y_high):
        at = y(tick)
        parts.append(f'<path class="axis" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{at + 4:.1f}">{escape(y_text(tick))}</text>')
    for tick in _ticks(x_low, x_high):
        at = x(tick)
        parts.append(f'<path class="axis" d="M{at:.1f} {_TOP}V{floor}"/>')
        parts.append(f'<text class="tick mid" x="{at:.1f}" y="{floor + 16}">{escape(x_text(tick))}</text>')
    if x_goal is not None:
        parts.append(f'<path class="goal" d="M{x(x_goal):.1f} {_TOP}V{floor}"/>')
    if y_goal is not None:
        parts.append(f'<path class="goal" d="M{_LEFT} {y(y_goal):.1f}H{WIDTH - _RIGHT}"/>')
    parts.append(
        f'<text class="tick mid" x="{(_LEFT + WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT - 6}">{escape(x_label)}</text>'
    )
    for line in series:
        places = [(x(a), y(b)) for a, b in line.points]
        if len(places) > 1:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
            parts.append(f'<path class="line s{line.colour}" d="M{path}"/>')
        parts += [f'<circle class="c{line.colour}" cx="{a:.1f}" cy="{b:.1f}" r="4"/>' for a, b in places]
    at, row = 0.0, 0
    for line in series:  # the legend, in as many rows as it needs
        needed = len(line.label) * _CHARACTER + 34
        if at and at + needed > WIDTH:
            at, row = 0.0, row + 1
        top = _HEIGHT + 10 + 20 * row
        parts.append(f'<rect class="c{line.colour}" x="{at:.1f}" y="{top}" width="12" height="12" rx="3"/>')
        parts.append(f'<text x="{at + 18:.1f}" y="{top + 11}">{escape(line.label)}</text>')
        at += needed
    return _svg(parts, _HEIGHT + 30 + 20 * row, title)


def _ticks(low: float, high: float) -> list[float]:
    """The powers of ten between 10^low and 10^high, with 2 and 5 times as much where there are fewer than three."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    steps = (1.0,) if math.floor(high) - math.ceil(low) >= 2 else (1.0, 2.0, 5.0)
    values = [float(f"{step:g}e{power}") for power in powers for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]


def _svg(parts: Sequence[str], height: float, title: str) -> Markup:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")  # every text in it is escaped above
