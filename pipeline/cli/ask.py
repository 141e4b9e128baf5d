"""Commands that query a store: search, keyframes, ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from index.errors import UsageError
from model.answers import Sampling
from model.selection import check_selection
from pipeline.cli.options import (
    Fill,
    From,
    Json,
    KeyframeCount,
    ProfileName,
    StoreUrl,
    StreamIds,
    Tau,
    To,
    Zone,
    open_store,
    settings_of,
    time_range,
)
from pipeline.console import interruptible, print_json, print_line, print_note, working
from pipeline.questions.asker import Asker, Keyframe, check_reading
from pipeline.questions.search import find
from pipeline.service.client import ServiceClient
from pipeline.service.token import read_token

__all__ = ["app", "ask", "keyframes", "search"]

app = typer.Typer(rich_markup_mode=None)

_LISTED_KEYFRAMES = 8


def _local_asker(context: typer.Context, store: str | None, profile: str | None, where: Mapping[str, Any]) -> Asker:
    opened = open_store(context, store)  # before the models are loaded, so that wrong usage is reported at once
    opened.check_window(**where)
    settings = settings_of(context, store=store, profile=profile)
    with working(f"loading the models of {settings.profile}"), interruptible("nothing was changed"):
        return Asker(opened, settings.profile, settings.device)


def _service_asker(
    context: typer.Context, store: str | None, profile: str | None, where: Mapping[str, Any], service: str
) -> Asker:
    """An asker that uses the models of a model service. Raises what `ServiceClient` raises."""
    opened = open_store(context, store)
    opened.check_window(**where)
    settings = settings_of(context)
    token = read_token(settings.service_token_file, settings.service_token)
    client = ServiceClient(service, token)
    if profile not in (None, client.profile.name):
        raise UsageError(f"--profile {profile}: the service runs {client.profile.name}; leave --profile out")
    return Asker(opened, service=client)


def _print_keyframes(frames: Sequence[Keyframe]) -> None:
    for frame in frames:
        clock = f"  clock: {frame.clock}" if frame.clock else ""
        print_line(f"{frame.score:6.3f}  {frame.stream_id}  {frame.captured_at}  +{frame.offset_seconds:.0f} s{clock}")


@app.command("search")
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for, such as 'a red car'.")],
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    timezone: Zone = None,
    top: Annotated[int, typer.Option("--top", help="Largest number of moments.")] = 10,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Find moments that match a text.

    A moment is one frame, or several neighbouring frames, of one stream. Its bounds do not depend on --top.
    """
    where = time_range(streams, start, end, timezone)
    settings = settings_of(context, store=store, profile=profile)
    with working("searching"), interruptible("nothing was changed"):
        result = find(text, store=settings.store, profile=settings.profile, device=settings.device, top=top, **where)
    if as_json:
        print_json(result.moments)
    else:
        for found in result.moments:
            print_line(f"{found.score:6.3f}  {found.stream_id}  {found.start} to {found.end}  best {found.best}")
    for notice in result.notices:
        print_note(notice)


@app.command("keyframes")
def keyframes(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question that the keyframes are for.")],
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    timezone: Zone = None,
    k: KeyframeCount = None,
    tau: Tau = None,
    fill: Fill = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Select the keyframes for a question, without answering it.

    They are listed stream by stream, in the order of time.
    """
    check_selection(question, k, tau)
    where = time_range(streams, start, end, timezone)
    selected = _local_asker(context, store, profile, where).keyframes(question, k=k, tau=tau, fill=fill, **where)
    if as_json:
        print_json(selected)
    else:
        _print_keyframes(selected)


@app.command("ask")
def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question.")],
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    timezone: Zone = None,
    options: Annotated[
        list[str] | None, typer.Option("--option", help="A possible answer, repeatable; the model picks one of them.")
    ] = None,
    k: KeyframeCount = None,
    tau: Tau = None,
    fill: Fill = False,
    max_frames: Annotated[
        int | None,
        typer.Option(
            "--max-frames", help="Largest number of frames to read; default: 10,000, or as many as the model can hold."
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=5, help="Draw the words of an open answer, the freer the higher; 0: the likeliest."),
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of --temperature, to repeat an answer; default: a random one.")
    ] = None,
    profile: ProfileName = None,
    service: Annotated[
        str | None, typer.Option("--service", help="URL of a model service that answers; loads no model here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a question, and list the keyframes behind it."""
    check_selection(question, k, tau)
    check_reading(options, max_frames)
    where = time_range(streams, start, end, timezone)
    remote = service or settings_of(context).service
    if remote is None:
        asker = _local_asker(context, store, profile, where)
        with working("loading the language model"), interruptible("nothing was changed"):
            asker.load()
    else:
        asker = _service_asker(context, store, profile, where, remote)
    asked = asker.ask(
        question,
        options=options,
        max_frames=max_frames,
        sampling=Sampling(temperature, seed),
        k=k,
        tau=tau,
        fill=fill,
        on_text=(lambda _: None) if as_json else (lambda piece: print_line(piece, end="")),
        **where,
    )
    if as_json:
        print_json(asked)
        return
    print_line("\n")
    best = sorted(asked.keyframes, key=lambda frame: -frame.score)
    _print_keyframes(best[:_LISTED_KEYFRAMES])
    if len(best) > _LISTED_KEYFRAMES:
        print_line(f"   and {len(best) - _LISTED_KEYFRAMES} more (--json lists all)")
    print_line(
        f"{len(best)} keyframes of {asked.frames} frames, {asked.visual_tokens} visual tokens, "
        f"{asked.timings_seconds['total']:.2f} s"
    )
    for notice in asked.notices:
        print_note(notice)
