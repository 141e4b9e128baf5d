"""A service as a process: the uvicorn server, its listening socket, its connections, and its stop on SIGTERM.

The model service and the desk run on it; `Served` is what it needs of them.

Connections are bounded in number and time, so that clients that send nothing, or half a request, cannot keep others
out: the head of a request must arrive in time, and a connection above the limit takes the place of the oldest one whose
request has not arrived. If all requests have arrived, a few more connections are accepted for health checks alone.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import ClassVar, Protocol

import h11
import uvicorn
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from index.errors import ServiceUnavailable, UsageError
from pipeline.http.hosts import is_loopback
from pipeline.service.limits import ServiceLimits

__all__ = ["GuardedApp", "Served", "check_address", "run_service", "server_config"]

_BACKLOG = 1024
_HEALTH_CONNECTIONS = 64  # above the limit, for health checks
_OTHER_FILES = 256  # file descriptors that are no connections
_UNREAD_SECONDS = 60  # for a client to acknowledge what was sent to it
_CLOSE_SECONDS = 5  # for the errors of cancelled requests to be sent


class GuardedApp(Protocol):
    """A complete ASGI application, with one for the connections above the limit."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

    async def overloaded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer health checks, and refuse all else."""


class Served(Protocol):
    """A service that `run_service` runs."""

    @property
    def app(self) -> GuardedApp:
        """The complete ASGI application."""

    @property
    def limits(self) -> ServiceLimits:
        """Limits of its connections."""

    def drain(self) -> None:
        """Refuse new requests; admitted ones continue. A signal handler calls it."""

    def stop(self) -> bool:
        """Wait up to `limits.stop_seconds` for the admitted requests, cancel the rest; whether all finished."""

    def close(self) -> None:
        """Release what the service holds, after the server has stopped."""


def check_address(host: str, token: SecretStr | None) -> None:
    """Check that a service without a token listens on a loopback address only. Raises UsageError."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"--host {host} is reachable from other machines, so a token is required: give --token-file or set "
            "SIGHTLINE_SERVICE_TOKEN, or listen on 127.0.0.1"
        )


class _Connection(H11Protocol):
    """A connection whose requests must arrive in time; the module's docstring describes the limits."""

    guard: ClassVar[GuardedApp]
    head_seconds: ClassVar[float]
    limit: ClassVar[int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the timer of the first request, and keep the number of connections below the limit."""
        super().connection_made(transport)
        self.opened = self.loop.time()
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.head_seconds, self._late)
        if len(self.connections) > self.limit:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Start the timer of a later request with its first byte, and stop it when the head is complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether no request of this connection, or only a part of one, has arrived."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _make_room(self) -> None:
        others = [each for each in self.connections if isinstance(each, _Connection) and each is not self]
        waiting = [each for each in others if each.is_waiting]
        if waiting:
            oldest = min(waiting, key=lambda each: each.opened)
            self.connections.discard(oldest)
            oldest.transport.abort()
        elif len(others) < self.limit + _HEALTH_CONNECTIONS:
            self.app = self.guard.overloaded
        else:
            self.connections.discard(self)
            self.transport.abort()

    def _late(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server_config(service: Served, tls: tuple[Path, Path] | None = None) -> uvicorn.Config:
    """The configuration of uvicorn for a service, with the limits of its connections.

    Args:
        service: the service.
        tls: files with the certificate and the key; plain HTTP without them.
    """
    limits = service.limits

    class Connection(_Connection):
        """A connection with the limits of this service."""

        guard, head_seconds = service.app, limits.head_seconds
        limit = max(1, min(limits.connections, _allowed_files() - _OTHER_FILES))

    return uvicorn.Config(
        service.app,
        http=Connection,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(limits.stop_seconds) + _CLOSE_SECONDS,
    )


def _allowed_files() -> int:
    """Number of files that this process may open, raised as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > 65_536:
        hard = 65_536
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return hard
    return hard if soft == resource.RLIM_INFINITY else soft


class _Server(uvicorn.Server):
    """Uvicorn's server, which drains the service on the first signal."""

    def __init__(self, config: uvicorn.Config, service: Served) -> None:
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
    service: Served,
    *,
    host: str,
    port: int,
    tls: tuple[Path, Path] | None = None,
    on_listen: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT.

    After the signal new requests are refused. Admitted requests have `limits.stop_seconds` to finish; those that do not
    fail with ServiceUnavailable.

    Args:
        service: the service.
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        tls: files with the certificate and the key; plain HTTP without them.
        on_listen: called with the port once the service listens.

    Raises:
        ServiceUnavailable: the address is in use, or not an address of this machine.
        UsageError: the certificate or the key cannot be read.
    """
    config = server_config(service, tls)
    if tls is not None:
        try:
            config.load()
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(f"{tls[0]}, {tls[1]}: no certificate with its key ({error.strerror or error})") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        # Accepted sockets inherit it: a client that stops reading its reply is disconnected.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_SECONDS * 1_000)
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
        service.close()
