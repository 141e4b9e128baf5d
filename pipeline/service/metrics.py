"""Prometheus metrics of the model service, in a registry of their own, so that a process can hold two services."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

__all__ = ["ServiceMetrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 10, 20, 30, 60, 120, 300)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class ServiceMetrics:
    """Counters, gauges and histograms.

    Args:
        depth: returns the number of requests in the queue; called at every scrape.
        running: returns the number of running requests; called at every scrape.
        capacity: largest number of requests in the queue.
    """

    def __init__(self, *, depth: Callable[[], int], running: Callable[[], int], capacity: int) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes and the like
        PlatformCollector(registry=self.registry)

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            """Add a gauge whose value is read at every scrape."""
            Gauge(name, text, registry=self.registry).set_function(value)

        gauge("sightline_queue_depth", "Requests in the queue", depth)
        gauge("sightline_requests_running", "Requests that the model processes", running)
        gauge("sightline_queue_capacity", "Largest number of requests in the queue", lambda: capacity)
        self.requests = Counter(
            "sightline_requests", "Finished requests by route and outcome", ["route", "outcome"], registry=self.registry
        )
        self.queue_seconds = Histogram(
            "sightline_queue_seconds", "Time in the queue", buckets=_SECONDS, registry=self.registry
        )
        self.first_token_seconds = Histogram(
            "sightline_time_to_first_token_seconds",
            "Time from arrival to the first part of the answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.answer_seconds = Histogram(
            "sightline_answer_seconds",
            "Time from arrival to the complete answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.tokens_a_second = Histogram(
            "sightline_tokens_per_second",
            "Tokens of open answers per second of decoding",
            buckets=_RATES,
            registry=self.registry,
        )
        self.tokens = Counter("sightline_tokens", "Tokens by kind", ["kind"], registry=self.registry)
        self.patch_bytes = Counter("sightline_patch_read_bytes", "Patches read from the store", registry=self.registry)
        self._gpu()

    def _gpu(self) -> None:
        import torch

        if not torch.cuda.is_available():
            return
        memory = Gauge("sightline_gpu_memory_bytes", "Memory of the GPU", ["kind"], registry=self.registry)
        memory.labels("allocated").set_function(torch.cuda.memory_allocated)
        memory.labels("reserved").set_function(torch.cuda.memory_reserved)
        memory.labels("peak").set_function(torch.cuda.max_memory_allocated)

    def text(self) -> bytes:
        """The metrics in the Prometheus text format."""
        return generate_latest(self.registry)
