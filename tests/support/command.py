"""The command in the test's own process, and the footage that its tests share."""

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
    """What a command did: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Result]
