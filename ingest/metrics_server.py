"""`/metrics` for Prometheus: what a command counts beside what its process does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from index.errors import UsageError

__all__ = ["serve_metrics"]


class _Both:
    def __init__(self, own: Any) -> None:
        self._own = own

    def collect(self) -> Iterator[Any]:
        yield from REGISTRY.collect()  # memory, CPU, the alerts that were raised
        yield from self._own.collect()


def serve_metrics(own: Any, port: int) -> int:
    """Serve what `own.collect()` gives on all addresses, in a thread; the port, which differs where 0 was asked for.

    Raises:
        UsageError: the port is taken.
    """
    both = CollectorRegistry()
    both.register(_Both(own))
    try:
        server, _ = start_http_server(port, registry=both)
    except OSError as error:
        raise UsageError(f"--metrics-port {port}: {error.strerror or error}; choose another") from None
    return int(server.server_port)
