"""Operations and bytes of the stages of a question, computed from shapes; a multiply and an add are two operations
(FLOPs).

Bytes are a lower bound: what a stage reads and writes once if no intermediate result leaves the chip. The peaks of a
device are its maker's figures for dense bfloat16 and for memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.profiles.profile import ModelShape

__all__ = [
    "PEAKS",
    "Cost",
    "Counts",
    "Peak",
    "Tower",
    "learned_dfm",
    "linear_products",
    "merge_tokens",
    "paper_dfm",
    "peak_of",
    "prefill",
    "two_mlps",
    "vision",
]


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of one question."""

    merged: int
    """Frames that are merged into one token."""
    before: int
    """Those of them before the first keyframe."""
    keyframes: int
    """Keyframes."""
    keyframe_tokens: int
    """Tokens of a keyframe."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one stage."""

    products: int
    """FLOPs of matrix and vector products."""
    other: int
    """FLOPs of norms and of the rest of weighted sums."""
    bytes: int
    """Least bytes to move."""

    @property
    def flops(self) -> int:
        """All operations."""
        return self.products + self.other


@dataclass(frozen=True, slots=True)
class Tower:
    """Sizes of a vision tower and of what it encodes at once: a frame, or the frames of a clip."""

    tokens: int
    """Patches that attend to one another."""
    patch_values: int
    """Pixel values of a patch."""
    width: int
    """Width of a token."""
    layers: int
    """Layers that run."""
    feed_forward: int
    """Width of the feed-forward layers."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak of a device."""

    flops: float
    """FLOPs a second in dense bfloat16."""
    bandwidth: float
    """Bytes a second from device memory."""


PEAKS = {
    "H200": Peak(989e12, 4.8e12),
    "H100 PCIe": Peak(756e12, 2.0e12),
    "H100": Peak(989e12, 3.35e12),
    "A100-SXM4-80GB": Peak(312e12, 2.04e12),
    "A100-SXM4-40GB": Peak(312e12, 1.56e12),
    "L40S": Peak(362e12, 0.864e12),
    "L4": Peak(121e12, 0.3e12),
}


