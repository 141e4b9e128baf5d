"""Loss curves as an SVG picture, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

__all__ = ["draw_loss_curves"]

_PANEL_INCHES = (4.0, 2.8)


def draw_loss_curves(
    history: Mapping[str, Sequence[Mapping[str, float]]], panels: Mapping[str, tuple[str, Sequence[str]]]
) -> bytes:
    """Draw one panel for each entry of `panels`, side by side, one line for each figure. The same input gives the same
    bytes.

    Args:
        history: rows of each run, each with `step` and some figures.
        panels: title → the name of a run in `history` and the figures to draw; no figures for all of the last row.

    Returns:
        The SVG document; titles and names are text in it.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sightline", "font.size": 8}):
        width, height = _PANEL_INCHES
        figure = Figure(figsize=(width * len(panels), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, (run, chosen)) in zip(axes, panels.items(), strict=True):
            rows = history[run]
            for name in chosen or [key for key in (rows[-1] if rows else ()) if key != "step"]:
                points = [(row["step"], row[name]) for row in rows if name in row]
                if points:
                    axis.plot(*zip(*points, strict=True), linewidth=1, label=f"{name} {points[-1][1]:.3g}")
            axis.set(title=title, xlabel="step")
            axis.set_ylim(bottom=0)
            if axis.lines:
                axis.legend(frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
