"""The heat map of needles: accuracy by length and depth, with counts, means of rows and columns, and a picture.

Intervals are clustered by question, because a question is asked in several haystacks. Does not know how answers come
about.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.needles.cases import BINS, Case, depth_bin
from pipeline.evaluation.needles.record import AnswerLine
from pipeline.evaluation.scoring.intervals import ClusteredShare, clustered_share

__all__ = ["HeatMap", "heat_map", "heat_picture"]


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


def heat_map(cases: Sequence[Case], lines: Sequence[AnswerLine], title: str) -> HeatMap:
    """The heat map of some cases with their answers, one line a case, in the same order."""
    bins = [depth_bin(case.depth) for case in cases]
    lengths = sorted({case.length for case in cases})

    def mean(keep: Callable[[int], bool]) -> ClusteredShare:
        """Share of right answers of some cases."""
        rows = [n for n in range(len(cases)) if keep(n)]
        return clustered_share([lines[n].right for n in rows], [cases[n].needle.id for n in rows])

    def cell(row: int, length: int) -> ClusteredShare:
        """One cell."""
        return mean(lambda n: bins[n] == row and cases[n].length == length)

    return HeatMap(
        title=title,
        lengths=lengths,
        depths=[f"{100 * row // BINS} to {100 * (row + 1) // BINS} %" for row in range(BINS)],
        cells=[[cell(row, length) for length in lengths] for row in range(BINS)],
        rows=[mean(_equal(bins, row)) for row in range(BINS)],
        columns=[mean(_equal([case.length for case in cases], length)) for length in lengths],
        overall=mean(lambda n: True),
    )


def _equal(values: Sequence[int], value: int) -> Callable[[int], bool]:
    return lambda number: values[number] == value


_LEFT, _TOP, _WIDE, _HIGH = 130, 78, 104, 42
_LOW, _MIDDLE, _FULL = (196, 60, 57), (247, 226, 150), (46, 125, 80)
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_INK, _SOFT, _NONE = (28, 28, 34), (110, 110, 120), (236, 236, 238)


def heat_picture(heat: HeatMap) -> bytes:
    """The heat map as a PNG. The scale goes from 0 to 100 %, and each cell has its percentage and count."""
    columns, rows = len(heat.lengths), len(heat.depths)
    width, height = _LEFT + (columns + 1) * _WIDE + 24, _TOP + (rows + 1) * _HIGH + 58
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    big, font, small = (ImageFont.load_default(size) for size in (17, 15, 11))
    pen.text((12, 10), heat.title, fill=_INK, font=big)
    pen.text((12, 34), "right answers, % (cases in brackets)", fill=_SOFT, font=small)
    heads = [f"{length:,}" for length in heat.lengths] + ["mean"]
    for column, text in enumerate(heads):
        pen.text((_x(column, columns) + _WIDE / 2, _TOP - 6), text, fill=_INK, font=font, anchor="mb")
    for row, text in enumerate([*heat.depths, "mean"]):
        pen.text((_LEFT - 10, _y(row, rows) + _HIGH / 2), text, fill=_INK, font=font, anchor="rm")
        values = [*heat.cells[row], heat.rows[row]] if row < rows else [*heat.columns, heat.overall]
        for column, share in enumerate(values):
            _cell(pen, _x(column, columns), _y(row, rows), share, font, small)
    foot = _y(rows, rows) + _HIGH + 10
    pen.text((_LEFT + columns * _WIDE / 2, foot), "frames of the haystack, needle included", _SOFT, small, anchor="mt")
    pen.text((12, _TOP - 6), "depth", fill=_SOFT, font=small, anchor="lb")
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
    dark = sum(part * weight for part, weight in zip(colour, (0.299, 0.587, 0.114), strict=True)) > 140
    ink = _INK if dark else (255, 255, 255)
    value = f"{100 * share.share:.0f}" if share.total else "–"
    pen.text((x + _WIDE / 2, y + _HIGH / 2 - 1), value, fill=ink, font=font, anchor="mm")
    pen.text((x + _WIDE - 7, y + _HIGH - 5), f"({share.total})", fill=ink, font=small, anchor="rb")


def _colour(share: float) -> tuple[int, int, int]:
    low, high = (_LOW, _MIDDLE) if share < 0.5 else (_MIDDLE, _FULL)
    part = share * 2 if share < 0.5 else share * 2 - 1
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue
