"""The figures of one question's attention, after figures 3 and 4 of the ViLAMP paper, and their means.

Curves are averaged over the questions of a video first and then over videos. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.evaluation.studies.curves import (
    Floats,
    by_rank,
    cumulative,
    in_rank,
    neighbour_similarity,
    on_grid,
    random_similarity,
    share_needed,
    slope,
)
from pipeline.evaluation.studies.looking import Look, VideoFrames

__all__ = ["Figures", "average", "figures_of"]

_PAIRS = 10_000
_KEYFRAMES = 32


class Figures(BaseModel):
    """Figures of one question, or means of several. Shares of attention are shares of what all frames get."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames_curve: list[float]
    """Share of attention that the first 0, 1, … 100 % of the frames in rank hold (figure 3, curve)."""
    frames_curve_without_first: list[float]
    """The same when the first frame, a common attention sink, is left out."""
    top_five: float
    """Share of attention on the 5 % of the frames with the most."""
    top_five_without_first: float
    """The same without the first frame."""
    frames_for_90: float
    """Share of the frames that hold 90 % of the attention."""
    first_frame: float
    """Share of attention on the first frame that is shown."""
    last_frame: float
    """Share of attention on the last frame that is shown."""
    mass: dict[str, float]
    """Share of all attention by place in the prompt, mean over layers; sums to 1."""
    mass_by_layer: dict[str, list[float]]
    """The same by layer."""
    top_five_by_layer: list[float]
    """`top_five` of each layer by itself."""
    similarity: list[float]
    """Mean cosine of a frame with its three neighbours in rank, by tenths of the rank, of the patch encoder's mean
    patches (figure 3, bars)."""
    similarity_top_five: float
    """The same for the first 5 % of the frames."""
    similarity_random: float
    """Mean cosine of random pairs of frames (figure 3, dashed)."""
    clip_similarity: list[float]
    """`similarity` of the frame encoder's vectors."""
    clip_similarity_top_five: float
    """`similarity_top_five` of the frame encoder's vectors."""
    clip_similarity_random: float
    """`similarity_random` of the frame encoder's vectors."""
    evidence: float | None
    """Share of attention on frames that show the evidence; None if no frame shows it or it is not known."""
    evidence_frames: float | None
    """Share of the frames that show the evidence: what attention without aim gives."""
    patches_curve: list[float] | None
    """Share of attention that the first 0, 1, … 100 % of the patches in rank hold, over frames that are not of the 32
    with the most attention (figure 4, curve); None for a profile whose tokens have no place in their frame."""
    patches_for_80: float | None
    """Share of these patches that hold 80 % of their attention."""
    patches_top_half: float | None
    """Share of attention on the half of these patches with the most."""
    similar_half: float | None
    """Share of attention on the half of these patches that are most similar to the keyframe's; a half if attention had
    nothing to do with similarity."""
    patch_similarity: list[float] | None
    """Mean cosine of a patch with the patch at its place in the preceding keyframe, by tenths of the rank, of tokens
    that the language model reads (figure 4, bars)."""
    patch_similarity_tower: list[float] | None
    """The same of the patch encoder's patches."""
    patch_similarity_random: float | None
    """Mean cosine of random patches of two frames (figure 4, dashed), of the tokens that the language model reads."""
    patch_slope: float | None
    """Change of that cosine from the first patch in rank to the last, by least squares."""
    patch_slope_tower: float | None
    """The same of the patch encoder's patches."""


