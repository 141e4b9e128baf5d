"""The `/metrics` endpoint for Prometheus: a command's own metrics, and those of its process.

It has no password, so that it listens on a loopback address unless the user names another one. A connection that sends
nothing is closed after some seconds.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app

from index.errors import UsageError

__all__ = ["MetricsSource", "serve_metrics"]


class MetricsSource(Protocol):
    """Something that has metrics, such as a `prometheus_client.CollectorRegistry`."""

    def collect(self) -> Iterable[Metric]:
        """The metrics with their present values."""
        ...


class _WithProcessMetrics:
    """A collector of a source's metrics and those of the default registry: memory, CPU, alerts."""

    def __init__(self, source: MetricsSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """The metrics of both."""
        yield from REGISTRY.collect()
        yield from self._source.collect()


class _Handler(WSGIRequestHandler):
    """Serves one connection, and writes no log."""

    timeout = 10  # seconds without a byte, after which the connection is closed

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """Serves each connection in a thread of its own, which does not keep the process alive."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Write nothing: the client has closed its connection, or sent no request in time."""


class _ServerOfIpv6(_Server):
    """As `_Server`, on an IPv6 address."""

    address_family = socket.AF_INET6


def serve_metrics(source: MetricsSource, port: int, address: str = "127.0.0.1") -> str:
    """Serve the metrics of `source` in a thread.

    Args:
        source: collected at each request.
        port: 0 chooses a free port.
        address: address to listen on; `0.0.0.0` or `::` for all addresses of this machine.

    Returns:
        A line for the user: port and address, and whether other machines can reach it.

    Raises:
        UsageError: the port is in use, or may not be used, or the address is not one of this machine.
    """
    registry = CollectorRegistry()
    registry.register(_WithProcessMetrics(source))
    bare = address.strip("[]")
    kind = _ServerOfIpv6 if ":" in bare else _Server
    try:
        server = make_server(bare, port, make_wsgi_app(registry), server_class=kind, handler_class=_Handler)
    except OSError as error:
        raise UsageError(
            f"--metrics-port {port}, --metrics-address {address}: {error.strerror or error}; choose another one"
        ) from None
    threading.Thread(target=server.serve_forever, name="sightline-metrics", daemon=True).start()
    line = f"metrics on port {server.server_port} of {bare}"
    return line if _is_loopback(bare) else f"{line}, which other machines can reach without a password"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
