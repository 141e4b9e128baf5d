"""`sightline mcp`: tools for language models, over standard input and output or HTTP on loopback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from index.errors import LoginRequired, UsageError
from index.extras import require_extra
from pipeline.access.authentication import Authentication
from pipeline.access.caller import Caller
from pipeline.access.state import state_folder
from pipeline.audit.log import AuditLog
from pipeline.cli.options import ProfileName, StoreUrl, settings_of
from pipeline.console import print_note
from pipeline.http.hosts import is_loopback
from pipeline.service.client import ServiceClient
from pipeline.service.token import read_token

__all__ = ["app", "mcp"]

app = typer.Typer(rich_markup_mode=None)


@app.command("mcp")
def mcp(
    context: typer.Context,
    store: StoreUrl = None,
    http: Annotated[
        int | None,
        typer.Option(
            "--http", min=1, max=65_535, help="Port of 127.0.0.1 to serve HTTP on; default: standard input and output."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address for --http; must be a loopback address.")] = "127.0.0.1",
    service: Annotated[
        str | None, typer.Option("--service", help="URL of a model service that runs the models.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder of users and history; default: that of `serve`.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with an API token; needed if the desk has users, whose role counts."),
    ] = None,
    profile: ProfileName = None,
) -> None:
    """Serve tools for language models (MCP): list_streams, search, ask, keyframes, moment.

    A client starts it, for example with the command `sightline mcp --store STORE`.
    """
    require_extra("mcp", "sightline mcp")
    require_extra("web", "sightline mcp")
    if http is not None and not is_loopback(host):
        raise UsageError(f"--host {host}: the MCP server has no log-in, so it listens on a loopback address only")
    settings = settings_of(context, store=store, profile=profile)
    place = state_folder(settings.store, state)
    url = service or settings.service
    key = read_token(settings.service_token_file, settings.service_token) if url is not None else None

    from pipeline.desk import desk  # loads faiss and the store
    from pipeline.mcp import server  # loads the SDK

    users = Authentication(place)
    token = read_token(token_file, None) if token_file is not None else None

    def who() -> Caller:
        """The caller, whose roles may have changed since the last use."""
        if token is None:
            if users.required:
                raise LoginRequired("the desk has users: give --token-file with an API token")
            return Caller.local(via="mcp")
        caller = users.of_token(token.get_secret_value(), "local")
        if caller is None:
            raise LoginRequired(f"{token_file}: not a valid API token of this desk; make one with `sightline users`")
        return replace(caller, via="mcp")

    who()
    trail = AuditLog.open(settings.store, place)
    opened = desk.Desk(
        desk.DeskSettings(
            store=settings.store,
            profile=settings.profile,
            device=settings.device,
            window_bytes=settings.window_bytes,
            state=place,
        ),
        connect=None if url is None else lambda: ServiceClient(url, key),
        audit=trail.record,
        on_close=trail.close,
        database=users.database,
    )
    opened.warm()
    made = server.make_server(opened, who)
    try:
        if http is None:
            server.run_stdio(made)
        else:
            print_note(f"MCP at http://{host}:{http}/mcp; stop it with Ctrl-C")
            server.run_http(made, host, http)
    finally:
        opened.close()
        users.close()
