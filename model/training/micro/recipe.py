"""The recipe of `sightline train micro`: the whole training of the shipped weights, from rendering to the language
model.

    1. bank       clips of 160 cameras, rendered, one frame a second
    2. encoders   CLIP and SigLIP at the same time, one process each
    3. features   every frame of the bank encoded once
    4. language   connector and language model, on streams assembled from the bank

Every stage writes checkpoints into the working folder, from which an interrupted run resumes. The same seed gives the
same data in the same order; floating-point sums still differ between machines.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from index.errors import ModelError
from index.files import write_atomically
from model.training.loss_curves import draw_loss_curves
from model.training.micro.clip_bank import ClipBank, make_bank
from model.training.micro.clips import HICO_CONTEXT, HICO_RATE, HICO_STAGES, draw_clip_example
from model.training.micro.encoders import EncoderRun, train_encoder
from model.training.micro.examples import load_features
from model.training.micro.language import STAGES, LanguageRun, train_language
from model.world.questions import QUESTION_KINDS

__all__ = ["HICO_PLAN", "MicroPlan", "Progress", "train_micro", "train_micro_hico"]


PANELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "clip": ("clip", ()),
    "siglip": ("siglip", ()),
    "language": ("language", ("loss", "look", "follows", "name", "read digit 4")),
    "answers right": ("language", QUESTION_KINDS),
}
"""Panels of training.svg; see `model.training.loss_curves.draw_loss_curves`."""


class MicroPlan(BaseModel):
    """The size of a training. The shipped weights of `micro` were made with the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = Field(default=1, ge=0)
    """Seed of all random choices."""
    cameras: int = Field(default=160, ge=1)
    """Rendered cameras of the bank."""
    clips: int = Field(default=40, ge=1)
    """Clips of each camera."""
    encoder_steps: int = Field(default=2200, ge=1)
    """Optimiser steps of each encoder."""
    encoder_batch: int = Field(default=128, ge=2)
    """Frames of one step of an encoder."""
    language_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the language model's full number of steps."""


HICO_PLAN = MicroPlan(cameras=64)
"""The size of the training of the shipped weights of `micro-hico`."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one stage."""

    stage: str
    """`bank`, `clip`, `siglip`, `features` or `language`."""
    done: int
    """Cameras, steps or frames done."""
    total: int
    """Cameras, steps or frames in all."""
    figures: dict[str, float] = field(default_factory=dict)
    """Running means of the losses."""


def _load_bank(work: Path, plan: MicroPlan, on_progress: Callable[[Progress], None]) -> ClipBank:
    """The bank of `plan`, rendered into `work` if it is not there."""
    return make_bank(
        work / "bank",
        seed=plan.seed,
        cameras=plan.cameras,
        clips=plan.clips,
        on_progress=lambda done, total: on_progress(Progress("bank", done, total)),
    )


def _train_one_encoder(name: str, work: Path, out: Path, plan: MicroPlan, messages: Any) -> None:
    """Train one encoder; runs in a process of its own. Sends (name, step, figures), and (name, -1, {}) at the end."""
    run = EncoderRun(steps=plan.encoder_steps, batch=plan.encoder_batch, seed=plan.seed)
    bank = _load_bank(work, plan, lambda _: None)
    train_encoder(name, bank, work, out / name, run, lambda step, figures: messages.put((name, step, figures)))
    write_atomically(work / f"{name}.json", json.dumps(run.history))
    messages.put((name, -1, {}))


