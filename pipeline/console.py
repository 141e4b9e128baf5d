"""Output of the commands: results on standard output; errors, notes, logs and progress on standard error.

Credentials are masked in everything that goes to standard error. Light to import: logging and rich are loaded when a
command uses them. Does not know any command.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from index.errors import SightlineError, mask_url
from index.extras import missing_extra

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = [
    "Interrupted",
    "Terminated",
    "configure_logging",
    "interruptible",
    "print_bytes",
    "print_error",
    "print_json",
    "print_line",
    "print_note",
    "progress",
    "report_error",
    "stop_event",
    "terminate_as_interrupt",
    "working",
]

_PERCENTAGE = "{task.percentage:>3.0f} %"
_NARROW = 70  # columns; a narrower terminal shows the name and the percentage of a progress bar alone
_ONE_SIGN = str.maketrans({"×": "x", "−": "-", "…": ".", "–": "-"})
_ASCII = str.maketrans({"×": "x", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "→": "->", "τ": "tau", "–": "-"})


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It ends a command as Ctrl-C does, so that what a command cleans up and says is the same."""


class Interrupted(Exception):
    """A command was interrupted. Typer ends a command without a word on `KeyboardInterrupt`, but passes this on."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(*interrupt.args)
        self.interrupt = interrupt
        """Ctrl-C, or `Terminated`."""


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
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # the stream of the moment, which tests replace
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
    elif isinstance(error, (KeyboardInterrupt, Interrupted)):
        message = f"interrupted; {str(error) or 'what was stored stays; the same command may be run again'}"
        first = error.interrupt if isinstance(error, Interrupted) else error
        code = 128 + (signal.SIGTERM if isinstance(first, Terminated) else signal.SIGINT)  # as a shell reports it
    else:
        message, code = f"{type(error).__name__}: {error}; run again with --debug for the details", 1
    print_error(message)
    return code


def print_error(message: str) -> None:
    """Print one line on standard error, without credentials and without characters that control a terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in mask_url(message))
    _write(sys.stderr, f"sightline: {' '.join(line.split())}\n")


def print_note(message: str) -> None:
    """Print a remark about the result on standard error."""
    _write(sys.stderr, f"note: {mask_url(message)}\n")


def _write(stream: TextIO, text: str) -> None:
    """Write text; signs that the stream's encoding lacks become the nearest ASCII ones, or escapes."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)


def print_json(value: Any) -> None:
    """Print JSON on standard output; `value` may hold pydantic models, lists of them and plain values."""

    def plain(item: Any) -> Any:
        """A value that JSON can represent."""
        return item.model_dump(mode="json") if hasattr(item, "model_dump") else str(item)

    unicode = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, default=plain, indent=1, ensure_ascii=not unicode) + "\n")


def print_bytes(data: bytes) -> None:
    """Write bytes on standard output, as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def print_line(text: str = "", *, end: str = "\n") -> None:
    """Print text for a person on standard output, at once."""
    _write(sys.stdout, text + end)
    sys.stdout.flush()


def terminate_as_interrupt() -> None:
    """From now on, have SIGTERM raise `Terminated` in the main thread."""

    def terminate(*_: object) -> None:
        """Handle the signal."""
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def stop_event() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set, for commands that run until they are interrupted."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


class _AsciiStream(io.TextIOBase):
    """A stream of a terminal that lacks Unicode: signs that it cannot show become ASCII signs of the same width."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich reads it, to draw bars of ASCII signs
        """The encoding of the terminal."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor, from which rich reads the width."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write text."""
        encoding = self._stream.encoding
        return self._stream.write(text.translate(_ONE_SIGN).encode(encoding, "replace").decode(encoding))

    def flush(self) -> None:
        """Write what is buffered."""
        self._stream.flush()


def _progress_console() -> Console:
    from rich.console import Console

    unicode = (sys.stderr.encoding or "utf-8").lower().replace("-", "") == "utf8"
    return Console(stderr=True) if unicode else Console(file=_AsciiStream(sys.stderr))  # type: ignore[arg-type]


@contextmanager
def interruptible(message: str | Callable[[], str]) -> Iterator[None]:
    """Have an interruption of the block (Ctrl-C, SIGTERM) report `message`: what is safe, and how to continue.

    Args:
        message: the message, or a function that returns it at that time.

    Raises:
        KeyboardInterrupt: with the message, when the block is interrupted.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise type(error)(message if isinstance(message, str) else message()) from None


@contextmanager
def working(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show `text` and the seconds since, such as "loading the models", on standard error while the block runs.

    Nothing is shown if `quiet`, or if standard error is not a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = _progress_console()
    spinner = SpinnerColumn("line" if console.options.ascii_only else "dots")
    columns = (spinner, TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(text, total=None)
        yield


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Show a progress bar on standard error; it is hidden if `quiet`, or if standard error is not a terminal.

    Tasks need the field `detail`, a text behind the percentage; a narrow terminal shows neither it nor the bar.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    console = _progress_console()
    name, percentage = TextColumn("{task.description}", table_column=Column(no_wrap=True)), _PERCENTAGE
    columns: list[ProgressColumn] = [name, TextColumn(percentage)]
    if console.width >= _NARROW:
        detail = TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True))
        columns = [name, BarColumn(), TextColumn(percentage), detail, TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        yield bar
