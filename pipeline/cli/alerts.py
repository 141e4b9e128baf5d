"""Commands about standing questions: alerts add, list, remove, watch, test; bench alerts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    From,
    Json,
    ProfileName,
    Servers,
    StoreUrl,
    StreamIds,
    To,
    kafka_of,
    opened_store,
    settings_of,
    time_range,
)
from pipeline.console import emit, note, say

if TYPE_CHECKING:
    from index.standing_questions import AlertRule, StandingQuestion
    from ingest.messages import AlertMessage

__all__ = ["alert_line", "alerts", "bench_alerts"]

alerts = typer.Typer(help="Standing questions over new frames.", no_args_is_help=True, rich_markup_mode=None)

Floor = Annotated[
    float | None, typer.Option("--floor", help="Least rise over the camera's usual score; the profile's by default.")
]


def _asked(
    context: typer.Context,
    texts: list[str],
    *,
    store: str | None,
    profile: str | None,
    streams: list[str] | None,
    name: str | None,
    floor: float | None,
) -> list[StandingQuestion]:
    """Texts as questions of the store's own encoder. Raises UsageError, StoreError, ModelError."""
    import time

    from index.errors import UsageError
    from index.standing_questions import AlertRule, make_question
    from index.store import Store
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile

    settings = settings_of(context, store=store, profile=profile)
    if any(not text.strip() for text in texts):
        raise UsageError("the text is empty; say what to look for, as in 'a red car at the gate'")
    if floor is not None and not 0 < floor <= 2:
        raise UsageError(f"--floor must lie between 0 and 2, got {floor}")
    url = Store.open(settings.store).url  # a missing store is said before models are loaded
    chosen = load_profile(settings.profile)
    encoders = load_encoders(chosen, settings.device)
    Store.open(url, encoders=encoders.pair)
    if chosen.notice:
        note(chosen.notice)
    rule: AlertRule = AlertRule(floor=chosen.alert_floor if floor is None else floor)
    return [
        make_question(
            text,
            vector,
            encoders.pair.patch,
            name=name,
            streams=tuple(streams or ()),
            rule=rule,
            created_at=time.time_ns() // 1000,
        )
        for text, vector in zip(texts, encoders.patch.encode_text(texts), strict=True)
    ]


def _shown(question: StandingQuestion) -> dict[str, object]:
    from index.records import rfc3339

    kept = question.model_dump(mode="json", exclude={"vector", "encoder", "created_at"})
    return {**kept, "encoder": question.encoder.name, "created_at": rfc3339(question.created_at)}


def _line(question: StandingQuestion) -> str:
    return f"{question.id}  {question.name}  {', '.join(question.streams) or 'every stream'}  {question.text!r}"


