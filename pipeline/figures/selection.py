"""The section about keyframes of fixed cameras."""

from __future__ import annotations

from typing import Any

from pipeline.figures.section import Results, Section, Table
from pipeline.figures.units import count, percent, seconds

__all__ = ["selectors_section"]

_NAMES = {
    ("dks", "fixed"): "DKS, fixed τ (the paper)",
    ("dks", "adaptive"): "DKS, adaptive τ",
    ("dks", "background"): "DKS, background",
    ("inverse", "background"): "inverse",
    ("segments", "background"): "segments",
    ("dpp", "background"): "DPP",
    ("top-k", "fixed"): "top-K",
    ("uniform", "fixed"): "uniform",
}


def selectors_section(results: Results) -> Section:
    """Return the section from `selectors.json`."""
    data = results["selectors"]
    rows: list[dict[str, Any]] = data["rows"]
    conditions = sorted({(row["scene"], row["day_night"]) for row in rows})
    table = Table(["selector", "K", *(f"{scene:g}{', day/night' if night else ''}" for scene, night in conditions)], [])
    found = {(row["selector"], row["redundancy"], row["k"], row["scene"], row["day_night"]): row for row in rows}
    for k in sorted({row["k"] for row in rows}):
        for (selector, redundancy), name in _NAMES.items():
            cells = [percent(found[selector, redundancy, k, *each]["any"]["share"]) for each in conditions]
            table.rows.append([name, str(k), *cells])
    most = max(row["k"] for row in rows)
    strong = max(scene for scene, _ in conditions)
    paper = found["dks", "fixed", most, strong, False]
    ours = [found["dks", "background", k, *each]["any"]["share"] for k in (8, most) for each in conditions]
    timed = {(each["selector"], each["redundancy"], each["scene"]): each["seconds"] for each in data["timings"]}
    slowest = max(value for (selector, rule, _), value in timed.items() if (selector, rule) == ("dks", "background"))
    return Section(
        finding=(
            f"With a scene that all frames share, the paper's rule stops after {paper['keyframes']:.0f} keyframe and "
            f"shows the evidence of {percent(paper['any']['share'])} of {data['questions']} questions; without the "
            f"background it is {percent(min(ours))} to {percent(max(ours))}, for K = 8 and {most}."
        ),
        table=table,
        reading=(
            "Questions with a keyframe in one of their events. The columns are the length of the scene vector that is "
            "added to each frame's unit vector: 0 is the footage as rendered, at 4 two frames have a cosine of "
            f"{found['dks', 'fixed', most, 4.0, False]['mean_cosine']:.2f} in the mean."
        ),
        limit=(
            f"Selecting from {count(data['timed_frames'])} frames of 512 dimensions without their background takes "
            f"{seconds(slowest)} on one core of the machine below."
        ),
    )
