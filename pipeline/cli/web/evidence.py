"""Commands about evidence: bundles, their verification and key, and the locks that keep footage from deletion."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from index.commits.held import Hold
from index.errors import SourceNotFound, UsageError
from index.records import from_micros, rfc3339
from index.store import Store
from ingest.live.holds import place_marker, remove_marker
from ingest.live.recorder import folder_url
from ingest.segments.clipping import Redaction
from pipeline.access.caller import Caller
from pipeline.access.state import state_folder
from pipeline.audit.log import AuditLog
from pipeline.cli.options import Json, StoreUrl, Zone, settings_of, time_range
from pipeline.console import print_json, print_line, print_note
from pipeline.evidence.bundle import Draft, make_bundle
from pipeline.evidence.signing import SigningKey, VerifyingKey
from pipeline.evidence.verification import verify_bundle
from pipeline.media.footage import FootageFinder

__all__ = ["app", "create", "hold", "holds", "key", "release", "verify"]

app = typer.Typer(
    name="evidence",
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Make and verify bundles of evidence, and hold footage.",
)

State = Annotated[
    Path | None, typer.Option("--state", help="Folder of the signing key; default: one for the store in your home.")
]
Stream = Annotated[str, typer.Option("--stream", help="The stream.")]
From = Annotated[str, typer.Option("--from", help="Start, such as 2024-03-01T08:00:00Z or '2 hours ago'.")]
To = Annotated[str, typer.Option("--to", help="End, exclusive, likewise.")]
Recordings = Annotated[
    list[str] | None, typer.Option("--recordings", help="Folder or bucket of `record --to`, repeatable.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]


def _audit(
    store: str, state: Path, action: str, streams: Sequence[str], detail: Mapping[str, Any], *, outcome: str = "done"
) -> None:
    """Record what the account that runs this command did."""
    caller = Caller(getpass.getuser(), (), via="command")
    with closing(AuditLog.open(store, state)) as log:
        if log.notice is not None:
            print_note(log.notice)
        log.record(caller, action, streams, detail, outcome=outcome)


@app.command("create")
def create(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="The bundle: a file that ends in .zip, or a new folder.")],
    stream: Stream,
    start: From,
    end: To,
    reason: Reason,
    store: StoreUrl = None,
    recordings: Recordings = None,
    footage: Annotated[
        list[Path] | None,
        typer.Option("--footage", help="Folder below which ingested files are searched and opened, repeatable."),
    ] = None,
    question: Annotated[str | None, typer.Option("--question", help="The question that led here.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="Its answer.")] = None,
    blur: Annotated[
        list[str] | None,
        typer.Option("--blur", help="Box to remove: LEFT,TOP,RIGHT,BOTTOM as shares of the picture, repeatable."),
    ] = None,
    timezone: Zone = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Make a signed bundle of a stretch of a stream: clip, pictures, where they come from, and a page.

    The bundle opens offline, and `evidence verify` checks it anywhere. What --blur covers is removed from pictures and
    clip.
    """
    settings = settings_of(context, store=store)
    opened, place = Store.open(settings.store), state_folder(settings.store, state)
    window = time_range([stream], start, end, timezone)
    redactions = [Redaction(window["start"], window["end"], _box(text)) for text in blur or ()]
    draft = Draft(
        stream_id=stream,
        start=window["start"],
        end=window["end"],
        created_by=getpass.getuser(),
        reason=reason,
        question=question,
        answer=answer,
        redactions=redactions,
        zone=timezone or "UTC",
    )
    finder = FootageFinder(opened, [folder_url(each) for each in recordings or ()], footage)
    manifest = make_bundle(opened, finder, SigningKey.load_or_create(place), draft, out, limits=settings.decode_limits)
    _audit(settings.store, place, "export", [stream], {"evidence": manifest.id, "reason": reason, "file": out.name})
    if as_json:
        print_json(manifest)
        return
    clip = "no clip" if manifest.clip is None else f"{manifest.clip.frames} frames of footage"
    print_line(f"{out}: {clip}, {len(manifest.frames)} pictures, signed with {manifest.fingerprint}")
    for notice in manifest.notices:
        print_note(notice)


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--blur {text}: write LEFT,TOP,RIGHT,BOTTOM as shares, such as 0.4,0.1,0.6,0.3") from None
    return left, top, right, bottom