@alerts.command("add")
def add(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for, as in 'a red car at the gate'.")],
    streams: StreamIds = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it; the text by default.")] = None,
    floor: Floor = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Ask every new frame. Workers take it up within seconds; adding the same again changes nothing."""
    from index.standing_questions import StandingQuestionStore

    (question,) = _asked(context, [text], store=store, profile=profile, streams=streams, name=name, floor=floor)
    StandingQuestionStore(opened_store(context, store).url).add(question)
    if as_json:
        emit(_shown(question))
    else:
        say(_line(question))


@alerts.command("list")
def list_(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """Show the standing questions of a store."""
    from index.standing_questions import StandingQuestionStore

    held = StandingQuestionStore(opened_store(context, store).url).questions()
    if as_json:
        emit([_shown(question) for question in held])
        return
    for question in held:
        say(_line(question))
    say(f"{len(held)} standing questions")


@alerts.command("remove")
def remove(
    context: typer.Context,
    which: Annotated[str, typer.Argument(help="Its id or its name.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Ask no longer. Workers drop it within seconds, an open alert is not cleared any more."""
    from index.standing_questions import StandingQuestionStore

    gone = StandingQuestionStore(opened_store(context, store).url).remove(which)
    if as_json:
        emit(_shown(gone))
    else:
        say(f"{gone.id}  {gone.name}: asked no longer")


def _tell(alert: AlertMessage, *, as_json: bool, pictures: Path | None) -> None:
    import json

    from ingest.kafka.alert_reader import save_picture

    saved = save_picture(alert, pictures) if pictures is not None else None
    if as_json:
        fields = alert.model_dump(mode="json", exclude={"picture", "version"}, exclude_none=True)
        say(json.dumps({**fields, **({} if saved is None else {"picture": str(saved)})}, ensure_ascii=False))
    else:
        say(f"{alert_line(alert)}{f'  {saved}' if saved else ''}")


def alert_line(alert: AlertMessage) -> str:
    """An alert for a terminal: state, stream, times, name, score and threshold."""
    when = f"{alert.start:%Y-%m-%dT%H:%M:%SZ}"
    until = f" to {alert.end:%H:%M:%S}" if alert.end else ""
    score = f"{alert.score:.3f} over {alert.threshold:.3f}"
    return f"{alert.state:7}  {alert.stream}  {when}{until}  {alert.name}  {score}"


Pictures = Annotated[Path | None, typer.Option("--pictures", help="Folder for the pictures.")]


@alerts.command("watch")
def watch(
    context: typer.Context,
    servers: Servers = None,
    beginning: Annotated[bool, typer.Option("--beginning", help="From the oldest alert that Kafka keeps.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Stop at the end of what there is.")] = False,
    pictures: Pictures = None,
    as_json: Json = False,
) -> None:
    """Follow the alerts that workers publish, each told once; with --json a line each, until interrupted."""
    import signal
    import threading

    from ingest.kafka.alert_reader import follow

    kafka = kafka_of(settings_of(context), servers)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    for alert in follow(kafka, beginning=beginning, drain=drain, stop=stop):
        _tell(alert, as_json=as_json, pictures=pictures)


@alerts.command("test")
def try_(
    context: typer.Context,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="Ask this instead of the store's questions; may be repeated.")
    ] = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    floor: Floor = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    pictures: Pictures = None,
    as_json: Json = False,
) -> None:
    """Print the alerts that stored frames would have given, by the very scorer of the workers; publishes nothing."""
    from index.errors import UsageError
    from index.standing_questions import StandingQuestionStore
    from ingest.alerts.scorer import replay

    where = time_range(streams, start, end)
    opened = opened_store(context, store)
    if texts:
        asked = _asked(context, texts, store=store, profile=profile, streams=None, name=None, floor=floor)
    else:
        asked = [q for q in StandingQuestionStore(opened.url).questions() if q.encoder == opened.encoders.patch]
        if not asked:
            raise UsageError("the store has no standing question; add one, or pass --text")
        if floor is not None:
            raise UsageError("--floor goes with --text; a stored question has its own")
    raised = 0
    for alert in replay(opened, asked, **where):
        raised += alert.state == "raised"
        _tell(alert, as_json=as_json, pictures=pictures)
    if not as_json:
        say(f"{raised} alerts")


def bench_alerts(
    context: typer.Context,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="A seed of footage; 201 to 203 by default.")] = None,
    minutes: Annotated[float, typer.Option(help="Length of each stream.")] = 20.0,
    cameras: Annotated[int, typer.Option(help="Cameras of each seed.")] = 2,
    work: Annotated[Path | None, typer.Option(help="Folder for footage and stores; kept.")] = None,
    profile: ProfileName = None,
) -> None:
    """Precision and recall of alerts on rendered footage, beside a raw threshold chosen in hindsight."""
    from pipeline.bench.alerts import bench_alerts as run

    emit(
        run(
            settings_of(context, profile=profile).profile,
            seeds=seeds or (201, 202, 203),
            minutes=minutes,
            cameras=cameras,
            work=work,
        )
    )
