"""Contact sheet: pictures with captions in a grid, as one JPEG.

The sheet has at most `MAX_PIXELS`: with more pictures the cells become smaller, down to `LEAST_CELL` pixels, and a
sheet for still more pictures shows the first ones and says how many it leaves out. The font is the one that Pillow
ships; a letter that it lacks is written as its code point, `\\u524d`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice

from PIL import Image, ImageDraw, ImageFont

from index.errors import UsageError
from pipeline.pictures.scaling import open_jpeg, to_jpeg

__all__ = ["MAX_PIXELS", "Captioned", "contact_sheet", "drawable"]

MAX_PIXELS = 24_000_000
"""The largest width × height of a sheet."""
LEAST_CELL, MOST_CELL = 96, 320
"""The smallest and the largest width of a cell, in pixels."""
MAX_COLUMNS = 100
"""The largest number of columns."""
_GAP, _LINES = 8, 2
_PAGE, _INK, _SOFT, _DARK = (248, 250, 252), (15, 23, 42), (71, 85, 105), (15, 23, 42)
_LONGEST = 400  # characters of a caption that are looked at


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture and what is written below it."""

    jpeg: bytes
    """The picture."""
    caption: str
    """First line, such as stream and time."""
    detail: str = ""
    """Second line, such as the score."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The sizes of a sheet, in pixels."""

    columns: int
    """Cells of a row."""
    cell: int
    """Width of a cell."""
    shown: int
    """Number of pictures on the sheet."""
    head: int
    """Height of the title."""

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return max(11, self.cell // 20 + 4)

    @property
    def picture(self) -> int:
        """Height of a picture."""
        return self.cell * 3 // 4

    @property
    def row(self) -> int:
        """Height of a row with its gap."""
        return self.picture + _LINES * self.line + _GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        rows = math.ceil(self.shown / self.columns)
        return self.columns * (self.cell + _GAP) + _GAP, self.head + rows * self.row + _GAP


def contact_sheet(
    pictures: Sequence[Captioned], *, columns: int | None = None, title: str = "", note: str = ""
) -> bytes:
    """A contact sheet of any number of pictures, JPEG.

    Args:
        pictures: the pictures, in the order of the cells, row by row.
        columns: cells of a row, 1 to `MAX_COLUMNS`; None for a sheet of about 4:3.
        title: written at the top, if there is one.
        note: a smaller line below the title.

    Raises:
        UsageError: there is no picture, or the number of columns is invalid.
    """
    if not pictures:
        raise UsageError("a contact sheet needs at least one picture; nothing was found")
    if columns is not None and not 1 <= columns <= MAX_COLUMNS:
        raise UsageError(f"a contact sheet has 1 to {MAX_COLUMNS} columns, not {columns}")
    layout = _layout(len(pictures), columns, head=64 if title or note else 0)
    left_out = len(pictures) - layout.shown
    if left_out:
        note = f"{note}  {left_out:,} of {len(pictures):,} pictures do not fit on this sheet".strip()
    sheet = Image.new("RGB", layout.size, _PAGE)
    draw = ImageDraw.Draw(sheet)
    room = layout.size[0] - 2 * _GAP
    if layout.head:
        draw.text((_GAP, _GAP), fitted(title, 22, room), _INK, font=_font(22))
        draw.text((_GAP, _GAP + 30), fitted(note, 14, room), _SOFT, font=_font(14))
    for number, picture in enumerate(islice(pictures, layout.shown)):
        x = _GAP + number % layout.columns * (layout.cell + _GAP)
        y = layout.head + _GAP + number // layout.columns * layout.row
        _paste(sheet, draw, picture, x, y, layout)
    return to_jpeg(sheet, quality=85)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Captioned, x: int, y: int, layout: _Layout) -> None:
    image = open_jpeg(picture.jpeg, layout.cell, layout.picture)
    draw.rectangle((x, y, x + layout.cell - 1, y + layout.picture - 1), fill=_DARK)
    sheet.paste(image, (x + (layout.cell - image.width) // 2, y + (layout.picture - image.height) // 2))
    size = layout.line - 3
    for number, (text, colour) in enumerate(((picture.caption, _INK), (picture.detail, _SOFT))):
        at = (x, y + layout.picture + 1 + number * layout.line)
        draw.text(at, fitted(text, size, layout.cell), colour, font=_font(size))


def _layout(count: int, columns: int | None, head: int) -> _Layout:
    """The largest cells with which all pictures fit; the smallest ones and fewer pictures if none do."""
    for layout in _layouts(count, columns, head):
        width, height = layout.size
        if width * height <= MAX_PIXELS and max(width, height) < 65_000:  # the largest side of a JPEG is 65,535
            return layout
    rows = 1
    chosen = columns or math.isqrt(MAX_PIXELS) // (LEAST_CELL + _GAP)
    while True:
        layout = _Layout(chosen, LEAST_CELL, chosen * (rows + 1), head)
        width, height = layout.size
        if width * height > MAX_PIXELS or height >= 65_000:
            return _Layout(chosen, LEAST_CELL, min(count, chosen * rows), head)
        rows += 1


def _layouts(count: int, columns: int | None, head: int) -> Iterator[_Layout]:
    """Layouts with ever smaller cells, the largest first."""
    cell = MOST_CELL
    while cell >= LEAST_CELL:
        chosen = columns or min(max(1, round(math.sqrt(count * 1.35))), count, MAX_COLUMNS)
        yield _Layout(chosen, cell, count, head)
        cell = cell * 7 // 8


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(4096)
def _has(letter: str) -> bool:
    """Whether the font has a letter: its picture differs from that of a code point that no font has."""
    return letter == " " or bytes(_font(16).getmask(letter)) != bytes(_font(16).getmask("\uffff"))


def drawable(text: str) -> str:
    """`text` with every letter that the font lacks as its code point."""
    return "".join(
        letter if letter.isprintable() and _has(letter) else f"\\u{ord(letter):04x}" for letter in text[:_LONGEST]
    )


def fitted(text: str, size: int, width: int) -> str:
    """`text` as the font can write it, shortened with an ellipsis to `width` pixels."""
    shown, font = drawable(text), _font(size)
    if font.getlength(shown) <= width:
        return shown
    while shown and font.getlength(shown + "…") > width:
        shown = shown[: min(len(shown) - 1, math.ceil(len(shown) * width / font.getlength(shown + "…")))]
    return shown + "…"
