"""Commands that query a store: search, keyframes, ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from index.errors import ModelError, UsageError
from index.records import parse_rfc3339, rfc3339
from index.schemas import compose_stream_id
from index.search.scores import ScoredFrames
from index.selectors.registry import SelectorName
from index.selectors.selector import Redundancy
from index.store import Store
from model.answers import Sampling
from model.selection import check_selection
from pipeline.cli.options import (
    Fill,
    Force,
    FrameFolder,
    From,
    HtmlFile,
    Json,
    KeyframeCount,
    ProfileName,
    SheetFile,
    StoreUrl,
    StreamIds,
    Tau,
    To,
    Zone,
    open_store,
    point_in_time,
    settings_of,
    time_range,
)
from pipeline.console import interruptible, print_json, print_line, print_note, working
from pipeline.media.footage import FootageFinder
from pipeline.pictures.answer_report import answer_report
from pipeline.pictures.saving import Outputs, save_file, save_frames
from pipeline.pictures.scaling import to_jpeg
from pipeline.pictures.search_report import search_report
from pipeline.pictures.sheet import Captioned, contact_sheet
from pipeline.pictures.stored import FrameKey, frame_pictures
from pipeline.pictures.uploaded import read_picture
from pipeline.questions.answer_text import answer_lines, keyframe_lines
from pipeline.questions.asker import Asked, Asker, Selection, check_reading
from pipeline.questions.query import NEAR_SECONDS
from pipeline.questions.reference import REFERENCE_FRAMES, answer_as_reference, select_as_reference
from pipeline.questions.search import FoundMoment, SearchResult, find
from pipeline.questions.verification import Verification, not_looked, verify_moments
from pipeline.service.token import read_token
from pipeline.times import parse_day_time, zone_of

__all__ = ["app", "ask", "keyframes", "search"]

app = typer.Typer(rich_markup_mode=None)

Selector = Annotated[
    SelectorName | None, typer.Option("--selector", help="How keyframes are selected; default: that of the profile.")
]
RedundancyRule = Annotated[
    Redundancy | None,
    typer.Option(
        "--redundancy",
        help="When two frames are alike: fixed (the paper's rule), adaptive, or background, for fixed cameras; "
        "default: that of the profile.",
    ),
]

_NAMED = 6  # streams that the head of a report names


def _local_asker(context: typer.Context, store: str | None, profile: str | None, where: Mapping[str, Any]) -> Asker:
    opened = open_store(context, store)  # before the models are loaded, so that wrong usage is reported at once
    opened.check_window(**where)
    settings = settings_of(context, store=store, profile=profile)
    with working(f"loading the models of {settings.profile}"), interruptible("nothing was changed"):
        footage, size = FootageFinder(opened), settings.window_bytes
        return Asker(opened, settings.profile, settings.device, footage=footage, window_bytes=size)


def _service_asker(
    context: typer.Context, store: str | None, profile: str | None, where: Mapping[str, Any], service: str
) -> Asker:
    """An asker that uses the models of a model service. Raises what `ServiceClient` raises."""
    from pipeline.service.client import ServiceClient  # httpx would delay every command without a service

    opened = open_store(context, store)
    opened.check_window(**where)
    settings = settings_of(context)
    token = read_token(settings.service_token_file, settings.service_token)
    client = ServiceClient(service, token)
    if profile not in (None, client.profile.name):
        raise UsageError(f"--profile {profile}: the service runs {client.profile.name}; leave --profile out")
    return Asker(opened, service=client, window_bytes=settings.window_bytes)


def _write_files(
    outputs: Outputs, pictures: Mapping[FrameKey, bytes], cells: Sequence[tuple[FrameKey, str]], title: str
) -> None:
    """Write the contact sheet and the frames that the user wants.

    Args:
        outputs: where to.
        pictures: the pictures of the result.
        cells: the frames of the sheet in their order, and the second line of each caption.
        title: title of the sheet.
    """
    shown = [
        Captioned(pictures[key], f"{key[0]}  {rfc3339(key[1])}", detail) for key, detail in cells if key in pictures
    ]
    if outputs.sheet is not None and not shown:
        print_note("no contact sheet: nothing was found")
    elif outputs.sheet is not None:
        sheet = contact_sheet(shown, title=title, note=f"{len(shown)} frames, times in UTC")
        print_note(f"contact sheet: {save_file(outputs.sheet, sheet, '--sheet')}")
    if outputs.frames is not None:
        saved = save_frames(outputs.frames, pictures, force=outputs.force)
        print_note(f"{len(saved)} frames saved in {outputs.frames}")


def _frame_given(text: str, timezone: str | None) -> FrameKey:
    """The frame of `--like STREAM@TIME`. Raises UsageError."""
    stream, found, when = text.partition("@")
    if not found or not when:
        raise UsageError("--like must be STREAM@TIME, such as gate@2024-03-01T08:00:07Z")
    at = point_in_time(when, "--like", zone_of(timezone))
    return compose_stream_id(stream), 0 if at is None else at


def _verifier(
    context: typer.Context, store: str | None, profile: str | None, where: Mapping[str, Any], service: str | None
) -> Asker | Verification:
    """The asker that verifies moments, or why there is none: a search does not fail because its verifier does."""
    try:
        if remote := service or settings_of(context).service:
            return _service_asker(context, store, profile, where, remote)
        asker = _local_asker(context, store, profile, where)
        with working("loading the language model"), interruptible("nothing was changed"):
            asker.load()
    except ModelError as error:
        return not_looked(str(error))
    return asker


@app.command("search")
def search(
    context: typer.Context,
    text: Annotated[str | None, typer.Argument(help="What to look for, such as 'a red car'.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture to look for: JPEG, PNG, WebP or BMP.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", help="A stored frame to look for, such as gate@2024-03-01T08:00:07Z.")
    ] = None,
    weight: Annotated[
        float, typer.Option("--weight", help="Share of the picture beside a text: 0 is the text alone, 1 the picture.")
    ] = 0.5,
    store: StoreUrl = None,
    streams: StreamIds = None,
    start: From = None,
    end: To = None,
    timezone: Zone = None,
    time_of_day: Annotated[
        str | None, typer.Option("--time-of-day", help="Only frames of this time of the day, such as 22:00-06:00.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Largest number of moments.")] = 10,
    offset: Annotated[int, typer.Option("--offset", help="Number of moments to skip.")] = 0,
    min_percentile: Annotated[
        float,
        typer.Option(
            "--min-percentile",
            help="Only moments that score higher than this share of their stream's frames, 0 to 100.",
        ),
    ] = 0.0,
    verify: Annotated[
        int, typer.Option("--verify", min=0, help="Ask the language model whether the best N moments show the text.")
    ] = 0,
    html: HtmlFile = None,
    sheet: SheetFile = None,
    save_frames: FrameFolder = None,
    force: Force = False,
    profile: ProfileName = None,
    service: Annotated[str | None, typer.Option("--service", help="URL of a model service for --verify.")] = None,
    as_json: Json = False,
) -> None:
    """Find moments that match a text or a picture.

    A moment is one frame, or several neighbouring frames, of one stream. Its bounds do not depend on --top. Beside its
    score is the share of the stream's frames that score less: it ranks the moment within its stream, and does not say
    that the thing is there. --verify asks that: confirmed, rejected, or not looked at and why. A text and a picture
    together search for (1 − weight) · text + weight · picture.
    """
    outputs = Outputs(html, sheet, save_frames, force).check()
    if verify and text is None:
        raise UsageError("--verify needs a text, which the language model is asked about")
    where, zone = time_range(streams, start, end, timezone), zone_of(timezone)
    day_time = None if time_of_day is None else parse_day_time(time_of_day, zone)
    frame = None if like is None else _frame_given(like, timezone)
    settings = settings_of(context, store=store, profile=profile)
    picture = None if image is None else read_picture(image, require_sandbox=settings.require_sandbox)
    verifier = _verifier(context, store, profile, where, service) if verify else None
    with working("searching"), interruptible("nothing was changed"):
        result = find(
            text,
            store=settings.store,
            profile=settings.profile,
            device=settings.device,
            encoders=verifier.encoders if isinstance(verifier, Asker) and verifier.service is None else None,
            picture=picture,
            like=frame,
            weight=weight,
            top=top,
            offset=offset,
            min_percentile=min_percentile,
            day_time=day_time,
            **where,
        )
    moments = _verified(result.moments, text or "", verifier, verify)
    if as_json:
        print_json(moments)
    else:
        for found in moments:
            print_line(_moment_line(found))
        if not moments:
            print_line(f"nothing was found among {result.frames} frames")
    for notice in result.notices:
        print_note(notice)
    if not outputs.wanted:
        return
    opened = open_store(context, store)
    keys = {(m.stream_id, parse_rfc3339(m.best)): f"{m.score:.3f}, {_share(m)}" for m in moments}
    pictures = frame_pictures(opened, list(keys))
    title = f"Search: {text or 'a picture'}"
    if html is not None:
        wanted = [] if picture is None else [(str(image), to_jpeg(Image.fromarray(picture)))]
        if frame is not None:
            wanted += [(f"like {like}", jpeg) for jpeg in _nearest_picture(opened, frame)]
        named = sorted({m.stream_id for m in moments})
        scored = opened.score(result.vector, named, start=where["start"], end=where["end"]) if named else []
        report = search_report(
            moments,
            pictures,
            title=title,
            subtitle=_scored_text(scored),
            wanted=wanted,
            scored=scored,
            facts=_facts(result, time_of_day, min_percentile),
            notices=result.notices,
            zone=zone,
        )
        print_note(f"report: {save_file(html, report, '--html')}")
    _write_files(outputs, pictures, list(keys.items()), title)


def _nearest_picture(store: Store, frame: FrameKey) -> list[bytes]:
    """The picture of the stored frame that `--like` means; none if it was deleted meanwhile."""
    stream, at = frame
    reach = round(NEAR_SECONDS * 1e6)
    window = store.window([stream], at - reach, at + reach + 1)
    nearest = int(np.abs(window.captured_at - at).argmin())
    return list(frame_pictures(store, [(stream, int(window.captured_at[nearest]))]).values())


def _verified(
    moments: list[FoundMoment], text: str, verifier: Asker | Verification | None, count: int
) -> list[FoundMoment]:
    """The moments with what the language model says about the first `count`."""
    if verifier is None:
        return moments
    if isinstance(verifier, Verification):
        looks = [verifier] * len(moments)
    else:
        with working("verifying"), interruptible("nothing was changed"):
            looks = verify_moments(verifier, text, moments, count)
    return [each.model_copy(update={"verification": look}) for each, look in zip(moments, looks, strict=True)]


def _moment_line(found: FoundMoment) -> str:
    line = f"{found.score:6.3f}  {found.stream_id}  {found.start} to {found.end}  best {found.best}"
    look = "" if found.verification is None else f"; {found.verification}"
    return f"{line}  {_share(found)}{look}"


def _share(found: FoundMoment) -> str:
    """The meaning of a score where the stream is named beside it."""
    return found.meaning.replace(f" of the frames of {found.stream_id}", " of its stream")


def _window_text(streams: Sequence[str], first: int, last: int) -> str:
    """Streams and the times of their first and last frame in words."""
    named = ", ".join(streams[:_NAMED]) + (f" and {len(streams) - _NAMED} more" if len(streams) > _NAMED else "")
    return f"{named}, {rfc3339(first)} to {rfc3339(last)} (UTC)"


def _scored_text(scored: Sequence[ScoredFrames]) -> str:
    """The streams of the moments, and the times that were searched, in words."""
    if not scored:
        return "nothing was found"
    ends = [int(each.captured_at[row]) for each in scored for row in (0, -1)]
    return _window_text([each.stream_id for each in scored], min(ends), max(ends))


def _facts(result: SearchResult, time_of_day: str | None, least: float) -> list[tuple[str, str]]:
    """The head of the report of a search."""
    facts = [("moments", str(len(result.moments))), ("frames searched", f"{result.frames:,}")]
    if time_of_day is not None:
        facts.append(("time of day", time_of_day))
    if least:
        facts.append(("least percentile", f"{least:g}"))
    looks = [m.verification.state for m in result.moments if m.verification is not None]
    return facts + ([("confirmed", f"{looks.count('confirmed')} of {len(looks)}")] if looks else [])


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
    selector: Selector = None,
    redundancy: RedundancyRule = None,
    html: HtmlFile = None,
    sheet: SheetFile = None,
    save_frames: FrameFolder = None,
    force: Force = False,
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Select the keyframes for a question, without answering it.

    They are listed stream by stream, in the order of time.
    """
    check_selection(question, k, tau, selector, redundancy)
    outputs = Outputs(html, sheet, save_frames, force).check()
    where = time_range(streams, start, end, timezone)
    asker = _local_asker(context, store, profile, where)
    selection = asker.select(question, k=k, tau=tau, fill=fill, selector=selector, redundancy=redundancy, **where)
    selected = asker.listed(selection)
    if as_json:
        print_json(selected)
    else:
        for line in keyframe_lines(selected):
            print_line(line)
        print_line(selection.summary)
    if selection.notice is not None:
        print_note(selection.notice)
    if outputs.wanted:
        window = len(selection.window)
        asked = Asked(
            question=question,
            answer="",
            keyframes=selected,
            frames=window,
            window_frames=window,
            window_streams=len(selection.window.streams),
            visual_tokens=0,
            timings_seconds=selection.timings,
        )
        _save_answer(asker, asked, selection, outputs, "Sightline keyframes")


