"""The command line. Heavy packages are imported inside the commands, so that `sightline --help` is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.alerts import alerts, bench_alerts
from pipeline.cli.backfill import backfill, bench_backfill
from pipeline.cli.compact import bench_consume, compact
from pipeline.cli.footage import forget, ingest, reindex, render, streams, verify
from pipeline.cli.kafka import consume, deadletter, publish
from pipeline.cli.live import cameras, clip, record, watch
from pipeline.cli.questions import ask, demo, keyframes, search
from pipeline.cli.service import model_service
from pipeline.cli.train import train_run
from pipeline.cli.work import bench, evaluate, train
from pipeline.console import complain, configure_logging, explain

__all__ = ["app", "main"]

app = typer.Typer(
    name="sightline",
    help="Ask questions about hours of video.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # importing rich for the help alone would triple its time
)


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks and full logs; may stand anywhere.")] = False,
    config: Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.")] = None,
) -> None:
    configure_logging(debug=debug)
    context.obj = config


for _command in (
    render,
    ingest,
    publish,
    consume,
    backfill,
    *(watch, record, cameras, clip),
    search,
    keyframes,
    ask,
    streams,
    verify,
    reindex,
    compact,
    forget,
    demo,
    evaluate,
):
    app.command()(_command)
bench.command("alerts")(bench_alerts)
bench.command("backfill")(bench_backfill)
bench.command("consume")(bench_consume)
app.command("model-service")(model_service)
app.add_typer(alerts, name="alerts")
app.add_typer(deadletter, name="deadletter")
train.command("run")(train_run)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")


def _debug_first(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` stands anywhere before a `--`, and the arguments with it in front."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [argument for argument in arguments[:end] if argument != "--debug"]
    debug = len(ours) < end
    return debug, [*(["--debug"] if debug else []), *ours, *arguments[end:]]


def main() -> None:
    """Entry point of the `sightline` command: exit code 0, 1 for an error, 2 for wrong usage."""
    debug, arguments = _debug_first(sys.argv[1:])
    try:
        code = app(arguments, prog_name="sightline", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except typer.Abort:
        complain("stopped; nothing was changed")
        sys.exit(1)
    except BrokenPipeError:  # the reader has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.TyperException as error:
        complain(f"{error.format_message().rstrip('.')}; see `sightline --help`")
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(explain(error, debug=debug))


def run() -> None:
    """`main` in a process of its own, which ends at once.

    Arrow reads object stores through Python; a thread of it that is still reading would abort the process while it unwinds.
    """
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    run()
