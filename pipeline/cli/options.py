"""Options that several commands share, and the settings, store and time range that they select."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args
from zoneinfo import ZoneInfo

import typer
from pydantic import BaseModel, ValidationError

from index.errors import StoreError, UsageError, validation_message
from index.patches.codec import PatchEncoding
from index.schemas import check_stream_id
from index.store import Store
from index.tables import normalize_url, store_exists
from ingest.sources.naming import NamePattern, Overlap, time_zone
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from pipeline.console import interruptible, print_error, print_note, stop_event, working
from pipeline.sandbox_check import check_sandbox
from pipeline.settings import Settings, load_settings
from pipeline.times import understand_time, zone_of

if TYPE_CHECKING:
    from ingest.kafka.settings import KafkaSettings

__all__ = [
    "Fill",
    "Force",
    "FrameFolder",
    "From",
    "HtmlFile",
    "Json",
    "KeyframeCount",
    "MetricsAddress",
    "MetricsPort",
    "Names",
    "OverlapChoice",
    "ProfileName",
    "Quiet",
    "RequireSandbox",
    "Servers",
    "SheetFile",
    "StoreUrl",
    "StreamIds",
    "Tau",
    "TimeZone",
    "To",
    "Zone",
    "check_names",
    "check_overlap",
    "check_store",
    "kafka_settings",
    "load_models",
    "open_store",
    "point_in_time",
    "report_sandbox",
    "run_every",
    "settings_of",
    "time_range",
    "validate",
]

ModelType = TypeVar("ModelType", bound=BaseModel)

StoreUrl = Annotated[str | None, typer.Option("--store", help="URL or path of the store.")]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="Model profile: micro, edge, vilamp, videochat_flash, or a TOML file.")
]
StreamIds = Annotated[
    list[str] | None,
    typer.Option("--stream", help="A stream, or a pattern such as 'gate-*', repeatable; default: all."),
]
From = Annotated[
    str | None,
    typer.Option("--from", help="Start, inclusive, such as 2024-03-01T08:00:00Z, 'yesterday 14:00' or '2 hours ago'."),
]
To = Annotated[str | None, typer.Option("--to", help="End, exclusive; written as --from.")]
Zone = Annotated[
    str | None,
    typer.Option("--timezone", help="Zone of times without an offset, such as Europe/Amsterdam; output stays in UTC."),
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="HTML file for the result with its pictures; it opens without a network.")
]
SheetFile = Annotated[
    Path | None, typer.Option("--sheet", help="JPEG file for a contact sheet of the frames of the result.")
]
FrameFolder = Annotated[
    Path | None, typer.Option("--save-frames", help="Folder for the frames of the result, <stream>_<time>.jpg.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace files of --html, --sheet and --save-frames.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Names = Annotated[
    str | None,
    typer.Option(
        "--names",
        help="How file names give stream and time: {stream}_{start:%Y%m%dT%H%M%S}.mp4, "
        "{date}/{hour}/{stream}/{minute}.{second}.mp4; default: found out.",
    ),
]
TimeZone = Annotated[
    str | None,
    typer.Option(
        "--timezone", help="Zone of times in names without an offset, such as Europe/Amsterdam; default: UTC."
    ),
]
OverlapChoice = Annotated[
    str,
    typer.Option(
        "--overlap", help="If two files claim the same seconds of a stream: error, or keep those of the first or last."
    ),
]
Servers = Annotated[str | None, typer.Option("--servers", help="Kafka's host:port, several separated by commas.")]
MetricsPort = Annotated[
    int | None, typer.Option("--metrics-port", min=0, max=65535, help="Serve Prometheus metrics on this port.")
]
MetricsAddress = Annotated[
    str, typer.Option("--metrics-address", help="Address of the metrics, such as 0.0.0.0 for all; it has no password.")
]
RequireSandbox = Annotated[
    bool, typer.Option("--require-sandbox", help="Refuse to run where decoders cannot be confined; see `doctor`.")
]
KeyframeCount = Annotated[
    int | None, typer.Option("--k", help="Largest number of keyframes; default: K of the profile.")
]
Tau = Annotated[float | None, typer.Option("--tau", help="Similarity threshold of DKS; default: τ of the profile.")]
Fill = Annotated[bool, typer.Option("--fill", help="Fill the gaps between keyframes until there are K.")]


def settings_of(
    context: typer.Context,
    *,
    store: str | None = None,
    profile: str | None = None,
    require_sandbox: bool = False,
) -> Settings:
    """The settings of this run: options, then the environment, then the settings file.

    Raises:
        UsageError: a setting is unknown or invalid.
    """
    options = (("store", store), ("profile", profile), ("require_sandbox", require_sandbox or None))
    given = {name: value for name, value in options if value is not None}
    config: Path | None = context.obj
    return load_settings(config).model_copy(update=given)


def report_sandbox(settings: Settings, *, announce: bool = True) -> None:
    """Report which layers confine the decoders on this machine, before anything is read.

    Args:
        announce: print them; else they are only logged, as a warning if a layer that matters is missing.

    Raises:
        SandboxUnavailable: the settings require the sandbox, and a layer that matters is missing.
    """
    posture = check_sandbox(required=settings.require_sandbox)
    if announce and posture.sufficient:
        print_note(f"sandbox of the decoder: {posture}")


def check_overlap(value: str) -> Overlap:
    """The value of `--overlap`. Raises UsageError if it is none of the choices."""
    for choice in get_args(Overlap):
        if value == choice:
            return choice  # type: ignore[no-any-return]  # one of the literals
    raise UsageError(f"--overlap {value}: must be one of {', '.join(get_args(Overlap))}")


def check_names(stream: str | None, names: str | None, timezone: str | None) -> None:
    """Check the options that name streams and times, before models are loaded. Raises UsageError."""
    if stream is not None:
        check_stream_id(stream)
    time_zone(timezone)
    if names is not None:
        NamePattern.parse(names)


def check_store(settings: Settings, encoding: PatchEncoding | None = None) -> None:
    """Check what can be checked of the profile and the store before models are loaded; the store need not exist.

    Raises:
        ProfileInvalid: the profile does not exist, or is invalid.
        StoreError, UsageError: the store cannot be opened, or has another patch encoding.
    """
    load_profile(settings.profile)
    if store_exists(normalize_url(settings.store)):
        Store.open(settings.store, encoding=encoding)


def load_models(settings: Settings, *, quiet: bool = False) -> Encoders:
    """Load the encoders of the settings' profile, and show that it takes its time. Raises ModelError."""
    profile = load_profile(settings.profile)
    with working(f"loading the encoders of {profile.name}", quiet=quiet), interruptible("nothing was changed"):
        return load_encoders(profile, settings.device)


