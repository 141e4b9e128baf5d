"""Operations of a question by the way in which frames that are not keyframes become tokens.

Counted from sizes, as the rest of this package. Does not know devices or seconds.
"""

from __future__ import annotations

from model.profiles.profile import ModelShape
from model.visual.qformer import QFormer
from pipeline.bench.cost import Counts, paper_dfm, prefill, two_mlps

__all__ = ["merging_flops", "question_flops"]

_PIECE, _SIZE = 2048, 2


def merging_flops(shape: ModelShape, merging: str, counts: Counts) -> int:
    """Operations between patches and the input of MLP_n.

    Args:
        shape: sizes of the profile.
        merging: `dfm`, `mean`, `q-former`, `single token` or `none`.
        counts: keyframes and other frames.

    Raises:
        ValueError: there is no such merging.
    """
    values = counts.merged * shape.patches * shape.patch_dim
    match merging:
        case "dfm":
            return paper_dfm(shape, counts).flops
        case "mean":
            return values
        case "q-former":
            return 2 * counts.merged * QFormer.products(shape.patch_dim, shape.patches)
        case "single token" | "none":
            return 0
    raise ValueError(f"no merging {merging!r}")


def question_flops(shape: ModelShape, merging: str, keyframes: int, others: int, prompt_tokens: int) -> int:
    """Operations of merging, projectors and prefill of one question.

    Args:
        shape: sizes of the profile.
        merging: see `merging_flops`.
        keyframes: keyframes, each with all its patches.
        others: other frames that are read; 0 for `none`.
        prompt_tokens: tokens of the whole prompt.
    """
    counts = Counts(merged=others, before=0, keyframes=keyframes, keyframe_tokens=shape.patches)
    projected = two_mlps(shape, counts, _SIZE).flops
    if merging == "single token":  # its projector begins at the frame encoder's vector
        projected += 2 * others * (shape.query_dim - shape.patch_dim) * shape.width
    return merging_flops(shape, merging, counts) + projected + prefill(shape, prompt_tokens, _PIECE, _SIZE).flops