def _train_encoders(work: Path, out: Path, plan: MicroPlan, on_progress: Callable[[Progress], None]) -> None:
    """Train the encoders that have not been trained yet, at the same time."""
    context = get_context("spawn")
    messages = context.Queue()
    names = [n for n in ("clip", "siglip") if not (work / f"{n}.json").exists()]
    running = {n: context.Process(target=_train_one_encoder, args=(n, work, out, plan, messages)) for n in names}
    for process in running.values():
        process.start()
    left = set(running)
    try:
        while left:
            try:
                name, step, figures = messages.get(timeout=5)
            except queue.Empty:
                dead = [n for n in left if running[n].exitcode not in (None, 0)]
                if dead:
                    raise ModelError(
                        f"training {dead[0]} stopped with exit code {running[dead[0]].exitcode}; run the command again"
                    ) from None
                continue
            if step < 0:
                left.discard(name)
            else:
                on_progress(Progress(name, step, plan.encoder_steps, figures))
    finally:
        for process in running.values():
            if left:
                process.terminate()
            process.join()


def train_micro(
    out: Path,
    *,
    plan: MicroPlan | None = None,
    work: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train `micro` into `out` (clip/, siglip/, llm/, connector.safetensors, training.json, training.svg).

    Args:
        out: folder for the weights.
        plan: the size of the training; the default one if None.
        work: folder for bank, features and checkpoints (about 5 GB); `out` + ".work" if None.
        on_progress: called as the stages advance.

    Raises:
        ModelError: a training process died; the same call resumes.
    """
    plan = plan or MicroPlan()
    work = work or out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    bank = _load_bank(work, plan, on_progress)
    _train_encoders(work, out, plan, on_progress)
    run = LanguageRun(seed=plan.seed, stages=STAGES)
    history = {name: json.loads((work / f"{name}.json").read_text()) for name in ("clip", "siglip")}
    history["language"] = _train_language(run, bank, out, work, out, plan, on_progress)
    _save_curves(out, plan, history, PANELS)


def train_micro_hico(
    out: Path,
    *,
    micro: Path,
    plan: MicroPlan = HICO_PLAN,
    work: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train `micro-hico` into `out` (llm/, connector.safetensors, training.json, training.svg), from `micro`.

    The encoders are those of `micro`, and the language model starts from its weights; see `model.training.micro.clips`.

    Args:
        out: folder for the weights.
        micro: folder with the weights of `micro`.
        plan: the size of the training; encoders are not trained.
        work: folder for bank, features and checkpoints (about 1.5 GB); `out` + ".work" if None.
        on_progress: called as the stages advance.
    """
    work = work or out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    bank = _load_bank(work, plan, on_progress)
    run = LanguageRun(
        seed=plan.seed,
        rate=HICO_RATE,
        warm_up=30,
        stages=HICO_STAGES,
        draw=draw_clip_example,
        start=micro,
        context=HICO_CONTEXT,
    )
    history = {"language": _train_language(run, bank, micro, work, out, plan, on_progress)}
    _save_curves(out, plan, history, {name: panel for name, panel in PANELS.items() if panel[0] == "language"})


def _train_language(
    run: LanguageRun,
    bank: ClipBank,
    encoders: Path,
    work: Path,
    out: Path,
    plan: MicroPlan,
    on_progress: Callable[[Progress], None],
) -> list[dict[str, float]]:
    """Encode the bank with the encoders in folder `encoders`, train, and return the history of the figures."""
    features = load_features(bank, encoders, work, lambda done, total: on_progress(Progress("features", done, total)))
    run.stages = tuple(replace(s, steps=max(1, round(s.steps * plan.language_share))) for s in run.stages)
    total = sum(s.steps for s in run.stages)

    def on_step(step: int, figures: dict[str, float]) -> None:
        """Report the progress of the language model."""
        on_progress(Progress("language", step, total, figures))

    train_language(bank, plan.clips, features, work, out, run, on_step)
    return run.history


def _save_curves(
    out: Path,
    plan: MicroPlan,
    history: dict[str, list[dict[str, float]]],
    panels: dict[str, tuple[str, tuple[str, ...]]],
) -> None:
    """Write plan and loss curves into folder `out`."""
    write_atomically(out / "training.json", json.dumps({"plan": plan.model_dump(), "history": history}) + "\n")
    write_atomically(out / "training.svg", draw_loss_curves(history, panels))
