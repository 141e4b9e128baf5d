"""`sightline train run`: train a profile on conversations about footage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import settings_of
from pipeline.console import progress, say

if TYPE_CHECKING:
    from model.training.components import ComponentCount

__all__ = ["train_run"]


def train_run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="The plan, a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and curves.")],
    stop_after: Annotated[int | None, typer.Option(help="Stop, with a checkpoint, after so many steps.")] = None,
) -> None:
    """Train a profile on conversations about footage; running again goes on.

    On several GPUs: accelerate launch -m pipeline.cli train run PLAN --out DIR
    """
    from pipeline.training.run import run_training

    with progress() as bar:
        task = bar.add_task("training", total=None, detail="")

        def start(counts: list[ComponentCount], samples: int) -> None:
            bar.stop()
            for count in counts:
                state = "frozen" if count.rate is None else f"learning rate {count.rate:g}"
                say(f"{count.name:<28} {count.parameters:>14,} parameters   {state}")
            trained = sum(count.parameters for count in counts if count.rate is not None)
            say(
                f"{trained:,} of {sum(count.parameters for count in counts):,} parameters are trained; {samples:,} samples"
            )
            bar.start()

        def step(done: int, total: int, line: dict[str, Any]) -> None:
            bar.update(task, completed=done, total=total, detail=f"loss {line['loss']:.4f}")

        profile = run_training(
            config,
            out,
            device=settings_of(context).device,
            stop_after=stop_after,
            on_start=start,
            on_step=step,
        )
    say(f"profile in {profile}, loss curves in {out / 'training.svg'}")