def figures_of(
    look: Look, video: VideoFrames, evidence: NDArray[np.bool_], order: NDArray[np.int64], *, patches: bool, seed: int
) -> Figures:
    """The figures of one look.

    Args:
        look: attention to the frames in the order in which they were shown.
        video: the frames in their own order.
        evidence: whether a frame shows the evidence, bool[N], in the frames' own order.
        order: the frame at each place, int64[N].
        patches: compute the figures of patches.
        seed: of random pairs.
    """
    rng = np.random.default_rng(seed)
    attention = look.attention.sum(axis=1)
    total = attention.sum()
    ranked, curve, rest = in_rank(attention), cumulative(attention), cumulative(attention[1:])
    grid, rest_grid = on_grid(curve), on_grid(rest)
    tower, clip, shown = video.tower[order], video.clip[order], evidence[order]
    near, near_clip = neighbour_similarity(tower, ranked), neighbour_similarity(clip, ranked)
    top = max(1, round(len(attention) * 0.05))
    figures = Figures(
        frames_curve=grid.tolist(),
        frames_curve_without_first=rest_grid.tolist(),
        top_five=float(grid[5]),
        top_five_without_first=float(rest_grid[5]),
        frames_for_90=share_needed(curve, 0.9),
        first_frame=float(attention[0] / total),
        last_frame=float(attention[-1] / total),
        mass={name: float(values.mean()) for name, values in look.mass.items()},
        mass_by_layer={name: values.tolist() for name, values in look.mass.items()},
        top_five_by_layer=[float(on_grid(cumulative(layer))[5]) for layer in look.by_layer],
        similarity=by_rank(near).tolist(),
        similarity_top_five=float(near[:top].mean()),
        similarity_random=random_similarity(tower, _PAIRS, rng),
        clip_similarity=by_rank(near_clip).tolist(),
        clip_similarity_top_five=float(near_clip[:top].mean()),
        clip_similarity_random=random_similarity(clip, _PAIRS, rng),
        evidence=float(attention[shown].sum() / total) if shown.any() else None,
        evidence_frames=float(shown.mean()) if shown.any() else None,
        patches_curve=None,
        patches_for_80=None,
        patches_top_half=None,
        similar_half=None,
        patch_similarity=None,
        patch_similarity_tower=None,
        patch_similarity_random=None,
        patch_slope=None,
        patch_slope_tower=None,
    )
    if patches and len(attention) > _KEYFRAMES:
        _add_patches(figures, look, video.patches[order], ranked, rng)
    return figures


def _add_patches(
    figures: Figures, look: Look, patches: NDArray[np.float16], ranked: NDArray[np.int64], rng: np.random.Generator
) -> None:
    """Add the figures of patches: those of frames that are not among the 32 with the most attention."""
    keyframes = np.sort(ranked[:_KEYFRAMES])
    others = np.setdiff1d(np.arange(len(ranked)), keyframes)
    before = keyframes[np.maximum(0, np.searchsorted(keyframes, others) - 1)]  # the first one for frames before it
    attention = look.attention[others].ravel()
    order = in_rank(attention)
    tokens = _unit(look.tokens)
    similarity = np.einsum("nmd,nmd->nm", tokens[others], tokens[before]).ravel()
    curve = cumulative(attention)
    grid = on_grid(curve)
    figures.patches_curve, figures.patches_for_80 = grid.tolist(), share_needed(curve, 0.8)
    figures.patches_top_half = float(grid[50])
    alike = np.argsort(-similarity, kind="stable")[: len(similarity) // 2]
    figures.similar_half = float(attention[alike].sum() / attention.sum())
    figures.patch_similarity, figures.patch_slope = by_rank(similarity[order]).tolist(), slope(similarity[order])
    first = rng.integers(len(tokens), size=_PAIRS)
    second = (first + rng.integers(1, len(tokens), size=_PAIRS)) % len(tokens)
    places = rng.integers(tokens.shape[1], size=(2, _PAIRS))
    pairs = np.einsum("nd,nd->n", tokens[first, places[0]], tokens[second, places[1]])
    figures.patch_similarity_random = float(pairs.mean())
    if patches.shape[1] == tokens.shape[1]:  # the language model reads the patches one by one
        tower = _unit(patches.astype(np.float32)).astype(np.float64)
        alone = np.einsum("nmd,nmd->nm", tower[others], tower[before]).ravel()[order]
        figures.patch_similarity_tower, figures.patch_slope_tower = by_rank(alone).tolist(), slope(alone)


def average(figures: Sequence[Figures]) -> Figures:
    """Means of all figures; what is None in some is averaged over the others."""
    rows = [each.model_dump() for each in figures]
    return Figures.model_validate({name: _mean([row[name] for row in rows]) for name in rows[0]})


def _mean(values: Sequence[object]) -> object:
    given = [value for value in values if value is not None]
    if not given:
        return None
    if isinstance(given[0], dict):
        return {key: _mean([value[key] for value in given if isinstance(value, dict)]) for key in given[0]}
    return np.mean(np.array(given, np.float64), axis=0).tolist()


def _unit(vectors: NDArray[np.floating]) -> Floats:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = vectors / np.where(norms == 0, 1.0, norms)
    return unit
