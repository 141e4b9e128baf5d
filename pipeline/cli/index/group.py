"""The group `sightline index`: build and drop the large index of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import Json, Quiet, StoreUrl, open_store, run_every
from pipeline.console import print_json, print_line, progress

__all__ = ["app"]

app = typer.Typer(name="index", help="Build the index of a large store.", rich_markup_mode=None)


@app.command("build")
def build_command(
    context: typer.Context,
    store: StoreUrl = None,
    every: Annotated[
        float | None, typer.Option("--every", min=1, help="Repeat every so many seconds until interrupted.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build the index of a store of millions of frames, or bring it up to date.

    Searches of more than 100,000 frames use it. It adds the frames that it lacks, removes what was deleted, and builds
    damaged parts again. A build that is stopped continues with the next one. Frames that are not in it yet are found
    all the same, but slower. Safe while other processes write to the store or read it.
    """

    def run() -> None:
        """Build once."""
        opened = open_store(context, store)
        with progress(quiet=quiet or as_json) as bar:
            task = bar.add_task("index", total=None, detail="")
            built = opened.vectors.large.build(
                on_progress=lambda done, of: bar.update(task, completed=done, total=of, detail=f"{done:,} frames")
            )
        if as_json:
            print_json(built)
        else:
            print_line(
                f"{built.rows} frames added, {built.removed} removed, {built.shards} shards written"
                + (", codebook trained" if built.trained else "")
            )

    run_every(every, run)


@app.command("drop")
def drop_command(context: typer.Context, store: StoreUrl = None) -> None:
    """Delete the index of a store. Searches compare every frame again."""
    open_store(context, store).vectors.large.catalog.drop()
    print_line("the index was deleted")
