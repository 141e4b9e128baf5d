"""Commands of the model service: the service itself, and its load test under `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ProfileName, StoreUrl, settings_of
from pipeline.cli.work import bench
from pipeline.console import emit, say

__all__ = ["model_service"]

TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the bearer token; else $SIGHTLINE_SERVICE_TOKEN.")
]


def model_service(
    context: typer.Context,
    profile: ProfileName = None,
    store: StoreUrl = None,
    host: Annotated[str, typer.Option(help="Address to listen on; all but loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 chooses a free one.")] = 8080,
    token_file: TokenFile = None,
    waiting: Annotated[int, typer.Option(min=1, max=10_000, help="Most requests in the queue.")] = 64,
    deadline: Annotated[float, typer.Option(min=0.1, max=86_400, help="Longest request, in seconds.")] = 120.0,
    body_bytes: Annotated[int, typer.Option(min=1_024, max=2**30, help="Largest body of a request.")] = 2**20,
    stop_seconds: Annotated[float, typer.Option(min=0, max=3_600, help="Longest wait of a stop.")] = 30.0,
) -> None:
    """Answer over HTTP what `ask` answers here; stops on SIGTERM when what runs is done."""
    from pipeline.service.token import read_token

    settings = settings_of(context, store=store, profile=profile)
    token = read_token(token_file or settings.service_token_file, settings.service_token)

    from pipeline.service.app import ServiceLimits
    from pipeline.service.store_frames import serve

    serve(
        settings.store,
        settings.profile,
        settings.device,
        host=host,
        port=port,
        token=token,
        limits=ServiceLimits(
            waiting=waiting, deadline_seconds=deadline, max_body_bytes=body_bytes, stop_seconds=stop_seconds
        ),
        on_listen=lambda url: say(f"listening on {url}"),
    )


@bench.command("service")
def bench_service(
    context: typer.Context,
    clients: Annotated[int, typer.Option(min=1, max=1_000, help="Clients that ask at once.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long they ask.")] = 180.0,
    minutes: Annotated[float, typer.Option(min=0.2, max=120, help="Footage that is rendered for it.")] = 2.0,
    profile: ProfileName = None,
) -> None:
    """Many clients at a service of their own: latencies, memory over time, and whether any answer was lost or wrong."""
    from pipeline.bench.service import bench_service as run

    emit(run(settings_of(context, profile=profile).profile, clients=clients, seconds=seconds, minutes=minutes))
