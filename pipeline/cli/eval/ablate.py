"""The command `sightline eval ablate`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from index.errors import UsageError
from pipeline.cli.options import Json, ProfileName, Quiet, settings_of
from pipeline.console import interruptible, print_json, print_line, print_note, progress
from pipeline.evaluation.ablations.plan import GROUPS, TRAINED

__all__ = ["ablate"]

_RUN, _SUMMARY = "pipeline.evaluation.ablations.run", "pipeline.evaluation.ablations.summary"  # load torch


def ablate(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Folder for rendered footage and its store; a later run uses them again.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on with its next row.")],
    profile: ProfileName = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help=f"A group of rows, repeatable: {', '.join(GROUPS)}; default: all."),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Rendered streams that are asked about.")] = 8,
    seconds: Annotated[int, typer.Option(min=60, help="Length of a stream.")] = 300,
    each: Annotated[int, typer.Option(min=1, help="Questions of every kind and stream.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the streams.")] = 401,
    training_streams: Annotated[int, typer.Option(min=1, help="Streams that mergers are trained on.")] = 6,
    training_steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each trained merger.")] = 40,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Leave out the mergers that need training: single token, Q-former.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Change one part of a profile at a time, and ask the same questions again.

    Selectors, mergers, K, α, τ and λ, each compared with the profile as it is by McNemar's test. OUT/report.html shows
    the result.
    """
    unknown = sorted(set(group or ()) - set(GROUPS))
    if unknown:
        raise UsageError(f"--group {unknown[0]}: give one of {', '.join(GROUPS)}")
    settings = settings_of(context, profile=profile)
    run, summary = import_module(_RUN), import_module(_SUMMARY)
    plan = run.AblationPlan(
        work=work,
        out=out,
        profile=settings.profile,
        device=settings.device,
        seed=seed,
        streams=streams,
        seconds=seconds,
        each=each,
        training_streams=training_streams,
        training_steps=training_steps,
        groups=tuple(name for name in GROUPS if name in (group or GROUPS)),
        trained=() if untrained else TRAINED,
    )
    with (
        progress(quiet=quiet or as_json) as bar,
        interruptible("rows that are done are written; the same command goes on"),
    ):
        task = bar.add_task("footage", total=None, detail="")

        def advance(stage: str, done: int, total: int) -> None:
            """Show the stage."""
            bar.update(task, description=stage, completed=done, total=total)

        folder, groups, loaded = run.run_ablation(plan, advance)
    report: Any = summary.summarize_ablation(folder, groups, loaded)
    path = summary.write_ablation(folder, report)
    if as_json:
        print_json(report)
        return
    print_line(summary.ablation_text(report))
    print_note(f"report: {path}")
