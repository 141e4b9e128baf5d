"""`sightline train micro`: the whole training of the shipped weights, from rendering to the language model.

    1. bank       clips of 160 cameras, drawn and seen once a second
    2. encoders   CLIP and SigLIP, side by side, one process each
    3. features   every bank frame encoded once
    4. language   connector and language model over streams put together from the bank

Every step leaves a checkpoint in the working folder, so that a stopped run goes on where it was. The same seed gives
the same data in the same order; floating-point sums still differ between machines.
"""

from __future__ import annotations

import json
import queue as queues
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model.world.questions import QUESTION_KINDS

__all__ = ["MicroPlan", "Progress", "train_micro"]


class MicroPlan(BaseModel):
    """How much of everything. The defaults made the shipped weights; tests use a few steps of each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=1, ge=0)
    cameras: int = Field(default=160, ge=1)
    clips: int = Field(default=40, ge=1)
    encoder_steps: int = Field(default=2200, ge=1)
    encoder_batch: int = Field(default=128, ge=2)
    language_share: float = Field(default=1.0, gt=0, le=1)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training is: `stage` of the four above, `done` of `total`, and running means of its losses."""

    stage: str
    done: int
    total: int
    figures: dict[str, float] = field(default_factory=dict)


def _load_bank(work: Path, plan: MicroPlan, on_progress: Callable[[Progress], None]) -> Any:
    from model.training.micro.clip_bank import make_bank

    return make_bank(
        work / "bank",
        seed=plan.seed,
        cameras=plan.cameras,
        clips=plan.clips,
        on_progress=lambda done, total: on_progress(Progress("bank", done, total)),
    )


def _train_one_encoder(name: str, work: Path, out: Path, plan: MicroPlan, queue: Any) -> None:
    from model.training.micro.encoders import EncoderRun, train_encoder

    run = EncoderRun(steps=plan.encoder_steps, batch=plan.encoder_batch, seed=plan.seed)
    bank = _load_bank(work, plan, lambda _: None)
    train_encoder(name, bank, work, out / name, run, lambda step, figures: queue.put((name, step, figures)))
    (work / f"{name}.json").write_text(json.dumps(run.history))
    queue.put((name, -1, {}))


def _train_encoders(work: Path, out: Path, plan: MicroPlan, on_progress: Callable[[Progress], None]) -> None:
    from index.errors import ModelError

    context = get_context("spawn")
    queue = context.Queue()
    names = [n for n in ("clip", "siglip") if not (work / f"{n}.json").exists()]
    running = {n: context.Process(target=_train_one_encoder, args=(n, work, out, plan, queue)) for n in names}
    for process in running.values():
        process.start()
    left = set(running)
    try:
        while left:
            try:
                name, step, figures = queue.get(timeout=5)
            except queues.Empty:
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
        work: folder for bank, features and checkpoints (about 5 GB); `out` + ".work" when not given.

    Raises:
        ModelError: a training process died; running again resumes.
    """
    from model.training.micro.examples import load_features
    from model.training.micro.language import STAGES, LanguageRun, train_language

    plan = plan or MicroPlan()
    work = work or out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    bank = _load_bank(work, plan, on_progress)
    _train_encoders(work, out, plan, on_progress)
    features = load_features(bank, out, work, lambda done, total: on_progress(Progress("features", done, total)))
    stages = tuple(replace(s, steps=max(1, round(s.steps * plan.language_share))) for s in STAGES)
    run = LanguageRun(seed=plan.seed, stages=stages)
    total = sum(s.steps for s in stages)
    train_language(
        bank,
        plan.clips,
        features,
        work,
        out,
        run,
        lambda step, figures: on_progress(Progress("language", step, total, figures)),
    )
    history = {name: json.loads((work / f"{name}.json").read_text()) for name in ("clip", "siglip")}
    history["language"] = run.history
    (out / "training.json").write_text(json.dumps({"plan": plan.model_dump(), "history": history}) + "\n")
    (out / "training.svg").write_text(loss_curves(history))


PANELS = {
    "clip": ("clip", ()),
    "siglip": ("siglip", ()),
    "language": ("language", ("loss", "look", "follows", "name", "read digit 4")),
    "answers right": ("language", QUESTION_KINDS),
}


def loss_curves(
    history: dict[str, list[dict[str, float]]], panels: dict[str, tuple[str, tuple[str, ...]]] = PANELS
) -> str:
    """An SVG with `panels` (title → name in `history`, figures), a line a figure, from 0 to the largest value."""
    width, height, margin = 360, 180, 28
    colours = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(panels)}" height="{height + 56}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for panel, (title, (name, chosen)) in enumerate(panels.items()):
        rows = history[name]
        keys = [key for key in (chosen or (rows[-1] if rows else ())) if key != "step"]
        last = rows[-1]["step"] if rows else 1
        top = max((row[key] for row in rows for key in keys if key in row), default=1.0) or 1.0
        x0 = panel * width + margin
        parts.append(f'<text x="{x0}" y="16" font-weight="bold">{title}: {int(last)} steps</text>')
        parts.append(f'<path d="M{x0} 24V{height}H{x0 + width - 2 * margin}" fill="none" stroke="#999"/>')
        parts.append(f'<text x="{x0 - 4}" y="30" text-anchor="end">{top:{".1f" if top >= 0.1 else ".0e"}}</text>')
        for i, (key, colour) in enumerate(zip(keys, colours, strict=False)):
            points = " ".join(
                f"{x0 + (width - 2 * margin) * row['step'] / last:.1f},{height - (height - 24) * row[key] / top:.1f}"
                for row in rows
                if key in row
            )
            x, y = x0 + 105 * (i % 3), height + 20 + 16 * (i // 3)
            value = next((f"{row[key]:{'.3f' if top >= 0.1 else '.1e'}}" for row in reversed(rows) if key in row), "")
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{key} {value}</text>')
    return "".join([*parts, "</svg>\n"])
