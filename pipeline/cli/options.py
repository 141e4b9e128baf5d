"""The options that commands share, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from index.store import Store
    from ingest.kafka.settings import KafkaSettings
    from pipeline.settings import Settings

__all__ = [
    "Fill",
    "From",
    "Json",
    "KeyframeCount",
    "ProfileName",
    "Servers",
    "StoreUrl",
    "StreamIds",
    "Tau",
    "To",
    "kafka_of",
    "opened_store",
    "settings_of",
    "time_range",
]

StoreUrl = Annotated[str | None, typer.Option("--store", help="URL or path of the store.")]
ProfileName = Annotated[str | None, typer.Option("--profile", help="micro, edge, vilamp, or a TOML file.")]
StreamIds = Annotated[list[str] | None, typer.Option("--stream", help="A stream; may be repeated. All by default.")]
From = Annotated[str | None, typer.Option("--from", help="RFC 3339 time, inclusive.")]
To = Annotated[str | None, typer.Option("--to", help="RFC 3339 time, exclusive.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
Servers = Annotated[str | None, typer.Option("--servers", help="host:port of Kafka, several separated by commas.")]
KeyframeCount = Annotated[int | None, typer.Option("--k", help="Most keyframes; the profile's K by default (32).")]
Tau = Annotated[
    float | None, typer.Option("--tau", help="Similarity threshold of DKS; the profile's τ by default (0.85).")
]
Fill = Annotated[bool, typer.Option("--fill", help="Fill the gaps between keyframes until there are K.")]


def settings_of(context: typer.Context, *, store: str | None = None, profile: str | None = None) -> Settings:
    """The settings of this run: options over environment over file. Raises UsageError."""
    from pipeline.settings import load_settings

    given = {name: value for name, value in (("store", store), ("profile", profile)) if value is not None}
    config: Path | None = context.obj
    return load_settings(config).model_copy(update=given)


def kafka_of(settings: Settings, servers: str | None) -> KafkaSettings:
    """How to reach Kafka, at `servers` where they are named."""
    return settings.kafka if servers is None else settings.kafka.model_copy(update={"servers": servers})


def opened_store(context: typer.Context, store: str | None) -> Store:
    """The store, opened without any model. Raises StoreError."""
    from index.store import Store as StoreClass

    return StoreClass.open(settings_of(context, store=store).store)


def time_range(streams: list[str] | None, start: str | None, end: str | None) -> dict[str, Any]:
    """`streams`, `start` and `end` (UTC microseconds) as `Asker.select` takes them. Raises UsageError."""
    from index.errors import UsageError
    from pipeline.questions.asker import parse_time

    low, high = parse_time(start, "--from"), parse_time(end, "--to")
    if low is not None and high is not None and low >= high:
        raise UsageError(f"--from {start} is not before --to {end}")
    return {"streams": streams or None, "start": low, "end": high}
