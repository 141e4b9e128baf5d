"""The heat map of needles: accuracy by length and depth, with counts, means of rows and columns, and a picture.

Intervals are clustered by question, because a question is asked in several haystacks. Does not know how answers come
about.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.needles.cases import BINS, Case, depth_bin
from pipeline.evaluation.needles.record import AnswerLine
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_share

__all__ = ["HeatMap", "Point", "heat_grid", "heat_map", "heat_picture", "heat_rows"]


class HeatMap(BaseModel):
    """Accuracy by length and depth."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    title: str
    """What is shown."""
    lengths: list[int]
    """The columns: frames of a haystack."""
    depths: list[str]
    """The rows: bins of depth, the front of the haystack first."""
    cells: list[list[ClusteredShare]]
    """`cells[row][column]`; a cell without cases has a total of 0."""
    rows: list[ClusteredShare]
    """The mean of each bin of depth over all lengths."""
    columns: list[ClusteredShare]
    """The mean of each length over all depths."""
    overall: ClusteredShare
    """The mean of all cases."""


@dataclass(frozen=True, slots=True)
class Point:
    """One answer in a heat map."""

    length: int
    """Its column: frames of the haystack."""
    row: int
    """Its row."""
    cluster: str
    """What it is not independent of, such as its question."""
    right: bool
    """Whether it is right."""


def heat_map(cases: Sequence[Case], lines: Sequence[AnswerLine], title: str) -> HeatMap:
    """The heat map of some cases with their answers, one line a case, in the same order."""
    pairs = zip(cases, lines, strict=True)
    points = [Point(case.length, depth_bin(case.depth), case.needle.id, line.right) for case, line in pairs]
    return heat_grid(points, [f"{100 * row // BINS} to {100 * (row + 1) // BINS} %" for row in range(BINS)], title)


def heat_grid(points: Sequence[Point], rows: Sequence[str], title: str) -> HeatMap:
    """The heat map of some answers; `rows` names its rows."""
    lengths = sorted({point.length for point in points})

    def mean(chosen: Sequence[Point]) -> ClusteredShare:
        """Share of right answers."""
        return clustered_share([point.right for point in chosen], [point.cluster for point in chosen])

    def column(length: int, row: int | None = None) -> list[Point]:
        """The answers of a column, or of one cell."""
        return [point for point in points if point.length == length and row in (None, point.row)]

    return HeatMap(
        title=title,
        lengths=lengths,
        depths=list(rows),
        cells=[[mean(column(length, row)) for length in lengths] for row in range(len(rows))],
        rows=[mean([point for point in points if point.row == row]) for row in range(len(rows))],
        columns=[mean(column(length)) for length in lengths],
        overall=mean(points),
    )


def heat_rows(heat: HeatMap, corner: str = "depth", *, means: bool = True) -> list[str]:
    """The heat map as a table of Markdown, with the number of cases in brackets.

    Args:
        heat: the heat map.
        corner: what the rows are.
        means: add the means of the columns.
    """
    lines = [f"| {corner} | " + " | ".join(f"{length:,}" for length in heat.lengths) + " | mean |"]
    lines.append("|---" * (len(heat.lengths) + 2) + "|")
    rows = list(zip(heat.depths, heat.cells, heat.rows, strict=True))
    if means:
        rows.append(("mean", heat.columns, heat.overall))
    for name, cells, mean in rows:
        lines.append(f"| {name} | " + " | ".join(_counted(share) for share in [*cells, mean]) + " |")
    return lines


def _counted(share: ClusteredShare) -> str:
    return f"{100 * share.share:.0f} ({share.total})" if share.total else "–"


_LEFT, _TOP, _WIDE, _HIGH = 130, 78, 104, 42
_LOW, _MIDDLE, _FULL = (196, 60, 57), (247, 226, 150), (46, 125, 80)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK, _SOFT, _NONE = (28, 28, 34), (110, 110, 120), (236, 236, 238)


def heat_picture(heat: HeatMap, *, corner: str = "depth", means: bool = True) -> bytes:
    """The heat map as a PNG. The scale goes from 0 to 100 %, and each cell has its percentage and count.

    Args:
        heat: the heat map.
        corner: what the rows are.
        means: draw the means of the columns.
    """
    columns, rows = len(heat.lengths), len(heat.depths)
    big, font, small = (ImageFont.load_default(size) for size in (17, 15, 11))
    width = max(520, _LEFT + (columns + 1) * _WIDE + 24, math.ceil(big.getlength(heat.title)) + 24)
    height = _TOP + (rows + means) * _HIGH + 58
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    pen.text((12, 10), heat.title, fill=_INK, font=big)
    pen.text((12, 34), "right answers, % (cases in brackets)", fill=_SOFT, font=small)
    heads = [f"{length:,}" for length in heat.lengths] + ["mean"]
    for column, text in enumerate(heads):
        pen.text((_x(column, columns) + _WIDE / 2, _TOP - 6), text, fill=_INK, font=font, anchor="mb")
    for row, text in enumerate([*heat.depths, *(["mean"] if means else [])]):
        pen.text((_LEFT - 10, _y(row, rows) + _HIGH / 2), text, fill=_INK, font=font, anchor="rm")
        values = [*heat.cells[row], heat.rows[row]] if row < rows else [*heat.columns, heat.overall]
        for column, share in enumerate(values):
            _cell(pen, _x(column, columns), _y(row, rows), share, font, small)
    foot = (_y(rows, rows) + _HIGH if means else _y(rows - 1, rows) + _HIGH) + 10
    pen.text((_LEFT + columns * _WIDE / 2, foot), "frames of the haystack", _SOFT, small, anchor="mt")
    pen.text((12, _TOP - 6), corner, fill=_SOFT, font=small, anchor="lb")
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _x(column: int, columns: int) -> int:
    """Left edge of a column; the column of means is set apart."""
    return _LEFT + column * _WIDE + (10 if column == columns else 0)


def _y(row: int, rows: int) -> int:
    """Upper edge of a row; the row of means is set apart."""
    return _TOP + row * _HIGH + (10 if row == rows else 0)


def _cell(
    pen: ImageDraw.ImageDraw,
    x: int,
    y: int,
    share: ClusteredShare,
    font: _Font,
    small: _Font,
) -> None:
    colour = _colour(share.share) if share.total else _NONE
    pen.rectangle((x + 1, y + 1, x + _WIDE - 2, y + _HIGH - 2), fill=colour)
    dark = sum(part * weight for part, weight in zip(colour, (0.299, 0.587, 0.114), strict=True)) > 118
    ink = _INK if dark else (255, 255, 255)
    value = f"{100 * share.share:.0f}" if share.total else "–"
    pen.text((x + _WIDE / 2, y + _HIGH / 2 - 1), value, fill=ink, font=font, anchor="mm")
    pen.text((x + _WIDE - 7, y + _HIGH - 5), f"({share.total})", fill=ink, font=small, anchor="rb")


def _colour(share: float) -> tuple[int, int, int]:
    low, high = (_LOW, _MIDDLE) if share < 0.5 else (_MIDDLE, _FULL)
    part = share * 2 if share < 0.5 else share * 2 - 1
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue
