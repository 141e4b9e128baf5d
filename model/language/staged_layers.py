"""The layers of a Qwen2 in groups, with fewer visual tokens in each group than in the one before.

    embeddings [T, width] ─ layers of group 0 ─ drop ─ layers of group 1 ─ drop ─ … ─▶ the last token, normed

A group reads the whole prompt, in pieces, before the next group begins: what the last token attends to is known only
then. Behind a stage the tokens that remain are counted afresh from 0, so a token's position is the length of its own
layer's cache, in prefill and in what follows. Nothing is evicted from the cache: earlier layers keep all their tokens.
No attention matrix is made: kernels compute attention, and the stage adds one row of it. Does not know which tokens a
stage keeps (`model.hico.dropping`), nor how tokens are picked or scored.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from index.errors import UsageError, WeightsInvalid
from model.hico.dropping import evenly_spaced, most_attended, remaining_rows
from model.profiles.profile import DroppingSpec

__all__ = ["StagedLayers"]


class StagedLayers:
    """The layers of a `Qwen2ForCausalLM`, run group by group.

    Args:
        model: the Qwen2ForCausalLM.
        spec: layers, ratios and kind of the stages.

    Raises:
        WeightsInvalid: a stage is not followed by a layer, or layers attend to a window only.
    """

    def __init__(self, model: Any, spec: DroppingSpec) -> None:
        self._layers, self._inner, self._spec = model.model.layers, model.model, spec
        count = len(self._layers)
        if spec.layers[-1] >= count:
            raise WeightsInvalid(
                f"language model: dropping after layer {spec.layers[-1]} needs a layer behind it, the model has "
                f"{count}; change dropping.layers"
            )
        if self._inner.has_sliding_layers:
            raise WeightsInvalid("language model: dropping needs layers without a sliding window; remove dropping")
        self._groups = [range(*ends) for ends in pairwise((0, *spec.layers, count))]

    def lengths(self, tokens: int, visual_tokens: int) -> list[int]:
        """Tokens that each layer reads of a prompt of `tokens`, of which `visual_tokens` are visual."""
        return self._spec.lengths(len(self._layers), tokens, visual_tokens)

    def prefill(
        self, embeddings: Tensor, visual: Tensor, cache: Any, *, piece: int, before_pass: Callable[[], object]
    ) -> Tensor:
        """Read a prompt, [T, width]; returns the last token after the last layer and its norm, [1, width].

        Besides the cache, a copy of the prompt's hidden states is held, and while tokens are dropped those that remain.

        Args:
            embeddings: the prompt.
            visual: bool[T], True for visual tokens.
            cache: an empty cache with room for `lengths` in every layer.
            piece: most tokens that pass through the layers together.
            before_pass: called before every piece; an error that it raises ends the prefill.

        Raises:
            UsageError: the last token is visual.
        """
        if bool(visual[-1]):
            raise UsageError("the last token of a prompt must be text: visual tokens are chosen by its attention")
        counts = self._spec.kept(int(visual.sum()))
        rows, out, hidden = embeddings, torch.empty_like(embeddings), embeddings[:0]
        for stage, group in enumerate(self._groups):
            for first in range(0, len(rows), piece):
                before_pass()
                part = rows[first : first + piece]
                hidden = self._run(group, part, cache, first + _steps(len(part), rows), _causal(part, first))
                if stage + 1 < len(self._groups):
                    out[first : first + piece] = hidden
            if stage + 1 < len(self._groups):
                chosen = self._choose(stage, out, visual, counts, piece)
                kept = remaining_rows(visual, chosen)
                rows = out = out[kept]
                visual = visual[kept]
        last: Tensor = self._inner.norm(hidden[-1:])
        return last

    def extend(self, embeddings: Tensor, cache: Any, *, offset: Tensor, visible: Tensor | None = None) -> Tensor:
        """Pass tokens behind a prompt, [n, width], through all layers; returns them after the norm, [n, width].

        Args:
            embeddings: the tokens.
            cache: the prompt's cache after `prefill`.
            offset: int64[n], positions behind what the cache holds.
            visible: bool[n, n], True where a token may attend to another; None for a single token.
        """
        hidden = embeddings
        for group in self._groups:
            past = int(cache.get_seq_length(group.start))
            mask = None if visible is None else torch.cat([visible.new_ones(len(hidden), past), visible], dim=1)
            hidden = self._run(group, hidden, cache, past + offset, mask)
        result: Tensor = self._inner.norm(hidden)
        return result

    def _run(self, group: range, hidden: Tensor, cache: Any, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Pass tokens [n, width] through a group of layers behind what its cache holds; `mask` is bool[n, past + n]."""
        batch, position_ids = hidden.unsqueeze(0), positions.unsqueeze(0)
        rotary = self._inner.rotary_emb(batch, position_ids)
        for layer in self._layers[group.start : group.stop]:
            batch = layer(
                batch,
                attention_mask=None if mask is None else mask[None, None],
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
        return batch[0]

    def _choose(self, stage: int, hidden: Tensor, visual: Tensor, counts: list[int], piece: int) -> Tensor:
        """The visual tokens that stage `stage` keeps, counted among visual tokens, int64[k], ascending."""
        if self._spec.spaces_evenly(stage):
            return evenly_spaced(counts[stage], counts[stage + 1], hidden.device)
        layer = self._layers[self._spec.layers[stage]]
        return most_attended(self._attention(layer, hidden, piece)[visual], counts[stage + 1])

    def _attention(self, layer: Any, hidden: Tensor, piece: int) -> Tensor:
        """What the last token attends to in `layer`, the mean over heads of softmax(q·k), float[T].

        Queries and keys are those that the layer itself computes from the hidden states [T, width] of the layer before,
        at the positions before the stage; products and softmax are at least float32.
        """
        attention, positions = layer.self_attn, _steps(len(hidden), hidden)

        def turned(project: Any, rows: Tensor, at: Tensor) -> Tensor:
            """Queries or keys of rows at their positions, [heads, n, head_dim]."""
            split = project(layer.input_layernorm(rows)).view(1, len(rows), -1, attention.head_dim).transpose(1, 2)
            cos, sin = self._inner.rotary_emb(rows.unsqueeze(0), at.unsqueeze(0))
            result: Tensor = apply_rotary_pos_emb(split, split, cos, sin)[0][0]
            return result.to(torch.promote_types(result.dtype, torch.float32))

        query = turned(attention.q_proj, hidden[-1:], positions[-1:])
        query = query.view(-1, attention.num_key_value_groups, attention.head_dim)  # by heads of keys
        logits = [
            query @ turned(attention.k_proj, part, at).transpose(1, 2)
            for part, at in zip(torch.split(hidden, piece), torch.split(positions, piece), strict=True)
        ]
        weights = torch.softmax(torch.cat(logits, dim=-1) * attention.scaling, dim=-1)
        return weights.flatten(0, 1).mean(dim=0)


def _steps(count: int, like: Tensor) -> Tensor:
    """0 to `count` - 1 on the device of `like`, int64."""
    return torch.arange(count, device=like.device)


def _causal(part: Tensor, past: int) -> Tensor | None:
    """The causal mask of the rows of `part` behind `past` others, bool[n, past + n].

    None where the kernel needs none: it masks the first piece by itself, and one row attends to all.
    """
    if past == 0 or len(part) == 1:
        return None
    return torch.ones(len(part), past + len(part), dtype=torch.bool, device=part.device).tril(past)
