"""`sightline train run`: a plan, its data, the model and the loop put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from index.errors import UsageError
from model.encoders.encoder import pick_device
from model.profiles.profile import load_profile
from model.training.components import ComponentCount
from model.training.loop import forget_accelerator, make_accelerator, train
from model.training.trainable import load_trainable
from pipeline.training.data import Conversations, load_plan
from pipeline.training.footage import SampleReader

__all__ = ["run_training"]


def run_training(
    config: Path,
    out: Path,
    *,
    device: str | None = None,
    stop_after: int | None = None,
    on_start: Callable[[list[ComponentCount], int], None] = lambda *_: None,
    on_step: Callable[[int, int, dict[str, Any]], None] = lambda *_: None,
) -> Path:
    """Train as the YAML file `config` says; the path of the newest profile, in `out`. Running again goes on.

    Args:
        on_start: called in the main process with what is trained and what is not, and the number of samples.
        on_step: likewise, with steps done, steps in all, and the line of the log.

    Raises:
        UsageError: a plan that cannot be, or another one than `out` was begun with.
        TrainingDataInvalid: a sample that cannot be used.
        ProfileInvalid, WeightsNotFound, WeightsInvalid: what training begins with.
        BudgetExceeded, TrainingFailed: while it runs.
    """
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"--stop-after must be at least 1, got {stop_after}")
    plan = load_plan(config)
    profile = load_profile(plan.profile)
    conversations = Conversations(plan)
    accelerator = make_accelerator(plan, pick_device(device))
    trainee = load_trainable(profile, plan, accelerator.device)
    main = accelerator.is_main_process
    if main:
        on_start([*trainee.counts, *trainee.frozen_outside()], len(conversations))
    try:
        newest = train(
            trainee,
            SampleReader(conversations, plan, trainee),
            plan,
            out,
            accelerator,
            samples=len(conversations),
            data=conversations.digest,
            stop_after=stop_after,
            on_step=on_step if main else lambda *_: None,
        )
    finally:
        accelerator.end_training()
        forget_accelerator()
    return newest / "model" / "profile.toml"
