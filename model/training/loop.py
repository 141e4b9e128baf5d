"""The training loop: AdamW, cosine schedule with warm-up, gradient accumulation, several processes, resuming.

    out/plan.json                     the plan, the data and the number of processes; a run with other ones is refused
    out/log.jsonl                     one line a step: loss, rates, gradient norm, frames, tokens, seconds
    out/training.svg                  the same as curves
    out/checkpoints/step-000500/      state/ (weights, optimiser, schedule, random numbers) and model/ (see
                                      `model.training.checkpoint`); a folder with this name is complete
    out/last                          a link to the newest checkpoint

The order of samples is a pure function of the seed, so a resumed run equals an uninterrupted one, on a CPU bit for bit.
The gradient of a step is the mean over its samples, whatever the number of processes. Does not know where samples come
from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from transformers import get_cosine_schedule_with_warmup

from index.errors import TrainingFailed, UsageError
from index.files import write_atomically
from model.training.checkpoint import save_model
from model.training.components import parameter_groups
from model.training.loss_curves import draw_loss_curves
from model.training.plan import TrainingPlan
from model.training.trainable import Sample, TrainableModel

__all__ = ["Schedule", "forget_accelerator", "make_accelerator", "train"]

_RATES = "rates.json"

Read = Callable[[Sequence[int]], Iterator[Sample]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order in which samples are read; each epoch has an order of its own."""

    samples: int
    """Number of samples."""
    accumulation: int
    """Samples that each process adds up in one step."""
    processes: int
    """Number of processes."""
    seed: int
    """Seed of the orders."""
    epochs: int
    """Passes over the samples; ignored if `steps` is set."""
    steps: int | None
    """Optimiser steps; None for as many as fill `epochs`."""

    @property
    def total(self) -> int:
        """Number of optimiser steps.

        Raises:
            UsageError: the samples do not fill one step.
        """
        each = self.accumulation * self.processes
        total = self.steps if self.steps is not None else self.samples * self.epochs // each
        if total == 0:
            raise UsageError(
                f"{self.samples} samples do not fill one step of {self.accumulation} × {self.processes} processes; "
                "lower accumulation, or give steps"
            )
        return total

    def places(self, first: int, process: int) -> list[int]:
        """Numbers of the samples that one process reads from step `first` to the end, `accumulation` for each step."""
        each = self.accumulation * self.processes
        places, epoch, order = list[int](), -1, np.zeros(0, np.int64)
        for step in range(first, self.total):
            for turn in range(self.accumulation):
                number = step * each + turn * self.processes + process
                if number // self.samples != epoch:
                    epoch = number // self.samples
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
                places.append(int(order[number % self.samples]))
        return places


