"""Commands about the audit trail: audit list, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.errors import StoreNotFound
from index.records import rfc3339
from pipeline.access.state import state_folder
from pipeline.audit.export import export_trail
from pipeline.audit.log import AuditTable, audit_tables
from pipeline.audit.record import ChainedRecord
from pipeline.audit.verification import chain_problems, read_export, verify_trails
from pipeline.cli.options import From, Json, StoreUrl, TimeZone, To, settings_of, time_range
from pipeline.cli.web.users import State
from pipeline.console import print_json, print_line, print_note

__all__ = ["app"]

app = typer.Typer(
    name="audit", rich_markup_mode=None, no_args_is_help=True, help="Read, export and verify the audit trail."
)
User = Annotated[str | None, typer.Option("--user", help="Only records of this user.")]


@app.command("list")
def list_records(
    context: typer.Context,
    user: User = None,
    action: Annotated[str | None, typer.Option("--action", help="Only records of this action.")] = None,
    start: From = None,
    end: To = None,
    timezone: TimeZone = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Most records.")] = 50,
    store: StoreUrl = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """List records of the audit trail, newest first."""
    window = time_range(None, start, end, timezone)
    found: list[ChainedRecord] = []
    for table in _tables(context, store, state):
        found += table.newest(limit, start=window["start"], end=window["end"], user=user, action=action)
    found = sorted(found, key=lambda record: (record.at, record.sequence), reverse=True)[:limit]
    if as_json:
        print_json([{**record.document(), "at": rfc3339(record.at)} for record in found])
        return
    for record in found:
        read = record.document()
        detail = ", ".join(f"{name}={value}" for name, value in read["detail"].items())
        parts = [rfc3339(record.at), record.user, record.origin, record.action, record.outcome]
        print_line("  ".join(_shown(part) for part in [*parts, " ".join(read["streams"]), detail] if part))


@app.command("export")
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    store: StoreUrl = None,
    state: State = None,
) -> None:
    """Write the audit trail as a Parquet file, which `audit verify --file` checks anywhere."""
    tables = _tables(context, store, state)
    for number, table in enumerate(tables):
        place = file if not number else file.with_name(f"{file.stem}-state{file.suffix}")
        print_line(f"{export_trail(table, place)} records in {place}")


@app.command("verify")
def verify(
    context: typer.Context,
    file: Annotated[Path | None, typer.Option("--file", help="An exported file, in place of a store's trail.")] = None,
    store: StoreUrl = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Check that no record of the audit trail was changed, removed or added; exits with code 1 if one was."""
    if file is not None:
        problems = [f"{file}: {problem}" for problem in chain_problems(read_export(file))]
    else:
        _tables(context, store, state, missing=False)
        url = settings_of(context, store=store).store
        problems = verify_trails(url, state_folder(url, state))
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    else:
        for problem in problems:
            print_line(problem)
        print_line(f"{len(problems)} problems" if problems else "no problems")
    if problems:
        raise typer.Exit(1)


def _tables(context: typer.Context, store: str | None, state: Path | None, *, missing: bool = True) -> list[AuditTable]:
    """The trails of a store. Raises StoreNotFound if there is none, unless `missing` is False."""
    url = settings_of(context, store=store).store
    tables = audit_tables(url, state_folder(url, state))
    if not tables and missing:
        raise StoreNotFound(f"{url}: has no audit trail yet; `sightline serve` and `sightline forget` begin one")
    if len(tables) == 2:
        print_note("a part of the trail is in the state folder, from a time when the store could not be written")
    return tables


def _shown(text: str) -> str:
    """A text without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
