"""Commands about standing questions and their alerts: alerts add, list, remove, watch, test."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from index.errors import UnknownStream, UsageError
from index.records import rfc3339
from index.standing_questions import AlertRule, StandingQuestion, StandingQuestionStore, make_question
from index.store import Store
from ingest.alerts.pictures import save_picture
from ingest.alerts.scorer import replay
from ingest.alerts.statistics import ScoreStatistics
from ingest.kafka.reachability import check_brokers
from ingest.messages import AlertMessage
from model.profiles.profile import load_profile
from pipeline.cli.options import (
    From,
    Json,
    ProfileName,
    Servers,
    StoreUrl,
    StreamIds,
    To,
    Zone,
    kafka_settings,
    load_models,
    open_store,
    settings_of,
    time_range,
    validate,
)
from pipeline.console import print_json, print_line, print_note, stop_event

__all__ = [
    "alert_line",
    "alerts_add",
    "alerts_list",
    "alerts_remove",
    "alerts_test",
    "alerts_watch",
    "app",
    "statistics_line",
]

_LISTED_SCORES = 20

app = typer.Typer(
    name="alerts",
    help="Manage standing questions, and follow their alerts.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Floor = Annotated[
    float | None,
    typer.Option(
        "--floor", help="Smallest rise over the stream's usual score that can raise an alert; default: the profile's."
    ),
]
WarmUp = Annotated[
    int | None,
    typer.Option(
        "--warm-up", help="Frames of a stream before its first alert, which teach its usual score; default: 300."
    ),
]
Pictures = Annotated[Path | None, typer.Option("--pictures", help="Folder for the pictures of the alerts.")]


def _make_questions(
    context: typer.Context,
    texts: list[str],
    *,
    store: str | None,
    profile: str | None,
    streams: list[str] | None,
    name: str | None,
    floor: float | None,
    warm_up: int | None,
) -> list[StandingQuestion]:
    """Encode texts as standing questions with the store's encoder. Raises UsageError, StoreError, ModelError."""
    settings = settings_of(context, store=store, profile=profile)
    if any(not text.strip() for text in texts):
        raise UsageError("the text is empty; say what to look for, as in 'a red car at the gate'")
    if floor is not None and not 0 < floor <= 2:
        raise UsageError(f"--floor must lie between 0 and 2, got {floor}")
    given = {name: value for name, value in (("floor", floor), ("warm_up", warm_up)) if value is not None}
    validate(AlertRule, given, "--warm-up")
    url = Store.open(settings.store).url  # before the models are loaded, so that a missing store is reported at once
    chosen = load_profile(settings.profile)
    encoders = load_models(settings)
    Store.open(url, encoders=encoders.pair)
    if chosen.notice:
        print_note(chosen.notice)
    rule = AlertRule.model_validate({"floor": chosen.alert_floor, **given})
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


def _question_fields(question: StandingQuestion) -> dict[str, object]:
    fields = question.model_dump(mode="json", exclude={"vector", "encoder", "created_at"})
    return {**fields, "encoder": question.encoder.name, "created_at": rfc3339(question.created_at)}


def _question_line(question: StandingQuestion) -> str:
    return f"{question.id}  {question.name}  {', '.join(question.streams) or 'every stream'}  {question.text!r}"


