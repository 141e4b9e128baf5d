"""The training loop: AdamW, cosine with warm-up, accumulation, many processes by accelerate, and going on where it was.

    out/plan.json                     the plan, the data and the number of processes; another one is refused
    out/log.jsonl                     a line a step: loss, rates, gradient length, frames, tokens, seconds
    out/training.svg                  the same as curves
    out/checkpoints/step-000500/      state/ (weights, optimiser, schedule, random numbers) and model/ (see
                                      `model.training.checkpoint`); complete when it has this name
    out/last                          a link to the newest of them

Which sample comes when is a pure function of seed and place in the run, so that a run that was stopped and went on is,
on a CPU bit for bit, the run that was not. A step's gradient is the mean over its samples, however many processes share
them. Does not know where samples come from.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from index.errors import TrainingFailed, UsageError
from model.training.checkpoint import save_model
from model.training.components import parameter_groups
from model.training.micro.recipe import loss_curves
from model.training.plan import TrainingPlan
from model.training.trainable import Sample, TrainableModel

__all__ = ["Schedule", "forget_accelerator", "make_accelerator", "train"]

Read = Callable[[Sequence[int]], Iterator[Sample]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which sample is read when: `samples` in all, each epoch in an order of its own."""

    samples: int
    accumulation: int
    processes: int
    seed: int
    epochs: int
    steps: int | None

    @property
    def total(self) -> int:
        """Steps of the optimiser.

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
        """The samples that one process reads from step `first` to the end, `accumulation` a step."""
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
    """accelerate's view of this process and the others: device, precision, and how gradients meet.

    Raises:
        UsageError: bfloat16 was asked for on a GPU that has none.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if plan.precision == "bfloat16" and device.type == "cuda" and not able:
        raise UsageError("precision: this GPU has no bfloat16; set it to auto or float32")
    half = plan.precision == "bfloat16" or (plan.precision == "auto" and able)
    # An image is one keyframe, so that MLP_n has no gradient; the processes must not wait for it.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if half else "no", kwargs_handlers=[unused])


def forget_accelerator() -> None:
    """accelerate remembers its first settings for the life of a process; the next run may have others."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(
    trainee: TrainableModel,
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
    """Train from the newest checkpoint of `out`, or from the beginning, to the end; the path of the newest checkpoint.

    Args:
        read: gives samples by their numbers, in that order.
        samples: how many there are.
        data: a digest of them, so that no run goes on with other data.
        stop_after: stop, with a checkpoint, after so many steps of this call.
        on_step: called with steps done, steps in all, and the line of the log.

    Raises:
        UsageError: `out` holds another run.
        TrainingFailed: a loss or gradient is not a number.
    """
    from transformers import get_cosine_schedule_with_warmup

    schedule = Schedule(samples, plan.accumulation, accelerator.num_processes, plan.seed, plan.epochs, plan.steps)
    total = schedule.total
    _claim(out, plan, data, accelerator)
    torch.manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(parameter_groups(trainee.parts, plan), betas=(0.9, 0.999))
    rates = get_cosine_schedule_with_warmup(optimizer, math.ceil(plan.warm_up * total), total)
    # Not prepared: accelerate would step it once for each process.
    accelerator.register_for_checkpointing(rates)
    model, optimizer = accelerator.prepare(trainee, optimizer)
    first, newest = 0, next(reversed(checkpoints(out)), None)
    if newest is not None:
        accelerator.load_state(str(newest / "state"))
        first = step_of(newest)
    if accelerator.is_main_process:
        _cut_log(out, first)
    last = total if stop_after is None else min(total, first + stop_after)
    reading = read(schedule.places(first, accelerator.process_index)[: (last - first) * plan.accumulation])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, last):
        since = perf_counter()
        loss, frames, tokens = torch.zeros((), device=accelerator.device), 0, 0
        for turn in range(plan.accumulation):
            sample = next(reading)
            waiting = turn + 1 < plan.accumulation
            with accelerator.no_sync(model) if waiting else nullcontext():
                done = model(sample)
                accelerator.backward(done.loss / plan.accumulation)
            if not torch.isfinite(done.loss):
                raise TrainingFailed(f"{sample.where}: the loss is {done.loss.item()}; lower the learning rates")
            loss += done.loss.detach() / plan.accumulation
            frames, tokens = frames + done.frames, tokens + done.tokens
        length = accelerator.clip_grad_norm_(parameters, plan.max_norm)
        if not torch.isfinite(length):
            raise TrainingFailed(f"step {step + 1}: the gradient is not finite; lower the learning rates")
        now = {group["name"]: group["lr"] for group in optimizer.param_groups}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rates.step()
        sums = accelerator.reduce(torch.tensor([frames, tokens], device=accelerator.device), "sum").tolist()
        line = {
            "step": step + 1,
            "loss": accelerator.reduce(loss, "mean").item(),
            "gradient": float(length),
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
            newest = _save(trainee, out, step + 1, plan.keep, accelerator)
    assert newest is not None  # a run has at least one step
    return newest


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (out / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _claim(out: Path, plan: TrainingPlan, data: str, accelerator: Any) -> None:
    """Say whose folder it is, or find that it is ours."""
    path = out / "plan.json"
    # Where footage lies, how it is cached and how often it is saved does not change what is learned.
    free = {"footage", "cache", "workers", "save_every", "keep"}
    ours = {**plan.model_dump(mode="json", exclude=free), "data": data, "processes": accelerator.num_processes}
    ours["freeze"] = sorted(ours["freeze"])
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if different:
            raise UsageError(
                f"{out} holds a run with other {', '.join(different)}; give the settings it began with, or another --out"
            )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(ours, indent=1) + "\n")
    accelerator.wait_for_everyone()


def _cut_log(out: Path, step: int) -> None:
    """Forget lines of steps that will be taken again."""
    path = out / "log.jsonl"
    if path.exists():
        _write(path, "".join(json.dumps(line) + "\n" for line in _log(path) if line["step"] <= step))


def _log(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(dict(json.loads(text)))
        except ValueError:  # the last line of a run that was killed
            break
    return lines


def _save(trainee: TrainableModel, out: Path, step: int, keep: int, accelerator: Any) -> Path:
    """Write a checkpoint beside the others; it has its name only when it is complete."""
    folder = out / "checkpoints" / f"step-{step:06d}"
    part = folder.with_name(folder.name + ".part")
    if accelerator.is_main_process:
        for left in folder.parent.glob("*.part"):  # of a run that was killed while it saved
            shutil.rmtree(left)
        part.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part / "state"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_model(trainee, part / "model")
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
        _write(out / "training.svg", loss_curves({"run": history}, panels))
    accelerator.wait_for_everyone()
    return folder


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
