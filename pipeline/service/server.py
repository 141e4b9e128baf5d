"""The model service as a process: the uvicorn server, its listening socket, and its stop on SIGTERM."""

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

_MAX_CONNECTIONS = 1024
_BACKLOG = 1024
_CLOSE_SECONDS = 5  # for the errors of cancelled requests to be sent


def check_address(host: str, token: SecretStr | None) -> None:
    """Check that a service without a token listens on a loopback address only. Raises UsageError."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} is reachable from other machines, so a token is required: give --token-file or set "
            "SIGHTLINE_SERVICE_TOKEN, or listen on 127.0.0.1"
        )


class _Server(uvicorn.Server):
    """Uvicorn's server, which drains the service on the first signal."""

    def __init__(self, config: uvicorn.Config, service: ModelService) -> None:
        super().__init__(config)
        self._service = service
        self._stopper: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests, and cancel those that take too long, before uvicorn stops."""
        self._service.drain()
        if self._stopper is None:
            # Uvicorn waits until every reply is sent; this thread cancels the requests that take too long.
            self._stopper = threading.Thread(target=self._service.stop, name="sightline-stop", daemon=True)
            self._stopper.start()
        super().handle_exit(sig, frame)


def run_service(
    service: ModelService, *, host: str, port: int, token: SecretStr | None, on_listen: Callable[[int], None]
) -> None:
    """Serve until SIGTERM or SIGINT.

    After the signal new requests are refused. Admitted requests have `limits.stop_seconds` to finish; those that do not
    fail with ServiceUnavailable.

    Args:
        service: the service.
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        token: the service's token, if it has one.
        on_listen: called with the port once the service listens.

    Raises:
        UsageError: there is no token, and the address is not a loopback address.
        ServiceUnavailable: the address is in use, or not an address of this machine.
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
        limit_concurrency=_MAX_CONNECTIONS,
        backlog=_BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(service.limits.stop_seconds) + _CLOSE_SECONDS,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ServiceUnavailable(
            f"cannot listen on {host} port {port} ({error.strerror}); choose another address"
        ) from None
    server = _Server(config, service)
    # These handlers are installed before uvicorn's and restored after them, so that no signal is lost before uvicorn
    # starts, and the signal that it raises again after closing does not kill the process.
    previous = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        on_listen(int(listening.getsockname()[1]))
        server.run(sockets=[listening])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listening.close()
        service.admission.stop(0.0)
