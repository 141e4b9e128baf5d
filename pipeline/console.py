"""What every command shares: errors in one line, logs without secrets, JSON out, progress on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from index.errors import SightlineError, mask_url
from index.extras import missing_extra

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["complain", "configure_logging", "emit", "explain", "note", "progress", "say"]


def _masked(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {key: mask_url(value) if isinstance(value, str) else value for key, value in event.items()}


def configure_logging(*, debug: bool) -> None:
    """Log to standard error, credentials masked; without `debug` warnings and worse only."""
    import logging
    import warnings

    import structlog

    level = logging.DEBUG if debug else logging.WARNING
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _masked,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    if not debug:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours are enough
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)
        for name in ("transformers", "open_clip"):
            logging.getLogger(name).setLevel(logging.ERROR)


def explain(error: BaseException, *, debug: bool) -> int:
    """Print one line for `error` and return the exit code; with `debug` the traceback comes first."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error) or error
    if isinstance(error, SightlineError):
        message, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, code = "interrupted; running the same command again goes on where it stopped", 130
    else:
        message, code = f"{type(error).__name__}: {error}; run again with --debug for the details", 1
    complain(message)
    return code


def complain(message: str) -> None:
    """One line on standard error, without credentials and without what could steer a terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in mask_url(message))
    sys.stderr.write(f"sightline: {' '.join(line.split())}\n")


def note(message: str) -> None:
    """Something to know beside a result, on standard error."""
    sys.stderr.write(f"note: {mask_url(message)}\n")


def emit(value: Any) -> None:
    """JSON on standard output; pydantic models, lists of them and plain values."""

    def plain(item: Any) -> Any:
        return item.model_dump(mode="json") if hasattr(item, "model_dump") else str(item)

    sys.stdout.write(json.dumps(value, default=plain, indent=1, ensure_ascii=False) + "\n")


def say(text: str = "", *, end: str = "\n") -> None:
    """A line for people on standard output."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A rich progress bar on standard error; silent where that is no terminal."""
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
