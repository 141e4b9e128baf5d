"""Output of the commands: results on standard output; errors, notes, logs and progress on standard error.

Credentials are masked in everything that goes to standard error. Light to import: logging and rich are loaded when a
command uses them. Does not know any command.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from index.errors import SightlineError, mask_url
from index.extras import missing_extra

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = [
    "configure_logging",
    "print_error",
    "print_json",
    "print_line",
    "print_note",
    "progress",
    "report_error",
    "stop_event",
]


def _mask_event(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {key: mask_url(value) if isinstance(value, str) else value for key, value in event.items()}


def configure_logging(*, debug: bool) -> None:
    """Send logs to standard error, with credentials masked; only warnings and errors unless `debug`."""
    import structlog  # loads rich, which `sightline --help` does not need

    level = logging.DEBUG if debug else logging.WARNING
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,  # the id of a request to the model service
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _mask_event,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    if not debug:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the commands have progress bars of their own
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)
        for name in ("transformers", "open_clip"):
            logging.getLogger(name).setLevel(logging.ERROR)


def report_error(error: BaseException, *, debug: bool) -> int:
    """Print `error` as one line, after its traceback if `debug`, and return the exit code of the command."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error) or error
    if isinstance(error, SightlineError):
        message, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, code = "interrupted; running the same command again goes on where it stopped", 130
    else:
        message, code = f"{type(error).__name__}: {error}; run again with --debug for the details", 1
    print_error(message)
    return code


def print_error(message: str) -> None:
    """Print one line on standard error, without credentials and without characters that control a terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in mask_url(message))
    sys.stderr.write(f"sightline: {' '.join(line.split())}\n")


def print_note(message: str) -> None:
    """Print a remark about the result on standard error."""
    sys.stderr.write(f"note: {mask_url(message)}\n")


def print_json(value: Any) -> None:
    """Print JSON on standard output; `value` may hold pydantic models, lists of them and plain values."""

    def plain(item: Any) -> Any:
        """A value that JSON can represent."""
        return item.model_dump(mode="json") if hasattr(item, "model_dump") else str(item)

    sys.stdout.write(json.dumps(value, default=plain, indent=1, ensure_ascii=False) + "\n")


def print_line(text: str = "", *, end: str = "\n") -> None:
    """Print text for a person on standard output, at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def stop_event() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set, for commands that run until they are interrupted."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Show a progress bar on standard error; it is hidden if `quiet`, or if standard error is not a terminal.

    Tasks need the field `detail`, a text behind the percentage.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    ) as bar:
        yield bar
