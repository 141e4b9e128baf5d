"""The `sightline` command in the process of a test, and facts about the footage that its tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

BEGAN = datetime(2024, 3, 1, 8, 0, tzinfo=UTC)
LENGTHS = {"front": 24, "back": 12}
FRAMES = sum(LENGTHS.values())


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    code: int
    """Exit code."""
    out: str
    """Standard output."""
    err: str
    """Standard error."""

    @property
    def data(self) -> Any:
        """Standard output, parsed as JSON."""
        return json.loads(self.out)


Command = Callable[..., Result]
