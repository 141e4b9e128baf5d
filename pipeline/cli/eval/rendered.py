"""The command `sightline eval rendered`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, ProfileName, settings_of
from pipeline.console import print_json, print_line, progress

__all__ = ["rendered"]


def rendered(
    context: typer.Context,
    work: Annotated[Path, typer.Option(help="Folder for footage and stores; a later run uses them again.")],
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A seed of footage, repeatable; default: 101, 102 and 103.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Length of each stream.")] = 20.0,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the result; a Markdown table is written beside it.")
    ] = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a profile on rendered footage.

    The seeds of the footage were not used in training.
    """
    from pipeline.evaluation import rendered as evaluation  # loads torch
    from pipeline.evaluation import table

    settings = settings_of(context, profile=profile)
    with progress(quiet=as_json) as bar:
        task = bar.add_task("evaluating", total=None, detail="")
        result = evaluation.evaluate(
            work,
            profile=settings.profile,
            seeds=seeds or (101, 102, 103),
            minutes=minutes,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    text = table.table(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(result.model_dump_json(indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    if as_json:
        print_json(result)
    else:
        print_line(text)
