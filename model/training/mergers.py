"""Training of a merger and its MLP_n alone, by equation 12, with everything else frozen.

    patches ─ merger ─ MLP_n ─▶ tokens of other frames ─┐
    patches of keyframes ─ MLP_k (frozen) ──────────────┴─ language model (frozen) ─▶ −log P(answer)

Mergers of an ablation start from the profile's weights and get the same examples in the same order, so that they differ
in the merger alone. Does not know stores, footage or how keyframes are selected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.language.transformers_engine import TransformersLanguage
from model.visual.interface import Frames, Visual
from model.visual.prompt import clock_ids

__all__ = ["MergerExample", "MergerTraining", "answer_loss", "train_merger"]


@dataclass(frozen=True, slots=True)
class MergerExample:
    """A question about frames, and its answer."""

    frames: Frames
    """The frames."""
    question: str
    """The text that patches are compared with."""
    prefix: list[int]
    """Token ids before the frames."""
    suffix: list[int]
    """Token ids between the frames and the answer."""
    answer: list[int]
    """Token ids of the answer, the end of the turn included."""


@dataclass(slots=True)
class MergerTraining:
    """Settings of a training, and its losses."""

    steps: int = 40
    """Optimiser steps."""
    batch: int = 4
    """Examples of a step."""
    rate: float = 5e-4
    """Learning rate of AdamW; it falls linearly to 0."""
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step."""


def answer_loss(visual: Visual, language: TransformersLanguage, example: MergerExample, *, timestamps: bool) -> Tensor:
    """−log P(answer | frames, question), mean over the answer's tokens; a scalar with gradients for the visual's
    weights."""
    embed: Any = language.model.get_input_embeddings()

    def ids(tokens: Sequence[int]) -> Tensor:
        """Token ids on the device."""
        return torch.tensor(list(tokens), dtype=torch.long, device=language.device)

    def embed_time(at: int) -> Tensor:
        """Embeddings of a capture time, [n, width]."""
        rows: Tensor = embed(ids(clock_ids(language.tokenizer, at)))
        return rows

    query = visual.query(example.question).to(language.device)
    parts = visual.embeddings(example.frames, query, embed_time if timestamps else None)
    head = [embed(ids(example.prefix)), *(part.embeddings.to(language.device, language.dtype) for part in parts)]
    tail = embed(ids([*example.suffix, *example.answer[:-1]]))
    inputs = torch.cat([*head, tail]).unsqueeze(0)
    hidden = language.model.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
    logits = language.model.lm_head(hidden[-len(example.answer) :]).float()
    return functional.cross_entropy(logits, ids(example.answer))


def train_merger(
    visual: Visual,
    language: TransformersLanguage,
    weights: nn.Module,
    draw: Callable[[int], MergerExample],
    run: MergerTraining,
    *,
    timestamps: bool,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `weights`, which `visual` uses, and leave them in evaluation mode.

    Args:
        visual: makes tokens with the weights.
        language: frozen; its weights get no gradients.
        weights: the module to train.
        draw: the example of a number; the same number gives the same example.
        run: settings; its losses are filled.
        timestamps: write capture times before keyframes.
        autocast: context of the loss.
        on_step: called with the steps done and the loss.
    """
    weights.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(weights.parameters(), lr=run.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / run.steps)
    for step in range(run.steps):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number in range(run.batch):
            with autocast():
                loss = answer_loss(visual, language, draw(step * run.batch + number), timestamps=timestamps)
            torch.autograd.backward(loss / run.batch)
            total += loss.item() / run.batch
        nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        run.losses.append(total)
        on_step(step + 1, total)
    weights.requires_grad_(False).eval()
