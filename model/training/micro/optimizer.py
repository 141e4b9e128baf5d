"""The optimiser of `micro`'s trainings: AdamW's parameter groups, and a checkpoint to resume from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW

from index.files import write_atomically

__all__ = ["load_checkpoint", "make_optimizer", "save_checkpoint", "set_rate"]

_WEIGHT_DECAY = 0.05


def make_optimizer(model: nn.Module, rate: float) -> AdamW:
    """AdamW over all parameters of `model`, with weight decay for matrices and none for vectors."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def set_rate(optimizer: AdamW, rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_checkpoint(path: Path, model: nn.Module, optimizer: AdamW, step: int, history: list[dict[str, float]]) -> None:
    """Replace the checkpoint at `path` by the state after `step` steps, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "history": history}
    write_atomically(path, lambda file: torch.save(state, file), parents=True)


def load_checkpoint(path: Path, model: nn.Module, optimizer: AdamW) -> tuple[int, list[dict[str, float]]]:
    """Load the checkpoint at `path`, if there is one, into `model` and `optimizer`.

    Returns:
        Steps done and the history of figures; 0 and an empty list without a checkpoint.
    """
    if not path.exists():
        return 0, []
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["history"]
