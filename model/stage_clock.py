"""A clock that measures the stages of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch

__all__ = ["StageClock"]


@dataclass(slots=True)
class StageClock:
    """Seconds by stage. Synchronises with the GPU, whose work is asynchronous, before it reads the time."""

    device: torch.device
    """Device whose work is measured."""
    began: float = field(default_factory=perf_counter)
    """Time of creation, as `time.perf_counter` gives it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage so far."""

    def now(self) -> float:
        """The time after all work on the device has ended, as `time.perf_counter` gives it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context manager that adds the time of its block to stage `name`."""
        since = self.now()
        yield
        self.add(name, since)

    def add(self, stage: str, since: float) -> float:
        """Add the time since `since` to `stage`; returns the current time."""
        now = self.now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now
