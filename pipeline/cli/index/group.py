"""The group `sightline index`: build and drop the large index of a store."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from typing import Annotated

import typer

from index.errors import UsageError
from index.extras import require_extra
from index.search.ann.builder import SHARD_ROWS
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
    runner: Annotated[
        str | None,
        typer.Option(
            "--runner", help="Write the shards with Beam: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner."
        ),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of Apache Beam, after `--`.", metavar="[-- BEAM]")
    ] = None,
    shard_frames: Annotated[
        int, typer.Option("--shard-frames", min=1, help="Most frames of a shard, the unit of work.")
    ] = SHARD_ROWS,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Build the index of a store of millions of frames, or bring it up to date.

    Searches of more than 100,000 frames use it. It adds the frames that it lacks, removes what was deleted, and builds
    damaged parts again. A build that is stopped continues with the next one. Frames that are not in it yet are found
    all the same, but slower. Safe while other processes write to the store or read it. With `--runner`, the workers
    of a cluster write the shards; the codebook is trained here.
    """

    if runner is not None:
        require_extra("beam", "sightline index build --runner")
    elif options:
        raise UsageError("options of Apache Beam need --runner")

    def run() -> None:
        """Build once."""
        opened = open_store(context, store)
        with progress(quiet=quiet or as_json) as bar:
            task = bar.add_task("index", total=None, detail="")
            if runner is not None:
                job = import_module("pipeline.backfill.index_job")  # loads Apache Beam
                built = job.build_index(opened, runner=runner, options=options or (), shard_rows=shard_frames)
            else:
                built = opened.vectors.large.build(
                    shard_rows=shard_frames,
                    on_progress=lambda done, of: bar.update(task, completed=done, total=of, detail=f"{done:,} frames"),
                )
        if as_json:
            print_json(asdict(built))
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
