"""`sightline model-service`: the model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.extras import require_extra
from ingest.shutdown import commit_under_way
from pipeline.cli.options import ProfileName, StoreUrl, settings_of
from pipeline.console import print_line
from pipeline.service.limits import ServiceLimits
from pipeline.service.token import read_token

__all__ = ["app", "model_service"]

app = typer.Typer(rich_markup_mode=None)
_CLOSE_SECONDS = 10.0  # after `--stop-seconds`, before the process is ended


@app.command("model-service")
def model_service(
    context: typer.Context,
    profile: ProfileName = None,
    store: StoreUrl = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; a token is required unless it is a loopback address.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 8080,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the bearer token; default: $SIGHTLINE_SERVICE_TOKEN."),
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, max=10_000, help="Largest number of requests in the queue.")] = 64,
    deadline: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Longest time of a request, in seconds.")
    ] = 120.0,
    body_bytes: Annotated[int, typer.Option(min=1_024, max=2**30, help="Largest body of a request.")] = 2**20,
    stop_seconds: Annotated[
        float, typer.Option(min=0, max=3_600, help="Longest time that a stop waits for admitted requests, in seconds.")
    ] = 30.0,
) -> None:
    """Serve the model over HTTP, for `ask --service`.

    SIGTERM stops the service when the admitted requests are finished.
    """
    require_extra("service", "sightline model-service")
    settings = settings_of(context, store=store, profile=profile)
    token = read_token(token_file or settings.service_token_file, settings.service_token)

    from pipeline.service import store_frames  # loads torch and FastAPI

    with commit_under_way(stop_seconds + _CLOSE_SECONDS):
        store_frames.serve(
            settings.store,
            settings.profile,
            settings.device,
            host=host,
            port=port,
            token=token,
            limits=ServiceLimits(
                waiting=waiting, deadline_seconds=deadline, max_body_bytes=body_bytes, stop_seconds=stop_seconds
            ),
            window_bytes=settings.window_bytes,
            on_listen=lambda url: print_line(f"listening on {url}"),
        )
