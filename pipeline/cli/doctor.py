"""Command about the machine: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pipeline.cli.options import Json
from pipeline.console import print_error, print_json, print_line

if TYPE_CHECKING:
    from pipeline.diagnosis import Diagnosis

__all__ = ["app", "doctor"]

app = typer.Typer(rich_markup_mode=None)


@app.command("doctor")
def doctor(as_json: Json = False) -> None:
    """Show what this machine has: the decoder's sandbox, versions, extras.

    Exits with code 1 if a layer of the sandbox that matters is missing.
    """
    from pipeline.diagnosis import diagnose  # loads torch

    found = diagnose()
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            print_line(line)
    if not found.sandbox.sufficient:
        print_error("decoders cannot be confined on this machine; use Linux 5.13 or newer with Landlock, see the guide")
        raise typer.Exit(1)


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
