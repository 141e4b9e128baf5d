"""Commands that manage the users of a desk: add, list, grant, revoke, password, disable, enable, token, remove.

Each change is recorded in the audit trail in the same transaction: both are made, or none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from index.errors import UsageError
from index.records import rfc3339
from pipeline.access.authentication import Authentication
from pipeline.access.passwords import MAX_PASSWORD_CHARACTERS
from pipeline.access.roles import Action
from pipeline.access.state import state_folder
from pipeline.access.users import User, check_grant, parse_grant
from pipeline.audit.command import command_record
from pipeline.audit.log import AuditLog
from pipeline.cli.options import Json, StoreUrl, settings_of
from pipeline.console import print_json, print_line, print_note

__all__ = ["app"]

app = typer.Typer(name="users", rich_markup_mode=None, no_args_is_help=True, help="Manage the users of the desk.")
State = Annotated[
    Path | None,
    typer.Option("--state", help="Folder of users, history and keys; default: one for the store in your home."),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--password-file", help="File with the password, or - for standard input; default: ask for it."),
]
Name = Annotated[str, typer.Argument(help="Name of the user.")]
Grants = Annotated[
    list[str],
    typer.Option(
        "--grant",
        help="ROLE or ROLE:PATTERN, such as viewer:'gate-*'; repeatable. Roles: viewer, investigator, operator, admin.",
    ),
]


@app.command("add")
def add(
    context: typer.Context,
    name: Name,
    grants: Grants,
    password_file: PasswordFile = None,
    store: StoreUrl = None,
    state: State = None,
) -> None:
    """Add a user.

    From the first user on, the desk requires a log-in; that one must have the role admin for all streams.
    """
    chosen, secret = [parse_grant(text) for text in grants], _password(password_file)
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        authentication.users.add(name, secret, chosen)
        texts = [f"{grant.role}:{grant.pattern}" for grant in chosen]
        trail.append(command_record("users.add", (), {"user": name, "grants": texts}))
    print_line(f"{name} added")


@app.command("list")
def list_users(context: typer.Context, store: StoreUrl = None, state: State = None, as_json: Json = False) -> None:
    """List the users, their roles and their tokens."""
    with _opened(context, store, state) as (authentication, _):
        users = authentication.users.all()
        tokens = {user.name: authentication.tokens.of_user(user.name) for user in users}
    if as_json:
        print_json(
            [
                {
                    **_plain(user),
                    "tokens": [
                        {
                            "id": token.prefix,
                            "name": token.label,
                            "scopes": sorted(token.scopes),
                            "expires_at": _time(token.expires),
                        }
                        for token in tokens[user.name]
                    ],
                }
                for user in users
            ]
        )
        return
    if not users:
        print_note("no users: the desk is open to everybody on this machine, and listens on loopback only")
    for user in users:
        roles = ", ".join(f"{grant.role}:{grant.pattern}" for grant in user.grants) or "no role"
        marks = [*(["disabled"] if user.disabled else []), *([f"from {user.issuer}"] if user.issuer else [])]
        print_line("  ".join([user.name, roles, *marks]))
        for token in tokens[user.name]:
            print_line(
                f"    token {token.prefix}  {token.label}  {', '.join(sorted(token.scopes))}  expires "
                f"{_time(token.expires)}"
            )


@app.command("grant")
def grant(
    context: typer.Context,
    name: Name,
    text: Annotated[str, typer.Argument(metavar="ROLE[:PATTERN]", help="The role, and the streams it is for.")],
    store: StoreUrl = None,
    state: State = None,
) -> None:
    """Give a user a role for a stream or a pattern, in place of the one before."""
    chosen = parse_grant(text)
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        authentication.users.grant(name, chosen)
        trail.append(command_record("users.grant", (), {"user": name, "grant": f"{chosen.role}:{chosen.pattern}"}))
    print_line(f"{name} is {chosen.role} of {chosen.pattern}")


@app.command("revoke")
def revoke(
    context: typer.Context,
    name: Name,
    pattern: Annotated[str, typer.Argument(help="The stream or pattern of the role.")],
    store: StoreUrl = None,
    state: State = None,
) -> None:
    """Take a user's role for a stream or a pattern away."""
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        authentication.users.revoke(name, check_grant(pattern, "viewer").pattern)
        trail.append(command_record("users.revoke", (), {"user": name, "pattern": pattern}))
    print_line(f"{name} has no role for {pattern} any more")


