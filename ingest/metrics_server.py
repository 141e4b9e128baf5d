"""The `/metrics` endpoint for Prometheus: a command's own metrics, and those of its process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Metric, start_http_server

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


def serve_metrics(source: MetricsSource, port: int) -> int:
    """Serve the metrics of `source` on all addresses, in a thread.

    Args:
        source: collected at each request.
        port: 0 chooses a free port.

    Returns:
        The port.

    Raises:
        UsageError: the port is in use, or may not be used.
    """
    registry = CollectorRegistry()
    registry.register(_WithProcessMetrics(source))
    try:
        server, _ = start_http_server(port, registry=registry)
    except OSError as error:
        raise UsageError(f"--metrics-port {port}: {error.strerror or error}; choose another port") from None
    return int(server.server_port)