def make_accelerator(plan: TrainingPlan, device: torch.device) -> Any:
    """accelerate's `Accelerator`: device, precision, and the exchange of gradients between processes.

    Raises:
        UsageError: the plan requires bfloat16 and the GPU does not support it.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if plan.precision == "bfloat16" and device.type == "cuda" and not able:
        raise UsageError("precision: this GPU has no bfloat16; set it to auto or float32")
    half = plan.precision == "bfloat16" or (plan.precision == "auto" and able)
    # A sample with a single image has only a keyframe and gives MLP_n no gradient; processes must not wait for it.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if half else "no", kwargs_handlers=[unused])


def forget_accelerator() -> None:
    """Reset accelerate, which otherwise keeps its first settings until the process ends."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(
    trainable: TrainableModel,
    read: Read,
    plan: TrainingPlan,
    out: Path,
    accelerator: Any,
    *,
    samples: int,
    data: str,
    stop_after: int | None = None,
    on_step: Callable[[int, int, dict[str, Any]], None] = lambda *_: None,
) -> Path:
    """Train from the newest checkpoint of `out`, or from the beginning, to the end.

    Args:
        trainable: the model.
        read: yields samples by their numbers, in that order.
        plan: the settings.
        out: folder of the run.
        accelerator: see `make_accelerator`.
        samples: number of samples.
        data: digest of the samples; a run does not resume with other data.
        stop_after: stop, with a checkpoint, after so many steps of this call.
        on_step: called with steps done, steps in all, and the line of the log.

    Returns:
        The folder of the newest checkpoint.

    Raises:
        UsageError: `out` holds a run with other settings.
        TrainingFailed: a loss or a gradient is not finite.
    """
    schedule = Schedule(samples, plan.accumulation, accelerator.num_processes, plan.seed, plan.epochs, plan.steps)
    total = schedule.total
    _check_same_run(out, plan, data, accelerator)
    torch.manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(parameter_groups(trainable.parts, plan), betas=(0.9, 0.999))
    rates = get_cosine_schedule_with_warmup(optimizer, math.ceil(plan.warm_up * total), total)
    # Not passed to `prepare`, which would step it once for each process, nor registered for checkpoints, which
    # accelerate reads with `weights_only=False`: a file in the run's folder could then execute code.
    model, optimizer = accelerator.prepare(trainable, optimizer)
    first, newest = 0, next(reversed(checkpoints(out)), None)
    if newest is not None:
        _load_rates(rates, newest / "state" / _RATES)
        accelerator.load_state(str(newest / "state"), load_kwargs={"weights_only": True})
        first = step_of(newest)
    if accelerator.is_main_process:
        _cut_log(out, first)
    last = total if stop_after is None else min(total, first + stop_after)
    incoming = read(schedule.places(first, accelerator.process_index)[: (last - first) * plan.accumulation])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, last):
        since = perf_counter()
        loss, frames, tokens = torch.zeros((), device=accelerator.device), 0, 0
        for turn in range(plan.accumulation):
            sample = next(incoming)
            waiting = turn + 1 < plan.accumulation
            with accelerator.no_sync(model) if waiting else nullcontext():
                done = model(sample)
                accelerator.backward(done.loss / plan.accumulation)
            if not torch.isfinite(done.loss):
                raise TrainingFailed(f"{sample.where}: the loss is {done.loss.item()}; lower the learning rates")
            loss += done.loss.detach() / plan.accumulation
            frames, tokens = frames + done.frames, tokens + done.tokens
        norm = accelerator.clip_grad_norm_(parameters, plan.max_norm)
        if not torch.isfinite(norm):
            raise TrainingFailed(f"step {step + 1}: the gradient is not finite; lower the learning rates")
        now = {group["name"]: group["lr"] for group in optimizer.param_groups}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates.step()
        sums = accelerator.reduce(torch.tensor([frames, tokens], device=accelerator.device), "sum").tolist()
        line = {
            "step": step + 1,
            "loss": accelerator.reduce(loss, "mean").item(),
            "gradient": float(norm),
            "rates": now,
            "frames": sums[0],
            "tokens": sums[1],
            "seconds": round(perf_counter() - since, 4),
        }
        if accelerator.is_main_process:
            with (out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        on_step(step + 1, total, line)
        if (step + 1) % plan.save_every == 0 or step + 1 == last:
            newest = _save(trainable, rates, out, step + 1, plan.keep, accelerator)
    assert newest is not None  # a run has at least one step
    return newest


def checkpoints(out: Path) -> list[Path]:
    """Folders of the complete checkpoints of a run, oldest first."""
    found = [path for path in (out / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Steps done at a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def _check_same_run(out: Path, plan: TrainingPlan, data: str, accelerator: Any) -> None:
    """Write plan.json, or check that it is the same run.

    Raises:
        UsageError: `out` holds a run with other settings.
    """
    path = out / "plan.json"
    # These settings do not change the trained weights.
    free = {"footage", "cache", "workers", "save_every", "keep"}
    ours = {**plan.model_dump(mode="json", exclude=free), "data": data, "processes": accelerator.num_processes}
    ours["freeze"] = sorted(ours["freeze"])
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if different:
            raise UsageError(
                f"{out} holds a run with other {', '.join(different)}; give the settings it began with, or another "
                "--out"
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not path.exists():
        write_atomically(path, json.dumps(ours, indent=1) + "\n", parents=True)
    accelerator.wait_for_everyone()


def _cut_log(out: Path, step: int) -> None:
    """Remove the log's lines after `step`; those steps are repeated."""
    path = out / "log.jsonl"
    if path.exists():
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in _log(path) if line["step"] <= step))


def _log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(dict(json.loads(text)))
        except ValueError:  # the incomplete last line of a run that was killed
            break
    return lines


def _load_rates(rates: Any, path: Path) -> None:
    """Restore the schedule of learning rates.

    Raises:
        UsageError: the file is missing or damaged, or an older version of Sightline wrote the checkpoint.
    """
    try:
        rates.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: the checkpoint has no readable schedule of learning rates ({type(error).__name__}); it is "
            "damaged or of an older version: begin a new run with another --out"
        ) from None


def _save(trainable: TrainableModel, rates: Any, out: Path, step: int, keep: int, accelerator: Any) -> Path:
    """Write a checkpoint and return its folder; it gets its name when it is complete."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    part = folder.with_name(folder.name + ".part")
    if accelerator.is_main_process:
        for left in folder.parent.glob("*.part"):  # from a run that was killed while it saved
            shutil.rmtree(left)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part / "state"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(part / "state" / _RATES, json.dumps(rates.state_dict()))
        save_model(trainable, part / "model")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        link = out / "last.part"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.relative_to(out))
        link.replace(out / "last")
        for path in checkpoints(out)[:-keep]:
            shutil.rmtree(path)
        history = [{**line, **line["rates"]} for line in _log(out / "log.jsonl")]
        names = tuple(dict.fromkeys(name for line in history for name in line["rates"]))
        panels = {
            "loss": ("run", ("loss",)),
            "gradient": ("run", ("gradient",)),
            "learning rates": ("run", names),
        }
        write_atomically(out / "training.svg", draw_loss_curves({"run": history}, panels))
    accelerator.wait_for_everyone()
    return folder