def kafka_settings(settings: Settings, servers: str | None) -> KafkaSettings:
    """The Kafka settings, with the addresses `servers` if they are given."""
    return settings.kafka if servers is None else settings.kafka.model_copy(update={"servers": servers})


def open_store(context: typer.Context, store: str | None) -> Store:
    """The store of the option or the settings, opened without loading any model. Raises StoreError."""
    return Store.open(settings_of(context, store=store).store)


def time_range(
    streams: list[str] | None, start: str | None, end: str | None, timezone: str | None = None
) -> dict[str, Any]:
    """`streams`, `start` and `end` (UTC microseconds) as keyword arguments of `Asker.select`.

    Prints how a text that is not RFC 3339 was understood.

    Raises:
        UsageError: a time or the zone is invalid, or `start` is not before `end`.
    """
    zone, now = zone_of(timezone), datetime.now(UTC)
    low, high = point_in_time(start, "--from", zone, now), point_in_time(end, "--to", zone, now)
    if low is not None and high is not None and low >= high:
        raise UsageError(f"--from {start} is not before --to {end}")
    return {"streams": streams or None, "start": low, "end": high}


def point_in_time(text: str | None, option: str, zone: ZoneInfo | None, now: datetime | None = None) -> int | None:
    """UTC microseconds of an option, None for None; prints how a text that is not RFC 3339 was understood.

    Args:
        text: the value of the option.
        option: its name. Of a local time that happens twice, `--to` means the second, so that a window is whole.
        zone: zone of local times.
        now: the present; read from the clock when None.

    Raises:
        UsageError: see `pipeline.times.understand_time`.
    """
    if text is None:
        return None
    understood = understand_time(text, option, zone=zone, now=now, latest=option == "--to")
    if understood.note is not None:
        print_note(understood.note)
    return understood.micros


def validate(model: type[ModelType], values: dict[str, Any], option: str) -> ModelType:
    """Validate the values of options. Raises UsageError, whose message begins with `option`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{option}: {validation_message(error)}") from None


def run_every(seconds: float | None, run: Callable[[], None]) -> None:
    """Call `run` once, or when `seconds` is given again and again, so many seconds apart, until SIGTERM or SIGINT.

    A StoreError of a call that is repeated is printed, and the next call tries again: there is no store yet, or
    another process does the same work.
    """
    if seconds is None:
        run()
        return
    stop = stop_event()
    while not stop.is_set():
        try:
            run()
        except StoreError as error:
            print_error(str(error))
        stop.wait(seconds)
