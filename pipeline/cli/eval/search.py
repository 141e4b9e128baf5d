"""The command `sightline eval search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import UsageError
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.cli.options import Json, ProfileName, StoreUrl, settings_of
from pipeline.console import print_json, print_line, progress
from pipeline.evaluation.finding import finding_table, read_labels, rendered_labels, search_accuracy
from pipeline.evaluation.footage import rendered_store
from pipeline.questions.asker import Asker

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["search"]


def search(
    context: typer.Context,
    labels: Annotated[
        Path | None, typer.Option(help="JSON Lines of query, stream and spans, about a store of your own.")
    ] = None,
    store: StoreUrl = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for rendered footage and its store, which a later run uses again.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rendered footage.")] = 101,
    minutes: Annotated[float, typer.Option(help="Length of each rendered stream.")] = 20.0,
    cameras: Annotated[int, typer.Option(help="Number of rendered streams.")] = 2,
    verify: Annotated[
        bool, typer.Option("--verify", help="Add a column in which the language model rejects moments.")
    ] = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of search on labelled or rendered footage.

    Give --labels for a store of your own, or --work for rendered footage, whose every event is known.
    """
    if (labels is None) == (work is None):
        raise UsageError("give either --labels FILE, with --store, or --work FOLDER for rendered footage")
    settings = settings_of(context, store=store, profile=profile)
    if labels is not None:
        queries, opened = read_labels(labels), settings.store
    else:
        chosen = load_profile(settings.profile)
        encoders = load_encoders(chosen, settings.device)
        name = "store" if chosen.name == "micro" else f"store-{chosen.name}"  # profiles share the footage alone
        folder = work or Path()
        opened = rendered_store(folder, encoders, seed=seed, minutes=minutes, cameras=cameras, name=name).url
        queries = rendered_labels(seed, minutes, cameras)
    asker = Asker(opened, settings.profile, settings.device)
    results = []
    for verified in (False, True) if verify else (False,):
        with progress(quiet=as_json) as bar:
            task = bar.add_task("verified" if verified else "searching", total=len(queries), detail="")

            def advance(done: int, total: int, *, task: TaskID = task, bar: Progress = bar) -> None:
                """Show how many queries are done."""
                bar.update(task, completed=done, total=total)

            results.append(
                search_accuracy(queries, asker, profile=settings.profile, verify=verified, on_progress=advance)
            )
    if as_json:
        print_json(results)
    else:
        print_line(finding_table(results))
