"""Curves and bars of shares over linear axes from 0 to 100 %, as one SVG that needs no style sheet.

Unlike `pipeline.figures.charts`, whose colours are classes of a page, the result is complete: it can be written to a
file and shown by any browser. It is white in a dark page as well. The module knows nothing of studies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Curve", "share_plot"]

_WIDTH, _FLOOR = 560, 276
_LEFT, _RIGHT, _TOP = 52, 24, 40
_LEGEND = 18  # height of a row of the legend, which has two columns
_LETTER = 0.6  # width of a bold letter by its size, on average
_COLOURS = ("#c0392b", "#4f46e5", "#6b7280", "#d97706", "#059669")
_BAR, _GRID, _INK, _SOFT = "#bcd3ea", "#e5e7eb", "#1c1c22", "#6e6e78"


@dataclass(frozen=True, slots=True)
class Curve:
    """A series."""

    label: str
    """Its name in the legend."""
    points: Sequence[tuple[float, float]]
    """(x, y), both in [0, 1]; what lies outside is drawn at the edge."""
    dashed: bool = False
    """Whether the line is dashed."""


def share_plot(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    bars: Sequence[float] = (),
    bars_label: str = "",
    level: tuple[float, str] | None = None,
    ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draw curves over bars of equal width.

    Args:
        curves: at most five.
        title: above the plot.
        x_label: name of the horizontal axis.
        bars: heights of bars in [0, 1], from left to right; negative ones are drawn as 0.
        bars_label: their name in the legend.
        level: a height and its name, marked by a dotted line.
        ticks: places and texts of the horizontal axis; every 20 % if there are none.
    """
    right, floor = _WIDTH - _RIGHT, _FLOOR
    height = floor + 58 + _LEGEND * ((len(curves) + bool(bars) + (level is not None) + 1) // 2)
    size = min(15.0, (right - _LEFT) / (_LETTER * len(title)))

    def x(share: float) -> float:
        return _LEFT + min(1.0, max(0.0, share)) * (right - _LEFT)

    def y(share: float) -> float:
        return floor - min(1.0, max(0.0, share)) * (floor - _TOP)

    parts = [
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="{size:.1f}" font-weight="600" fill="{_INK}">{escape(title)}</text>',
    ]
    for i in range(6):
        parts.append(f'<path d="M{_LEFT} {y(i / 5):.1f}H{right}" stroke="{_GRID}" fill="none"/>')
        parts.append(_text(_LEFT - 6, y(i / 5) + 4, f"{20 * i} %", anchor="end"))
    for place, text in ticks or [(i / 5, f"{20 * i} %") for i in range(6)]:
        parts.append(_text(x(place), floor + 17, text))
    for i, bar in enumerate(bars):
        left, wide = x(i / len(bars)) + 2, (right - _LEFT) / len(bars) - 4
        top = y(bar)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{floor - top:.1f}" fill="{_BAR}"/>'
        )
    entries: list[tuple[str, str, str]] = [(bars_label, _BAR, "bar")] if bars else []
    if level is not None:
        parts.append(
            f'<path d="M{_LEFT} {y(level[0]):.1f}H{right}" stroke="{_INK}" stroke-dasharray="2 4" fill="none"/>'
        )
        entries.append((level[1], _INK, "2 4"))
    for number, curve in enumerate(curves):
        colour, dashes = _COLOURS[number % len(_COLOURS)], "6 4" if curve.dashed else ""
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in curve.points)
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}" fill="none"/>')
        entries.append((curve.label, colour, dashes))
    parts.append(_text((_LEFT + right) / 2, floor + 35, x_label))
    for number, (label, colour, kind) in enumerate(entries):
        at, top = _LEFT + (number % 2) * 256, floor + 50 + number // 2 * 18
        mark = f'<path d="M{at} {top + 5}h18" stroke="{colour}" stroke-width="2" stroke-dasharray="{kind}"/>'
        if kind == "bar":
            mark = f'<rect x="{at}" y="{top}" width="18" height="10" fill="{colour}"/>'
        parts += [mark, _text(at + 24, top + 9, label, anchor="start")]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif">'
    )
    return Markup(head + "".join(parts) + "</svg>")  # every text in it is escaped above


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11.5" fill="{_SOFT}" text-anchor="{anchor}">{escape(text)}</text>'
