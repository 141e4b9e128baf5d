"""Everything of a plot of shares is within its frame."""

from __future__ import annotations

import re

import pytest

from pipeline.figures.shares import Curve, share_plot


@pytest.mark.parametrize("curves", [1, 2, 4, 5])
@pytest.mark.parametrize("bars", [(), (0.9, 0.5, -0.1)])
def test_a_plot_fits_its_frame(curves: int, bars: tuple[float, ...]) -> None:
    """A long title, the last row of the legend, and points outside 0 to 100 %."""
    title = "micro: attention by patch, outside the 32 frames with the most of it"
    lines = [Curve(f"curve {i}", [(0, -1), (0.5, 0.5), (1.2, 2)], dashed=i > 0) for i in range(curves)]
    picture = str(share_plot(lines, title=title, x_label="x", bars=bars, bars_label="heights", level=(0.6, "level")))
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', picture)[0])
    rows = [float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)"', picture)]
    assert max(rows) < height - 4
    left, size = (float(v) for v in re.findall(r'<text x="(\d+)" y="22" font-size="([\d.]+)"', picture)[0])
    assert left + 0.6 * size * len(title) <= width - 20
    paths = re.findall(r'd="M([\d. L]+)"', picture)
    points = [float(value) for path in paths for pair in path.split("L") for value in pair.split()]
    assert all(0 <= value <= width for value in points)
    assert picture.count("<rect") == 1 + (len(bars) + 1 if bars else 0)
    assert f"curve {curves - 1}" in picture
    assert ("heights" in picture) == bool(bars)
