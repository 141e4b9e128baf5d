"""`sightline serve`: the investigator's desk, a web page and an API over one store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.errors import UsageError
from index.extras import require_extra
from ingest.shutdown import commit_under_way
from pipeline.access.state import state_folder
from pipeline.cli.options import ProfileName, StoreUrl, settings_of
from pipeline.console import print_line, print_note
from pipeline.service.client import ServiceClient
from pipeline.service.limits import ServiceLimits
from pipeline.service.token import read_token
from pipeline.times import zone_of

__all__ = ["app", "serve"]

app = typer.Typer(rich_markup_mode=None)
_CLOSE_SECONDS = 10.0  # after the stop, before the process is ended
_STOP_SECONDS = 15.0
_UPLOAD_BYTES = 20 * 2**20
_HELD_BYTES = 128 * 2**20


@app.command("serve")
def serve(
    context: typer.Context,
    store: StoreUrl = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; users are required unless it is a loopback address.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 8080,
    recordings: Annotated[
        list[str] | None,
        typer.Option("--recordings", help="Folder or URL of recordings to play moments from, repeatable."),
    ] = None,
    footage: Annotated[
        list[Path] | None,
        typer.Option(
            "--footage",
            help="Folder below which ingested files are opened, repeatable; default: any, or none if there are users.",
        ),
    ] = None,
    service: Annotated[
        str | None, typer.Option("--service", help="URL of a model service that runs the models.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Folder of users, history and keys; default: one for the store in your home."),
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Name under which browsers reach the desk, repeatable."),
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy that speaks TLS is in front of the desk.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="File with the certificate, PEM; the desk then speaks TLS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", help="File with the key of the certificate, PEM.")
    ] = None,
    webhook_networks: Annotated[
        list[str] | None,
        typer.Option("--webhook-network", help="Network in CIDR notation that webhooks may reach, repeatable."),
    ] = None,
    profile: ProfileName = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", help="Zone in which the page shows times at first; default: UTC.")
    ] = None,
) -> None:
    """Serve the investigator's desk: a web page and an API over one store.

    Without --service the models run in this process. SIGTERM stops it when the running question is answered.
    """
    require_extra("web", "sightline serve")
    require_extra("service", "sightline serve")
    settings = settings_of(context, store=store, profile=profile)
    zone_of(timezone)
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together")
    url = service or settings.service
    token = read_token(settings.service_token_file, settings.service_token) if url is not None else None

    from pipeline.access import authentication, oidc  # loads argon2 and authlib
    from pipeline.audit import log  # loads deltalake
    from pipeline.desk import desk  # loads faiss and the store
    from pipeline.web import address, server  # loads FastAPI

    place = state_folder(settings.store, state)
    where = address.DeskAddress(
        host=host,
        allowed_hosts=tuple(allowed_hosts or ()),
        tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        behind_proxy=behind_proxy,
    )
    provider = oidc.OidcLogin(settings.oidc) if settings.oidc.issuer else None
    users = authentication.Authentication(place, oidc=provider)
    where.check(users=users.required)
    trail = log.AuditLog.open(settings.store, place)
    if trail.notice is not None:
        print_note(trail.notice)

    with commit_under_way(_STOP_SECONDS + _CLOSE_SECONDS):
        opened = desk.Desk(
            desk.DeskSettings(
                store=settings.store,
                profile=settings.profile,
                device=settings.device,
                window_bytes=settings.window_bytes,
                recordings=tuple(recordings or ()),
                footage=tuple(footage) if footage else () if users.required else None,
                state=place,
                live=settings.live.folder,
                retention=settings.retention,
                webhook_networks=tuple(webhook_networks or ()),
                timezone=timezone or "UTC",
            ),
            connect=None if url is None else lambda: ServiceClient(url, token),
            audit=trail.record,
            on_close=trail.close,
            database=users.database,
        )
        server.serve(
            opened,
            authentication=users,
            audit_log=trail,
            address=where,
            port=port,
            limits=ServiceLimits(max_body_bytes=_UPLOAD_BYTES, max_held_bytes=_HELD_BYTES, stop_seconds=_STOP_SECONDS),
            on_listen=lambda address: print_line(f"the desk is at {address}; stop it with Ctrl-C"),
        )
