"""Limits of a model service."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ServiceLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """Limits that protect the model service from its clients."""

    waiting: int = 64
    """Largest number of requests in the queue, besides the one that runs."""
    deadline_seconds: float = 120.0
    """Longest time of a request, the wait in the queue included; also the time of a request that names none."""
    max_body_bytes: int = 2**20
    """Largest body of a request."""
    max_held_bytes: int = 64 * 2**20
    """Largest size of all bodies together that are arriving; a request beyond it gets status 503."""
    head_seconds: float = 10.0
    """Longest time for the head of a request to arrive; then the connection is closed."""
    body_seconds: float = 30.0
    """Longest time for a body to arrive."""
    connections: int = 1024
    """Largest number of connections. The next one takes the place of the oldest whose request has not arrived."""
    stop_seconds: float = 30.0
    """Longest time that a stop waits for the admitted requests."""
