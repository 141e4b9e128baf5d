"""Merging of a clip's tokens: ToMe as VideoChat-Flash applies it between clip encoder and connector.

The tokens of a clip are merged pairwise until C remain. Each step splits them by their places into A (even) and B
(odd). Each token of A proposes its most similar token of B; the r best proposals are merged, r being half of the tokens
or what is one too many. A token carries its size, the number of tokens it was merged from, and merging is the mean
weighted by size. Nothing is learned. Knows tokens, no frames and no encoders.

Source: VideoChat-Flash (2501.00574), clip-level compression; token merging: Bolya et al. 2023 (2210.09461). Unlike
there, all steps come after the encoder, and similarity is that of the tokens themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from index.errors import UsageError

__all__ = ["merge_carrying", "merge_steps", "merge_tokens"]

_GRID = 2.0**20
"""Similarities are rounded to multiples of 1/_GRID: far below what distinguishes pictures, far above the error of a
sum, so that equal tokens tie wherever they are."""


def merge_steps(count: int, target: int) -> list[int]:
    """Numbers of tokens after each step, from `count` tokens to `target`: 784 to 64 is [392, 196, 98, 64].

    Raises:
        UsageError: `target` is below 1 or above `count`.
    """
    if not 1 <= target <= count:
        raise UsageError(f"{count} tokens cannot be merged to {target}; the target is between 1 and {count}")
    steps = []
    while count > target:
        count -= min(count // 2, count - target)
        steps.append(count)
    return steps


def merge_tokens(tokens: Tensor, target: int, *, head_width: int = 64) -> Tensor:
    """Merge the p tokens of each of n clips to `target` tokens.

    Similarity is the cosine between tokens whose features are split into heads of `head_width` and averaged over the
    heads. It is computed in float64 and rounded to 2⁻²⁰. Equal similarities are decided by place: of two tokens of B
    the earlier, of two proposals the one of the earlier token of A. The result therefore depends neither on the batch
    nor on the device, as far as the features do not.

    Args:
        tokens: features, [n, p, D], finite.
        target: number of tokens to keep, 1…p.
        head_width: width of a head, a divisor of D.

    Returns:
        Merged features, [n, target, D] in the dtype of `tokens`. After each step the tokens of A that were not merged
        come first, by descending similarity of their proposal, then all of B.

    Raises:
        UsageError: `tokens` is not [n, p, D], `target` is not in 1…p, or `head_width` does not divide D.
    """
    return merge_carrying(tokens, tokens[..., :0], target, head_width=head_width)[0]


def merge_carrying(tokens: Tensor, carried: Tensor, target: int, *, head_width: int = 64) -> tuple[Tensor, Tensor]:
    """Merge tokens as `merge_tokens`, and further columns with them that have no part in the similarity.

    Args:
        tokens: features, [n, p, D], finite.
        carried: other numbers of the same tokens, [n, p, L], such as labels of what each shows.
        target: number of tokens to keep, 1…p.
        head_width: width of a head, a divisor of D.

    Returns:
        Merged features, [n, target, D], and the means of `carried` over the tokens that each was merged from,
        [n, target, L].

    Raises:
        UsageError: see `merge_tokens`.
    """
    if tokens.ndim != 3 or tokens.shape[-1] % head_width:
        raise UsageError(
            f"tokens are [n, p, D] with D a multiple of head_width = {head_width}, got {list(tokens.shape)}"
        )
    width = tokens.shape[-1]
    merged = torch.cat([tokens.double(), carried.double()], dim=-1)
    sizes = torch.ones_like(merged[..., :1])
    for count in merge_steps(tokens.shape[1], target):
        merged, sizes = _step(merged, sizes, width, merged.shape[1] - count, head_width)
    return merged[..., :width].to(tokens.dtype), merged[..., width:].to(carried.dtype)


def _step(tokens: Tensor, sizes: Tensor, width: int, merges: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Merge the `merges` best pairs of tokens [n, p, ≥ D] with sizes [n, p, 1]; the tokens and sizes after it.

    Similarity is that of the first D = `width` columns.
    """
    order, proposed = _proposals(tokens[..., :width].detach(), head_width)
    merging, kept = order[:, :merges, None], order[:, merges:, None]
    into = proposed[:, :, None].gather(1, merging)

    def merged(values: Tensor) -> Tensor:
        """Values [n, p, D] of the tokens after the step, summed where tokens are merged."""
        width = values.shape[-1]
        even, odd = values[:, ::2], values[:, 1::2]
        sources = even.gather(1, merging.expand(-1, -1, width))
        together = odd.scatter_add(1, into.expand(-1, -1, width), sources)
        return torch.cat([even.gather(1, kept.expand(-1, -1, width)), together], dim=1)

    new_sizes = merged(sizes)
    return merged(tokens * sizes) / new_sizes, new_sizes


def _proposals(tokens: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Of the a even tokens of [n, p, D]: their order by descending similarity of their proposal, and the odd token
    that each proposes; both int64[n, a]."""
    heads = tokens.reshape(*tokens.shape[:2], -1, head_width).mean(dim=-2)
    unit = functional.normalize(heads, dim=-1)
    similarity = (unit[:, ::2] @ unit[:, 1::2].mT).mul_(_GRID).round_()
    best = similarity.amax(dim=-1)
    proposed = (similarity == best[..., None]).to(torch.uint8).argmax(dim=-1)  # the first of equal ones
    return best.argsort(dim=-1, descending=True, stable=True), proposed
