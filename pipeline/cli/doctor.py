"""Command about the machine: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from model.profiles.profile import load_profile
from pipeline.cli.options import Json, StoreUrl, settings_of
from pipeline.console import print_error, print_json, print_line

if TYPE_CHECKING:
    from pipeline.diagnosis import Diagnosis
    from pipeline.readiness import Readiness

__all__ = ["app", "doctor"]

app = typer.Typer(rich_markup_mode=None)


@app.command("doctor")
def doctor(
    context: typer.Context,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", help="Check too whether this machine can run this profile, before the first question."
        ),
    ] = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Show what this machine has: the decoder's sandbox, versions, extras.

    With --profile also whether its weights are here or can be fetched, whether the memory holds the models, how many
    hours fit on the disk, and what will happen. Exits with code 1 if a layer of the sandbox that matters is missing, or
    the profile cannot work.
    """
    from pipeline.diagnosis import diagnose  # loads torch

    chosen = None if profile is None else load_profile(profile)
    found = diagnose(chosen, settings_of(context, store=store).store)
    ready = found.readiness
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            print_line(line)
        for line in () if ready is None else _ready_lines(ready):
            print_line(line)
    if not found.sandbox.sufficient:
        print_error("decoders cannot be confined on this machine; use Linux 5.13 or newer with Landlock, see the guide")
        raise typer.Exit(1)
    if ready is not None and not ready.works:
        print_error(f"the profile {ready.profile} cannot work on this machine: {ready.outlook}")
        raise typer.Exit(1)


def _ready_lines(ready: Readiness) -> list[str]:
    checks = [f"{'works' if each.works else 'FAILS':6} {each.name}: {each.text}" for each in ready.checks]
    return ["", f"Profile {ready.profile}", *checks, f"then   {ready.outlook}"]


def _lines(found: Diagnosis) -> list[str]:
    absent = [scheme for scheme, there in found.schemes.items() if not there]
    rows = [
        *((f"sandbox: {name}", why or "holds") for name, why in found.sandbox.layers.items()),
        ("system", f"{found.system}, Python {found.python}"),
        ("ffmpeg", f"{found.ffmpeg}; live sources: {', '.join(s for s, there in found.schemes.items() if there)}"),
        *((f"no {scheme}://", "this build of FFmpeg lacks the protocol") for scheme in absent),
        *found.packages.items(),
        ("cuda", f"{found.cuda or 'none'}; GPUs: {', '.join(found.gpus) or 'none'}; of faiss: {found.faiss_gpus}"),
        *(
            (f"extra {extra.name}", f"missing {', '.join(extra.missing)}" if extra.missing else "installed")
            for extra in found.extras
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]
