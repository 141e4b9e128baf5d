"""The `sightline` command: a group whose commands are imported when they are called.

`COMMANDS` names the module and the one-line help of each command, so that `sightline --help`, shell completion and the
suggestions for a mistyped name import no command. A command's module defines a `typer.Typer` named `app`, which holds
the command (`ask`), or is the group of that name itself (`alerts`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from ingest.shutdown import limit_stop
from pipeline.console import (
    Interrupted,
    configure_logging,
    print_error,
    print_line,
    report_error,
    terminate_as_interrupt,
)

__all__ = ["COMMANDS", "CommandSource", "LazyGroup", "app", "global_options_first", "load_command", "main", "run"]


@dataclass(frozen=True, slots=True)
class CommandSource:
    """The module that defines a command, and the line that `sightline --help` shows for it."""

    module: str
    """Name of a module of `pipeline.cli`."""
    help: str
    """First sentence of the command's own help, without the full stop."""


COMMANDS = {
    "render": CommandSource("demo", "Render footage of which every event is known"),
    "ingest": CommandSource("ingest", "Index footage, one frame a second"),
    "publish": CommandSource("kafka", "Cut footage into segments and send them to Kafka"),
    "consume": CommandSource("kafka", "Index the segments that cameras and `publish` send to Kafka"),
    "backfill": CommandSource("ingest", "Index an archive with Apache Beam"),
    "watch": CommandSource("live", "Index live cameras, one frame a second, and report alerts"),
    "record": CommandSource("live", "Keep the compressed video of live cameras"),
    "cameras": CommandSource("live", "Show the state of the cameras of `watch` or `record`"),
    "clip": CommandSource("live", "Cut a playable clip from a recording, or from the file that was ingested"),
    "search": CommandSource("ask", "Find moments that match a text or a picture"),
    "keyframes": CommandSource("ask", "Select the keyframes for a question, without answering it"),
    "ask": CommandSource("ask", "Answer a question, and list the keyframes behind it"),
    "streams": CommandSource("store", "List the streams of a store"),
    "verify": CommandSource("store", "Check a store for errors"),
    "export": CommandSource("store", "Write frame vectors and metadata as .npy and Parquet files"),
    "import": CommandSource("ingest", "Store frame vectors and metadata that `export` or clip-retrieval wrote"),
    "index": CommandSource("index.group", "Build the index of a large store"),
    "reindex": CommandSource("store", "Build the FAISS shards again from the Parquet tables"),
    "compact": CommandSource("store", "Merge the small files of a store, and delete what the retention does not allow"),
    "forget": CommandSource("store", "Delete streams, or their older part, permanently"),
    "evidence": CommandSource("web.evidence", "Make and verify bundles of evidence, and hold footage"),
    "demo": CommandSource("demo", "Try Sightline on rendered footage, and write a report"),
    "eval": CommandSource("eval.group", "Measure answers on benchmarks, on rendered footage and on needles"),
    "serve": CommandSource("web.serve", "Serve the investigator's desk: a web page and an API over one store"),
    "users": CommandSource("web.users", "Manage the users of the desk"),
    "audit": CommandSource("web.audit", "Read, export and verify the audit trail"),
    "mcp": CommandSource(
        "web.mcp", "Serve tools for language models (MCP): list_streams, search, ask, keyframes, moment"
    ),
    "model-service": CommandSource("service", "Serve the model over HTTP, for `ask --service`"),
    "alerts": CommandSource("alerts", "Manage standing questions, and follow their alerts"),
    "deadletter": CommandSource("kafka", "List, show and replay the messages that could not be stored"),
    "doctor": CommandSource("doctor", "Show what this machine has: the decoder's sandbox, versions, extras"),
    "train": CommandSource("train", "Train models"),
    "bench": CommandSource("bench.commands", "Run benchmarks; they print JSON"),
}


def load_command(name: str) -> TyperCommand | TyperGroup:
    """Import the module of a command and return the command.

    Raises:
        KeyError: there is no command of this name.
    """
    module = import_module(f"pipeline.cli.{COMMANDS[name].module}")
    group = get_group(module.app)
    command: Any = group if group.name == name else group.commands[name]
    command.name = name
    return command  # type: ignore[no-any-return]


class LazyGroup(TyperGroup):
    """A group that lists the commands of `COMMANDS`, and imports the one that is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, source in COMMANDS.items():
            self.add_command(TyperCommand(name, help=source.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that `args` begin with; an unknown name raises a usage error with similar names."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises Interrupted, with the message of `pipeline.console.interruptible`, on Ctrl-C
        and SIGTERM."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(error) from None


app = typer.Typer(
    name="sightline",
    cls=LazyGroup,
    help="Ask questions about hours of video.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would triple the time of `sightline --help`
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        print_line(f"sightline {version('sightline')}")
    except PackageNotFoundError:
        print_line("sightline, run from a source tree that is not installed")
    raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print tracebacks and all logs. May follow the command.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file with settings. May follow the command.")
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    configure_logging(debug=debug)
    context.obj = config


def global_options_first(arguments: Sequence[str]) -> list[str]:
    """Move `--debug` and `--config FILE` to the front, from wherever they are before a `--`.

    `watch` and `record` have a `--config` of their own, which names the list of cameras; behind one of these two only
    `--debug` is moved.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front: list[str] = []
    rest: list[str] = []
    pending = list(reversed(arguments[:end]))
    while pending:
        argument = pending.pop()
        command = next((word for word in rest if not word.startswith("-")), None)
        movable = command not in ("watch", "record")
        if argument == "--debug":
            front.insert(0, argument)
        elif movable and argument == "--config" and pending:
            front += [argument, pending.pop()]
        elif movable and argument.startswith("--config="):
            front.append(argument)
        else:
            rest.append(argument)
    return [*front, *rest, *arguments[end:]]


def main() -> None:
    """Run the command of `sys.argv` and exit.

    The exit code is 0 for success, 1 for an error, 2 for wrong usage, and that of a shell for a command that a signal
    ended: 130 for SIGINT, 143 for SIGTERM. Commands that run until they are stopped end with 0.
    """
    limit_stop()
    terminate_as_interrupt()
    arguments = global_options_first(sys.argv[1:])
    debug = "--debug" in arguments[:1]
    if not debug:  # Delta's client reads it when a command is imported; its failures become errors of ours
        os.environ.setdefault("RUST_LOG", "off")
    try:
        code = app(arguments, prog_name="sightline", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except typer.Abort:
        print_error("stopped; nothing was changed")
        sys.exit(1)
    except BrokenPipeError:  # the reader of standard output has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        print_error(
            f"{message} See `sightline --help`" if message.endswith("?") else f"{message}; see `sightline --help`"
        )
        sys.exit(error.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_error(error, debug=debug))


def run() -> None:
    """Run `main` and end the process at once; the entry point of the installed command.

    Arrow reads object stores through Python: a thread that is still reading would abort the process while the
    interpreter shuts down.
    """
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    run()