def peak_of(device: str) -> Peak | None:
    """Return the peak of a device by the name that its driver reports; None if it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def paper_dfm(shape: ModelShape, counts: Counts) -> Cost:
    """DFM as in the paper (ViLAMP, equations 5–10): a dot product for each patch serves R_p and T_p, another the
    weighted sum."""
    values = counts.merged * shape.patches * shape.patch_dim
    references = counts.keyframes * shape.patches * shape.patch_dim
    return Cost(
        products=4 * values,
        other=2 * values + 5 * references,
        bytes=2 * (values + references) + 4 * counts.merged * shape.patch_dim,
    )


def two_mlps(shape: ModelShape, counts: Counts, weight_bytes: int) -> Cost:
    """The projectors: MLP_k over all patches of keyframes, MLP_n over merged tokens."""
    d, w = shape.patch_dim, shape.width
    rows = counts.keyframes * shape.patches + counts.merged
    moved = 2 * (d * w + w * w) * weight_bytes + rows * (d + w) * weight_bytes
    return Cost(products=rows * 2 * (d * w + w * w), other=0, bytes=moved)


def learned_dfm(shape: ModelShape, counts: Counts, weight_bytes: int, *, stored: bool = False) -> tuple[Cost, Cost]:
    """The learned merger, with its layers folded: the stage `dfm`, and the tokens of keyframes (`projector`).

    A merged patch goes through the first layer of the projector and, unless the lengths are `stored`, through the two
    folded layers whose lengths are needed. A frame before the first keyframe goes through the second of these and the
    third in any case. A reference goes through the first, the third, and back through one folded layer.
    """
    d, w, m = shape.patch_dim, shape.width, shape.patches
    patches, before, after = counts.merged * m, counts.before * m, (counts.merged - counts.before) * m
    references = counts.keyframes * m  # at most; a keyframe that no frame follows needs none
    products = (
        2 * patches * (d * w + 2 * w)  # g, relevance, weighted sum
        + (0 if stored else 2 * (patches + after) * w * w)  # lengths
        + 4 * before * w * w
        + 2 * after * w  # similarity
        + references * 2 * (d * w + 2 * w * w + w)
        + counts.merged * 2 * w * w  # the last layer
        + 2 * (shape.query_dim * w + w * w + w)
    )
    other = (0 if stored else 2 * (patches + after) * w) + 6 * before * w + 3 * references * w
    weights = d * w + 4 * w * w + shape.query_dim * w
    moved = 2 * (patches + references) * d + weights * weight_bytes + counts.merged * w * weight_bytes
    moved += 8 * patches if stored else 0
    kept = counts.keyframes * counts.keyframe_tokens
    tokens = Cost(
        products=2 * (counts.keyframes * m * d * w + kept * w * w),
        other=8 * kept * w if counts.keyframe_tokens != m else 0,
        bytes=2 * counts.keyframes * m * d + (d * w + w * w + kept * w) * weight_bytes,
    )
    return Cost(products, other, moved), tokens


def linear_products(tower: Tower) -> int:
    """Multiply-adds of the linear layers and of the patch convolution of one pass."""
    layer = 4 * tower.width**2 + 2 * tower.width * tower.feed_forward
    return tower.tokens * (tower.layers * layer + tower.patch_values * tower.width)


def vision(tower: Tower, weight_bytes: int) -> Cost:
    """One pass of a vision tower; every token attends to every other. The weights are read once a pass."""
    attention = 2 * 2 * tower.tokens**2 * tower.width * tower.layers
    weights = linear_products(tower) // tower.tokens
    moved = tower.tokens * (tower.patch_values + tower.width)
    return Cost(products=2 * linear_products(tower) + attention, other=0, bytes=weight_bytes * (weights + moved))


def merge_tokens(tokens: int, kept: int, width: int, head_width: int) -> Cost:
    """ToMe from `tokens` to `kept` tokens (arXiv 2210.09461, as VideoChat-Flash repeats it): in each round even tokens
    are compared with odd ones by heads of `head_width` averaged, and at most half of all tokens merge."""
    products = other = 0
    left = tokens
    while left > kept:
        products += 2 * head_width * ((left + 1) // 2) * (left // 2)
        other += 2 * left * width + 3 * left * head_width
        left -= min(left // 2, left - kept)
    return Cost(products, other, bytes=2 * (tokens + kept) * width)


def prefill(
    shape: ModelShape, tokens: int | Sequence[int], piece: int, weight_bytes: int, *, attended: Sequence[int] = ()
) -> Cost:
    """The language model over a prompt in pieces of `piece` tokens, and its head once; attention is causal.

    Each piece reads all weights once, and the keys and values of all tokens before it once.

    Args:
        shape: sizes of the model.
        tokens: tokens of the prompt, or what each layer reads of them.
        piece: tokens of a piece.
        weight_bytes: bytes of a number.
        attended: numbers of layers, from 1, after which tokens are dropped by attention: the keys of the next layer
            and one row of its attention are computed once more.
    """
    w, hidden = shape.width, shape.feed_forward
    narrow = w // shape.heads * shape.kv_heads
    layer = 2 * w * w + 2 * w * narrow + 3 * w * hidden
    head = w * shape.vocabulary
    lengths = [tokens] * shape.layers if isinstance(tokens, int) else list(tokens)
    products, moved = 2 * head, head + 2 * lengths[0] * w
    for length in lengths:
        pieces = [min(piece, length - first) for first in range(0, length, piece)]
        seen = sum(sum(pieces[: i + 1]) for i in range(len(pieces)))
        products += 2 * length * layer + 2 * 2 * w * length * (length + 1) // 2
        moved += len(pieces) * layer + 2 * seen * narrow
    for end in attended:
        read = lengths[end - 1]
        products += 2 * read * w * narrow + 2 * w * w + 2 * read * w
        moved += read * w + w * (narrow + w)
    for before, after in pairwise(lengths):
        moved += 2 * (before + after) * w if before != after else 0  # hidden states between groups of layers
    return Cost(products=products, other=0, bytes=weight_bytes * moved)