def _save_answer(asker: Asker, asked: Asked, selection: Selection, outputs: Outputs, title: str) -> None:
    """Write the files that the user wants of keyframes, and of an answer if there is one."""
    kept = selection.window.take(np.sort(selection.keyframes))
    keys = [(frame.stream_id, parse_rfc3339(frame.captured_at)) for frame in asked.keyframes]
    pictures = dict(zip(keys, asker.store.pictures(kept), strict=True))
    if outputs.html is not None:
        times = selection.window.captured_at
        subtitle = _window_text(selection.window.streams, int(times.min()), int(times.max()))
        report = answer_report(asked, selection, pictures, title=title, subtitle=subtitle)
        print_note(f"report: {save_file(outputs.html, report, '--html')}")
    details = [f"relevance {frame.score:.3f}" for frame in asked.keyframes]
    _write_files(outputs, pictures, list(zip(keys, details, strict=True)), asked.question)


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
    selector: Selector = None,
    redundancy: RedundancyRule = None,
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
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="Ask as the published evaluation of ViLAMP: about one stream, at most 600 frames, spaced evenly "
            "before keyframes are selected; the answer is decoded, not chosen.",
        ),
    ] = False,
    html: HtmlFile = None,
    sheet: SheetFile = None,
    save_frames: FrameFolder = None,
    force: Force = False,
    profile: ProfileName = None,
    service: Annotated[
        str | None, typer.Option("--service", help="URL of a model service that answers; loads no model here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a question, and list the keyframes behind it."""
    check_selection(question, k, tau, selector, redundancy)
    check_reading(options, max_frames)
    if reference and (selector or redundancy or temperature or service):
        raise UsageError(
            "--reference sets the selection and the decoding, and runs the models here; leave --selector, "
            "--redundancy, --temperature and --service out"
        )
    outputs = Outputs(html, sheet, save_frames, force).check()
    where = time_range(streams, start, end, timezone)
    remote = None if reference else service or settings_of(context).service
    if remote is None:
        asker = _local_asker(context, store, profile, where)
        with working("loading the language model"), interruptible("nothing was changed"):
            asker.load()
    else:
        asker = _service_asker(context, store, profile, where, remote)
    on_text = (lambda _: None) if as_json else (lambda piece: print_line(piece, end=""))
    if reference:
        frames = min(max_frames or REFERENCE_FRAMES, REFERENCE_FRAMES)
        selection = select_as_reference(asker, question, k=k, tau=tau, frames=frames, **where)
        asked = answer_as_reference(asker, question, selection, options=options, on_text=on_text)
        _finish(asker, asked, selection, outputs, as_json=as_json)
        return
    selection = asker.select(question, k=k, tau=tau, fill=fill, selector=selector, redundancy=redundancy, **where)
    asked = asker.answer(
        question,
        selection,
        options=options,
        max_frames=max_frames,
        sampling=Sampling(temperature, seed),
        on_text=on_text,
    )
    _finish(asker, asked, selection, outputs, as_json=as_json)


def _finish(asker: Asker, asked: Asked, selection: Selection, outputs: Outputs, *, as_json: bool) -> None:
    """Print an answer, and write the files that the user wants of it."""
    _print_answer(asked, as_json=as_json)
    if outputs.wanted:
        _save_answer(asker, asked, selection, outputs, "Sightline answer")


def _print_answer(asked: Asked, *, as_json: bool) -> None:
    if as_json:
        print_json(asked)
        return
    print_line("\n")
    for line in answer_lines(asked):
        print_line(line)
    for notice in asked.notices:
        print_note(notice)
