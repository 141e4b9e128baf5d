"""A gate between a test and a process that it starts: the process waits there until the test opens it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Gate"]

_SECONDS = 1800
"""How long a process waits at most, if its test has ended without it."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A folder with a file `held` once a process waits, and a file `open` once it may go on."""

    folder: Path

    @property
    def held(self) -> bool:
        """Whether a process has come to the gate."""
        return (self.folder / "held").exists()

    @property
    def opened(self) -> bool:
        """Whether the process may go on."""
        return (self.folder / "open").exists()

    def open(self) -> None:
        """Let the process go on. Called by the test."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "open").touch()

    def arrive(self) -> None:
        """Note that this process has come to the gate."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "held").touch()

    def wait(self) -> None:
        """Wait until the gate is open. Called by the process."""
        self.arrive()
        deadline = time.monotonic() + _SECONDS
        while not self.opened and time.monotonic() < deadline:
            time.sleep(0.05)
