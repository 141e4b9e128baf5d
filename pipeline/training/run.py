"""Training of a profile, `sightline train run`: puts together the plan, its data, the model and the loop."""

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
    """Train as the YAML file `config` describes, and return the path of the newest profile. A second call continues.

    Args:
        config: the plan.
        out: folder of checkpoints, log and curves.
        device: `cpu`, `cuda`, or None to choose.
        stop_after: stop after this many steps, with a checkpoint.
        on_start: called in the main process with the trained and frozen components, and the number of samples.
        on_step: called in the main process with the steps done, the steps in all, and the line of the log.

    Raises:
        UsageError: the plan is invalid, or `out` was begun with another plan.
        TrainingDataInvalid: a sample is invalid.
        ProfileInvalid, WeightsNotFound, WeightsInvalid: the profile or its weights cannot be loaded.
        BudgetExceeded, TrainingFailed: training runs out of memory, or the loss is not finite.
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
