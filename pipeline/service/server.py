"""The service as a process: uvicorn, where it listens, and how it stops on SIGTERM."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from pydantic import SecretStr

from index.errors import ServiceUnavailable, UsageError
from pipeline.service.app import ModelService
from pipeline.service.guard import is_loopback

__all__ = ["check_address", "run_service"]

_MOST_CONNECTIONS = 1024
_BACKLOG = 1024
_HANGING_SECONDS = 5  # for answers that were given up to be written


def check_address(host: str, token: SecretStr | None) -> None:
    """Raises UsageError: others could reach `host`, and there is no token."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} can be reached from other machines, so a token is needed: give --token-file or set "
            "SIGHTLINE_SERVICE_TOKEN, or bind to 127.0.0.1"
        )


class _Server(uvicorn.Server):
    """Uvicorn's server that drains the service as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: ModelService) -> None:
        super().__init__(config)
        self._service = service
        self._stopper: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        if self._stopper is None:
            # Uvicorn waits until every answer is written; this thread gives up those that take too long.
            self._stopper = threading.Thread(target=self._service.stop, name="sightline-stop", daemon=True)
            self._stopper.start()
        super().handle_exit(sig, frame)


def run_service(
    service: ModelService, *, host: str, port: int, token: SecretStr | None, on_listen: Callable[[int], None]
) -> None:
    """Serve until SIGTERM or SIGINT; `on_listen` gets the port (the real one when `port` is 0).

    After the signal nothing new is accepted, what was admitted has `limits.stop_seconds`, and the rest is told that
    the service stops.

    Raises:
        UsageError: no token on an address that is not loopback.
        ServiceUnavailable: the address is taken or not ours.
    """
    check_address(host, token)
    config = uvicorn.Config(
        service.app,
        http="h11",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        backlog=_BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(service.limits.stop_seconds) + _HANGING_SECONDS,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ServiceUnavailable(f"cannot listen on {host} port {port} ({error.strerror}); choose another") from None
    server = _Server(config, service)
    # Ours stand before uvicorn's and after them: no signal is lost before it starts, and none that it raises again once
    # all is closed ends the process by force.
    previous = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        on_listen(int(listening.getsockname()[1]))
        server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listening.close()
        service.admission.stop(0.0)
