"""The study of attention as pictures, Markdown and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from index.files import write_atomically
from pipeline.evaluation.studies.attention import CONDITIONS, AttentionStudy, Condition
from pipeline.evaluation.studies.figures import Figures
from pipeline.figures.shares import Curve, share_plot
from pipeline.pages import page, write_page

__all__ = ["study_pictures", "study_text", "write_study"]

_LABELS: dict[Condition, str] = {
    "as it is": "the question's tokens",
    "with options": "question and options",
    "shuffled": "frames shuffled",
    "random weights": "random weights",
}


def _grid(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(i / (len(values) - 1), value) for i, value in enumerate(values)]


def study_pictures(study: AttentionStudy) -> dict[str, Markup]:
    """The plots by name: `frames` (figure 3), `patches` (figure 4, if there is one), and `layers`."""
    plain = study.conditions["as it is"]
    title = f"{study.profile}: attention by frame, {study.questions} questions, {study.videos} videos"
    curves = [Curve(_LABELS[c], _grid(study.conditions[c].frames_curve), dashed=c != "as it is") for c in CONDITIONS]
    curves.append(Curve("without the first frame", _grid(plain.frames_curve_without_first)))
    pictures = {
        "frames": share_plot(
            curves,
            title=title,
            x_label="frames in the order of their attention",
            bars=plain.similarity,
            bars_label="similarity of neighbours in rank",
            level=(plain.similarity_random, "similarity of random frames"),
        )
    }
    if plain.patches_curve is not None and plain.patch_similarity_random is not None:
        shown = [(c, curve) for c in CONDITIONS if (curve := study.conditions[c].patches_curve) is not None]
        pictures["patches"] = share_plot(
            [Curve(_LABELS[c], _grid(curve), dashed=c != "as it is") for c, curve in shown],
            title=f"{study.profile}: attention by patch, outside the 32 frames with the most",
            x_label="patches in the order of their attention",
            bars=plain.patch_similarity or (),
            bars_label="similarity to the keyframe's patch",
            level=(plain.patch_similarity_random, "similarity of random patches"),
        )
    layers = list(plain.mass_by_layer.items())
    count = len(layers[0][1])
    every = max(1, count // 7)
    pictures["layers"] = share_plot(
        [Curve(name, [((i + 0.5) / count, value) for i, value in enumerate(values)]) for name, values in layers],
        title=f"{study.profile}: where the question's tokens attend",
        x_label="layer",
        ticks=[((i + 0.5) / count, str(i + 1)) for i in range(0, count, every)],
    )
    return pictures


def _rows(study: AttentionStudy) -> list[list[str]]:
    """The figures in words, one row a figure and one column a condition."""

    def cells(label: str, value: Callable[[Figures], float | None], name: str = "", form: str = "{:.1%}") -> list[str]:
        """A row; `name` is the figure whose interval is printed."""
        row = [label]
        for condition in CONDITIONS:
            number, interval = value(study.conditions[condition]), study.intervals[condition].get(name)
            text = "–" if number is None else form.format(number)
            if number is not None and interval is not None:
                text += f" ({form.format(interval[0])} to {form.format(interval[1])})"
            row.append(text)
        return row

    fine = "{:+.3f}"
    return [
        cells("attention on the top 5 % of the frames", lambda f: f.top_five, "top_five"),
        cells("the same without the first frame", lambda f: f.top_five_without_first, "top_five_without_first"),
        cells("frames that hold 90 %", lambda f: f.frames_for_90, "frames_for_90"),
        cells("attention on the first frame", lambda f: f.first_frame, "first_frame"),
        cells("attention on the last frame", lambda f: f.last_frame),
        cells("attention on frames with the evidence", lambda f: f.evidence, "evidence"),
        cells("share of these frames", lambda f: f.evidence_frames),
        cells("similarity of the top 5 % to neighbours in rank", lambda f: f.similarity_top_five, form="{:.3f}"),
        cells("the same, by CLIP", lambda f: f.clip_similarity_top_five, form="{:.3f}"),
        cells("similarity of random frames", lambda f: f.similarity_random, form="{:.3f}"),
        cells("the same, by CLIP", lambda f: f.clip_similarity_random, form="{:.3f}"),
        cells("patches that hold 80 %", lambda f: f.patches_for_80, "patches_for_80"),
        cells("attention on the half of patches most like the keyframe's", lambda f: f.similar_half, "similar_half"),
        cells("slope of similarity over rank", lambda f: f.patch_slope, "patch_slope", fine),
        cells("the same, of the patch encoder's patches", lambda f: f.patch_slope_tower, form=fine),
        *(
            cells(f"all attention: {name}", lambda f, name=name: f.mass[name])  # type: ignore[misc]
            for name in study.conditions["as it is"].mass
        ),
    ]


def _notes(study: AttentionStudy) -> list[str]:
    notes = [
        f"{study.questions} questions about {study.videos} videos ({study.source}), at most {study.frames} frames, "
        f"each with all {study.tokens_per_frame} tokens. Attention is the mean over the question's tokens, "
        "all layers and heads, of the softmax over the whole prompt; shares are of what frames get. Intervals are at "
        "95 %, by resampling videos.",
        f"Frames shuffled: the rank correlation with the attention in order is {study.follows_content:+.2f} by what a "
        f"frame shows and {study.follows_place:+.2f} by its place in the prompt.",
    ]
    if study.right:
        shares = ", ".join(f"{100 * value:.0f} % {name}" for name, value in study.right.items())
        notes.append(f"Right answers from all tokens of all frames: {shares}.")
    if study.conditions["as it is"].patches_curve is None:
        notes.append("Patches are left out: the tokens of this profile have no place in their frame.")
    return notes


_HEADS = ["figure", *(_LABELS[condition] for condition in CONDITIONS)]


def study_text(study: AttentionStudy) -> str:
    """The figures as Markdown."""
    lines = [f"# Attention of `{study.profile}`", ""]
    for note in _notes(study):
        lines += [note, ""]
    lines += [f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in _rows(study)), ""])


def write_study(study: AttentionStudy, out: Path) -> Path:
    """Write `study.json`, `report.md`, `report.html` and one SVG a plot into a folder; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "study.json", study.model_dump_json(indent=1) + "\n")
    write_atomically(out / "report.md", study_text(study))
    pictures = study_pictures(study)
    for name, picture in pictures.items():
        write_atomically(out / f"{name}.svg", str(picture) + "\n")
    layers = study.conditions["as it is"].top_five_by_layer
    text = (
        f"Attention on the top 5 % of the frames by layer: {', '.join(f'{100 * v:.0f} %' for v in np.array(layers))}."
    )
    section = {
        "title": "Frames and patches",
        "text": text,
        "charts": [("", each) for each in pictures.values()],
        "heads": _HEADS,
        "rows": _rows(study),
    }
    html = page("study.html.j2", title=f"Attention of {study.profile}", notes=_notes(study), sections=[section])
    return write_page(out / "report.html", html)