@app.command("add")
def alerts_add(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for, as in 'a red car at the gate'.")],
    streams: StreamIds = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the question; default: its text.")] = None,
    floor: Floor = None,
    warm_up: WarmUp = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Add a standing question, which is compared with every new frame.

    Running workers apply it within seconds. Adding the same question again changes nothing.
    """
    (question,) = _make_questions(
        context, [text], store=store, profile=profile, streams=streams, name=name, floor=floor, warm_up=warm_up
    )
    opened = open_store(context, store)
    StandingQuestionStore(opened.url).add(question)
    for stream in question.streams:
        try:
            opened.check_scope([stream])
        except UnknownStream as error:
            print_note(f"{error}; the question waits for it")
    if as_json:
        print_json(_question_fields(question))
    else:
        print_line(_question_line(question))


@app.command("list")
def alerts_list(context: typer.Context, store: StoreUrl = None, as_json: Json = False) -> None:
    """List the standing questions of a store."""
    questions = StandingQuestionStore(open_store(context, store).url).questions()
    if as_json:
        print_json([_question_fields(question) for question in questions])
        return
    for question in questions:
        print_line(_question_line(question))
    print_line(f"{len(questions)} standing questions")


@app.command("remove")
def alerts_remove(
    context: typer.Context,
    which: Annotated[str, typer.Argument(help="Id or name of the question.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Remove a standing question.

    Running workers stop applying it within seconds. An alert that is raised at that time is not cleared.
    """
    removed = StandingQuestionStore(open_store(context, store).url).remove(which)
    if as_json:
        print_json(_question_fields(removed))
    else:
        print_line(f"{removed.id}  {removed.name}: removed")


def _print_alert(alert: AlertMessage, *, as_json: bool, pictures: Path | None) -> None:
    saved = save_picture(alert, pictures) if pictures is not None else None
    if as_json:
        fields = alert.model_dump(mode="json", exclude={"picture", "version"}, exclude_none=True)
        print_line(json.dumps({**fields, **({} if saved is None else {"picture": str(saved)})}, ensure_ascii=False))
    else:
        print_line(f"{alert_line(alert)}{f'  {saved}' if saved else ''}")


def alert_line(alert: AlertMessage) -> str:
    """An alert as one line of text: state, stream, times, name, score, threshold, and what the score means there."""
    when = f"{alert.start:%Y-%m-%dT%H:%M:%SZ}"
    until = f" to {alert.end:%H:%M:%S}" if alert.end else ""
    score = f"{alert.score:.3f} over {alert.threshold:.3f}"
    if alert.usual is not None and alert.percentile is not None:
        score += f", usual {alert.usual:.3f}, higher than {alert.percentile:.1f} % of the stream's own scores"
    return f"{alert.state:7}  {alert.stream}  {when}{until}  {alert.name}  {score}"


@app.command("watch")
def alerts_watch(
    context: typer.Context,
    servers: Servers = None,
    beginning: Annotated[bool, typer.Option("--beginning", help="Start with the oldest alert in Kafka.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Stop after the newest alert in Kafka.")] = False,
    pictures: Pictures = None,
    as_json: Json = False,
) -> None:
    """Print the alerts that workers publish, each once.

    Runs until it is interrupted. With --json every alert is one line of JSON.
    """
    from ingest.kafka.alert_reader import follow  # needs the extra kafka

    kafka = kafka_settings(settings_of(context), servers)
    check_brokers(kafka)
    for alert in follow(kafka, beginning=beginning, drain=drain, stop=stop_event()):
        _print_alert(alert, as_json=as_json, pictures=pictures)


@app.command("test")
def alerts_test(
    context: typer.Context,
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text to test in place of the store's questions, repeatable."),
    ] = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    timezone: Zone = None,
    floor: Floor = None,
    warm_up: WarmUp = None,
    store: StoreUrl = None,
    profile: ProfileName = None,
    pictures: Pictures = None,
    as_json: Json = False,
) -> None:
    """Print the alerts that stored frames would have raised, and the scores behind them.

    Applies the rule of the workers, and publishes nothing. Where there is no alert, it prints the reason and a floor
    that would have raised one.
    """
    where = time_range(streams, start, end, timezone)
    opened = open_store(context, store)
    opened.check_window(**where)  # before the models are loaded
    if texts:
        questions = _make_questions(
            context, texts, store=store, profile=profile, streams=None, name=None, floor=floor, warm_up=warm_up
        )
    else:
        questions = [q for q in StandingQuestionStore(opened.url).questions() if q.encoder == opened.encoders.patch]
        if not questions:
            raise UsageError("the store has no standing question; add one, or pass --text")
        if floor is not None or warm_up is not None:
            raise UsageError("--floor and --warm-up need --text; a stored question has its own")
    raised = 0
    statistics: list[ScoreStatistics] = []
    for alert in replay(opened, questions, **where, on_statistics=statistics.append):
        raised += alert.state == "raised"
        _print_alert(alert, as_json=as_json, pictures=pictures)
    print_scores = print_note if as_json else print_line
    shown = [each for each in statistics if not (as_json and each.raised)]
    for each in shown[:_LISTED_SCORES]:
        print_scores(statistics_line(each))
    if len(shown) > _LISTED_SCORES:
        print_scores(f"and {len(shown) - _LISTED_SCORES} more; choose with --stream and --text")
    if not statistics:
        print_note("no question applies to these streams; `sightline alerts list` shows the streams of each")
    if not as_json:
        print_line(f"{raised} alerts")


def statistics_line(found: ScoreStatistics) -> str:
    """The scores of a question at a stream as one line, with the reason and a suggestion if it raised no alert."""
    when = rfc3339(found.highest_second * 1_000_000)
    line = (
        f"{found.stream}  {found.name}: usual score {found.median:.3f}, highest {found.highest:.3f} at {when}, "
        f"floor {found.floor:g}"
    )
    if found.raised:
        return f"{line}; {_count(found.raised)}"
    if found.frames <= found.warm_up:
        line += (
            f"; no alert is possible: {found.frames} frames, and the first {found.warm_up} only teach the usual score"
        )
        line += f" (--warm-up {max(10, found.frames // 3)} shortens that)"
    if found.suggested_floor is None:
        return f"{line}; no floor would raise an alert, because the scores vary too much or too little"
    if found.suggested_floor == found.floor:
        return line
    return f"{line}; --floor {found.suggested_floor:g} would raise {_count(found.suggested_raised)}"


def _count(alerts: int) -> str:
    return f"{alerts} alert{'s' * (alerts != 1)}"
