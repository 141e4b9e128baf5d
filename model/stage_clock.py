"""Where a question's time goes, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch

__all__ = ["StageClock"]


@dataclass(slots=True)
class StageClock:
    """Seconds by stage; waits for the GPU, whose work is asynchronous, before reading the time."""

    device: torch.device
    began: float = field(default_factory=perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        since = self.now()
        yield
        self.add(name, since)

    def add(self, stage: str, since: float) -> float:
        """Count the time since `since` for `stage`; the time now."""
        now = self.now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now
