"""Commands that train models: train micro, train run."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import Progress as RichProgress
from rich.progress import TaskID

from index.errors import UsageError, validation_message
from index.extras import require_extra
from pipeline.cli.options import settings_of
from pipeline.console import print_line, progress

if TYPE_CHECKING:
    from model.training.components import ComponentCount
    from model.training.micro.recipe import MicroPlan, Progress

__all__ = ["app", "train_micro", "train_run"]

app = typer.Typer(name="train", help="Train models.", rich_markup_mode=None)


@app.command("micro")
def train_micro(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same data in the same order.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder for clips, features and checkpoints.")] = None,
    plan: Annotated[Path | None, typer.Option(help="JSON file with a MicroPlan, for smaller runs.")] = None,
) -> None:
    """Train the micro profile from random weights.

    Takes about two hours on two cores. The same command resumes a run that was interrupted.
    """
    require_extra("train", "sightline train micro")

    recipe = _recipe()
    chosen = recipe.MicroPlan(seed=seed) if plan is None else _read_plan(plan, recipe.MicroPlan)
    with progress() as bar:
        recipe.train_micro(out, plan=chosen, work=work, on_progress=_stage_bars(bar))
    print_line(f"weights in {out}, loss curves in {out / 'training.svg'}")


@app.command("micro-hico")
def train_micro_hico(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    micro: Annotated[Path | None, typer.Option(help="Folder with the weights of micro; the shipped ones.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for clips, features and checkpoints.")] = None,
    plan: Annotated[Path | None, typer.Option(help="JSON file with a MicroPlan, for smaller runs.")] = None,
) -> None:
    """Train the micro-hico profile from the weights of micro.

    Takes about an hour on two cores. The same command resumes a run that was interrupted.
    """
    require_extra("train", "sightline train micro-hico")

    recipe = _recipe()
    chosen = recipe.HICO_PLAN if plan is None else _read_plan(plan, recipe.MicroPlan)
    source = Path(str(files("model") / "micro")) if micro is None else micro
    with progress() as bar:
        recipe.train_micro_hico(out, micro=source, plan=chosen, work=work, on_progress=_stage_bars(bar))
    print_line(f"weights in {out}, loss curves in {out / 'training.svg'}")


def _recipe() -> ModuleType:
    """Return the module `model.training.micro.recipe`, which loads torch."""
    from model.training.micro import recipe

    return recipe


def _stage_bars(bar: RichProgress) -> Callable[[Progress], None]:
    """Return the function that updates a progress bar for each stage."""
    tasks: dict[str, TaskID] = {}

    def show(p: Progress) -> None:
        """Update the progress bar of a stage."""
        if p.stage not in tasks:
            tasks[p.stage] = bar.add_task(p.stage, total=p.total, detail="")
        detail = "  ".join(f"{name} {value:.3f}" for name, value in p.figures.items())
        bar.update(tasks[p.stage], completed=p.done, detail=detail)

    return show


def _read_plan(path: Path, kind: type[MicroPlan]) -> MicroPlan:
    try:
        return kind.model_validate_json(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: not a plan ({error.strerror or error})") from None
    except ValidationError as error:
        raise UsageError(f"{path}: not a plan ({validation_message(error)})") from None


@app.command("run")
def train_run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file with the training plan.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and curves.")],
    stop_after: Annotated[int | None, typer.Option(help="Write a checkpoint after so many steps and stop.")] = None,
) -> None:
    """Train a profile on conversations about footage.

    The same command resumes a run that was interrupted.
    On several GPUs: accelerate launch -m pipeline.cli train run PLAN --out DIR
    """
    require_extra("train", "sightline train run")

    from pipeline.training import run  # loads torch

    with progress() as bar:
        task = bar.add_task("training", total=None, detail="")

        def start(counts: list[ComponentCount], samples: int) -> None:
            """Print the parameters of each component."""
            bar.stop()
            for count in counts:
                state = "frozen" if count.rate is None else f"learning rate {count.rate:g}"
                print_line(f"{count.name:<28} {count.parameters:>14,} parameters   {state}")
            trained = sum(count.parameters for count in counts if count.rate is not None)
            total = sum(count.parameters for count in counts)
            print_line(f"{trained:,} of {total:,} parameters are trained; {samples:,} samples")
            bar.start()

        def step(done: int, total: int, line: dict[str, Any]) -> None:
            """Update the progress bar."""
            bar.update(task, completed=done, total=total, detail=f"loss {line['loss']:.4f}")

        profile = run.run_training(
            config,
            out,
            device=settings_of(context).device,
            stop_after=stop_after,
            on_start=start,
            on_step=step,
        )
    print_line(f"profile in {profile}, loss curves in {out / 'training.svg'}")