@app.command("verify")
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle, a folder or a .zip file.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key of the installation, from `evidence key`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a bundle is whole and unchanged. Works anywhere, without the store.

    Exits with code 1 if a file is missing, changed or added, if the manifest was changed, or if another key signed it.
    """
    given = None
    if key is not None:
        try:
            given = VerifyingKey.parse(key.read_bytes(), name=str(key))
        except OSError as error:
            raise SourceNotFound(f"{key}: {error.strerror}") from None
    verified = verify_bundle(bundle, given)
    manifest = verified.manifest
    if as_json:
        print_json({"ok": True, "key_given": verified.key_given, "manifest": manifest.model_dump(mode="json")})
        return
    print_line(f"{bundle}: whole and unchanged, {len(manifest.files)} files")
    print_line(f"{manifest.stream_id}, {manifest.start} to {manifest.end}, by {manifest.created_by}: {manifest.reason}")
    print_line(f"signed with {verified.fingerprint}")
    if not verified.key_given:
        print_note(
            "this is the key in the bundle: compare its fingerprint with that of the installation, or pass --key"
        )


@app.command("key")
def key(context: typer.Context, store: StoreUrl = None, state: State = None, as_json: Json = False) -> None:
    """Print the public key of this installation, which checks its bundles. It is made when it is first used."""
    public = SigningKey.load_or_create(state_folder(settings_of(context, store=store).store, state)).public
    if as_json:
        print_json({"fingerprint": public.fingerprint, "public_key": public.pem})
        return
    print_line(public.pem.rstrip())
    print_note(f"fingerprint {public.fingerprint}")


@app.command("hold")
def hold(
    context: typer.Context,
    stream: Stream,
    start: From,
    end: To,
    reason: Reason,
    store: StoreUrl = None,
    recordings: Recordings = None,
    timezone: Zone = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Keep a stretch of a stream from deletion, until it is released.

    Retention, `compact`, `forget` and `record --keep-days` leave it. With --recordings a marker is written there, for a
    `record` that does not know the store.
    """
    settings = settings_of(context, store=store)
    opened = Store.open(settings.store)
    window = time_range([stream], start, end, timezone)
    placed = opened.hold(stream, window["start"], window["end"], reason=reason, placed_by=getpass.getuser())
    for place in recordings or ():
        place_marker(folder_url(place), placed)
    _audit(settings.store, state_folder(settings.store, state), "hold", [placed.stream_id], _detail(placed))
    if as_json:
        print_json(_shown(placed))
    else:
        print_line(f"{placed.id}: {_line(placed)}")


@app.command("release")
def release(
    context: typer.Context,
    hold_id: Annotated[str, typer.Argument(metavar="ID", help="The hold, from `evidence holds`.")],
    reason: Reason,
    store: StoreUrl = None,
    recordings: Recordings = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """End a hold. The reason is recorded in the audit trail."""
    settings = settings_of(context, store=store)
    opened = Store.open(settings.store)
    released = opened.release(hold_id, reason=reason)
    for place in recordings or ():
        if not remove_marker(folder_url(place), hold_id):
            print_note(f"{place} has no marker of this hold")
    detail = {**_detail(released), "held_because": released.reason, "reason": reason}
    _audit(settings.store, state_folder(settings.store, state), "release", [released.stream_id], detail)
    if as_json:
        print_json(_shown(released))
    else:
        print_line(f"{released.id} is released: {_line(released)}")


@app.command("holds")
def holds(
    context: typer.Context,
    store: StoreUrl = None,
    stream: Annotated[str | None, typer.Option("--stream", help="Only those of this stream.")] = None,
    as_json: Json = False,
) -> None:
    """List what is held."""
    found = Store.open(settings_of(context, store=store).store).holds(stream)
    if as_json:
        print_json([_shown(each) for each in found])
        return
    for each in found:
        print_line(f"{each.id}: {_line(each)}")
    if not found:
        print_note("nothing is held")


def _detail(placed: Hold) -> dict[str, Any]:
    return {
        "hold": placed.id,
        "start": rfc3339(placed.start),
        "end": rfc3339(placed.end),
        "reason": placed.reason,
    }


def _shown(placed: Hold) -> dict[str, Any]:
    times = {name: rfc3339(getattr(placed, name)) for name in ("start", "end", "placed_at")}
    return {**placed.model_dump(), **times}


def _line(placed: Hold) -> str:
    return (
        f"{placed.stream_id}, {rfc3339(placed.start)} to {rfc3339(placed.end)}, held by {placed.placed_by} since "
        f"{from_micros(placed.placed_at):%Y-%m-%d}: {placed.reason}"
    )
