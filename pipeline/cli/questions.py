"""Commands that ask the store something: search, keyframes, ask; and the demo that does it all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    opened_store,
    settings_of,
    time_range,
)
from pipeline.console import emit, note, say

if TYPE_CHECKING:
    from pipeline.questions.asker import Asker, Keyframe

__all__ = ["ask", "demo", "keyframes", "search"]

_LISTED = 8


def _asker(context: typer.Context, store: str | None, profile: str | None) -> Asker:
    from pipeline.questions.asker import Asker as AskerClass

    opened = opened_store(context, store)  # a missing store is said before models are loaded
    settings = settings_of(context, store=store, profile=profile)
    return AskerClass(opened, settings.profile, settings.device)


def _service_asker(context: typer.Context, store: str | None, profile: str | None, service: str) -> Asker:
    """An asker whose models are those of a model service. Raises as `ServiceClient`."""
    from index.errors import UsageError
    from pipeline.questions.asker import Asker as AskerClass
    from pipeline.service.client import ServiceClient
    from pipeline.service.token import read_token

    opened = opened_store(context, store)
    settings = settings_of(context)
    token = read_token(settings.service_token_file, settings.service_token)
    client = ServiceClient(service, token)
    if profile not in (None, client.profile.name):
        raise UsageError(f"--profile {profile}: the service runs {client.profile.name}; leave --profile out")
    return AskerClass(opened, service=client)


def _list(frames: Sequence[Keyframe]) -> None:
    for frame in frames:
        say(f"{frame.score:6.3f}  {frame.stream_id}  {frame.captured_at}  +{frame.offset_seconds:.0f} s")


def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for.")],
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    top: Annotated[int, typer.Option("--top", help="Most moments to list.")] = 10,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Find moments that look like a text; neighbouring frames are one moment."""
    from pipeline.questions.search import search as run

    where = time_range(streams, start, end)
    settings = settings_of(context, store=store, profile=profile)
    moments = run(text, store=settings.store, profile=settings.profile, device=settings.device, top=top, **where)
    if as_json:
        emit(moments)
        return
    for found in moments:
        say(f"{found.score:6.3f}  {found.stream_id}  {found.start} to {found.end}  best {found.best}")


def keyframes(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="What the keyframes are for.")],
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    k: KeyframeCount = None,
    tau: Tau = None,
    fill: Fill = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Choose keyframes for a question (DKS) without answering it; listed in time, stream by stream."""
    from model.selection import check_selection

    check_selection(question, k, tau)
    where = time_range(streams, start, end)
    chosen = _asker(context, store, profile).keyframes(question, k=k, tau=tau, fill=fill, **where)
    if as_json:
        emit(chosen)
    else:
        _list(chosen)


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    options: Annotated[list[str] | None, typer.Option("--option", help="An answer to choose from; repeat it.")] = None,
    k: KeyframeCount = None,
    tau: Tau = None,
    fill: Fill = False,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", help="Most frames to read (10,000, or what the profile holds).")
    ] = None,
    profile: ProfileName = None,
    service: Annotated[str | None, typer.Option("--service", help="URL of a model service that answers.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a question and show the moments it rests on."""
    from model.selection import check_selection
    from pipeline.questions.asker import check_reading

    check_selection(question, k, tau)
    check_reading(options, max_frames)
    where = time_range(streams, start, end)
    remote = service or settings_of(context).service
    asker = _asker(context, store, profile) if remote is None else _service_asker(context, store, profile, remote)
    asked = asker.ask(
        question,
        options=options,
        max_frames=max_frames,
        k=k,
        tau=tau,
        fill=fill,
        on_text=(lambda _: None) if as_json else (lambda piece: say(piece, end="")),
        **where,
    )
    if as_json:
        emit(asked)
        return
    say("\n")
    best = sorted(asked.keyframes, key=lambda frame: -frame.score)
    _list(best[:_LISTED])
    if len(best) > _LISTED:
        say(f"   and {len(best) - _LISTED} more (--json lists all)")
    say(
        f"{len(best)} keyframes of {asked.frames} frames, {asked.visual_tokens} visual tokens, "
        f"{asked.timings_seconds['total']:.2f} s"
    )
    for text in asked.notices:
        note(text)


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for footage, store and report.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Same seed, same footage and questions.")] = 7,
    minutes: Annotated[float, typer.Option(help="Length of each of the two cameras' files.")] = 20.0,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Render two cameras, ingest them, ask what the renderer knows, and write a report."""
    from pipeline.demo.walkthrough import demo as run
    from pipeline.demo.walkthrough import show

    result = run(out, seed=seed, minutes=minutes, profile=settings_of(context, profile=profile).profile)
    if as_json:
        emit(result)
    else:
        show(result)