@app.command("password")
def password(
    context: typer.Context, name: Name, password_file: PasswordFile = None, store: StoreUrl = None, state: State = None
) -> None:
    """Set the password of a user, and end its sessions."""
    secret = _password(password_file)
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        authentication.users.set_password(name, secret)
        trail.append(command_record("users.password", (), {"user": name}))
    print_line(f"password of {name} set")


@app.command("disable")
def disable(context: typer.Context, name: Name, store: StoreUrl = None, state: State = None) -> None:
    """Refuse a user, with its sessions and tokens, until it is enabled again."""
    _set_disabled(context, name, store, state, disabled=True)


@app.command("enable")
def enable(context: typer.Context, name: Name, store: StoreUrl = None, state: State = None) -> None:
    """Admit a user that was disabled."""
    _set_disabled(context, name, store, state, disabled=False)


@app.command("token")
def token(
    context: typer.Context,
    name: Name,
    label: Annotated[str, typer.Option("--name", help="What the token is for.")],
    scopes: Annotated[
        list[str],
        typer.Option("--scope", help=f"What the token may do, repeatable: {', '.join(Action)}."),
    ],
    days: Annotated[float, typer.Option("--days", help="Its life, in days.")] = 90.0,
    store: StoreUrl = None,
    state: State = None,
) -> None:
    """Make an API token for a user, and print it. It is shown this once."""
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        authentication.users.get(name)
        made, text = authentication.tokens.make(name, label, scopes, days)
        detail = {"user": name, "name": label, "id": made.prefix, "scopes": sorted(made.scopes), "days": days}
        trail.append(command_record("tokens.make", (), detail))
    print_note(f"the token expires {_time(made.expires)}; it is not shown again")
    print_line(text)


@app.command("remove")
def remove(
    context: typer.Context,
    name: Name,
    revoke_token: Annotated[
        str | None, typer.Option("--token", help="Revoke only this token, such as sl_abcd2345.")
    ] = None,
    store: StoreUrl = None,
    state: State = None,
) -> None:
    """Remove a user with its sessions and tokens, or one of its tokens. Without users the desk is on loopback only."""
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        if revoke_token is None:
            authentication.users.remove(name, last=True)
            trail.append(command_record("users.remove", (), {"user": name}))
        else:
            authentication.tokens.revoke(name, revoke_token)
            trail.append(command_record("tokens.revoke", (), {"user": name, "id": revoke_token}))
    print_line(f"{name if revoke_token is None else revoke_token} removed")


@contextmanager
def _opened(context: typer.Context, store: str | None, state: Path | None) -> Iterator[tuple[Authentication, AuditLog]]:
    """The users and the audit trail of a desk."""
    url = settings_of(context, store=store).store
    place = state_folder(url, state)
    authentication = Authentication(place)
    trail = AuditLog.open(url, place)
    if trail.notice is not None:
        print_note(trail.notice)
    try:
        yield authentication, trail
    finally:
        trail.close()
        authentication.close()


def _set_disabled(context: typer.Context, name: str, store: str | None, state: Path | None, *, disabled: bool) -> None:
    with _opened(context, store, state) as (authentication, trail), authentication.database.transaction():
        authentication.users.disable(name, disabled)
        trail.append(command_record("users.change", (), {"user": name, "disabled": disabled}))
    print_line(f"{name} {'disabled' if disabled else 'enabled'}")


def _password(file: Path | None) -> str:
    """The password of a file or of a prompt; never of the command line, which other users of the machine see."""
    if file is None:
        if not sys.stdin.isatty():
            raise UsageError("standard input is not a terminal; pass the password with --password-file")
        entered: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return entered
    try:
        if str(file) == "-":
            text = sys.stdin.readline(4 * MAX_PASSWORD_CHARACTERS)
        else:
            with file.open(encoding="utf-8") as opened:
                text = opened.readline(4 * MAX_PASSWORD_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{file}: the password file is not readable as UTF-8 text") from None
    return text.rstrip("\r\n")


def _plain(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "grants": [{"pattern": each.pattern, "role": each.role} for each in user.grants],
        "disabled": user.disabled,
        "provider": user.issuer,
        "created_at": _time(user.created),
        "last_login_at": None if user.logged_in is None else _time(user.logged_in),
    }


def _time(seconds: float) -> str:
    return rfc3339(int(seconds) * 1_000_000)
