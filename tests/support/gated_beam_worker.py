"""A Python worker of Beam that a test holds in the middle of a piece, where its task manager is killed.

It is the worker of `pipeline.backfill.beam_worker`. If the task manager that started it is the one that `GATE_VICTIM`
names, it waits before it marks its first piece as finished, after the frames of the piece are staged: until another
worker has finished a piece, and then at the gate in the folder `GATE`. Whatever the speed of the machine, the work of a
victim that is killed meanwhile is begun and unfinished.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pipeline.backfill import beam_worker
from pipeline.backfill.staging import Staging
from tests.support.gate import Gate


def hold(gate: Gate) -> None:
    """Have this process wait at the gate before it finishes a piece."""
    finish = Staging.finish

    def held(self: Staging, *arguments: Any, **named: Any) -> None:
        while not gate.opened and not list(gate.folder.parent.glob("store/staging/*/*/*.json")):
            time.sleep(0.05)
        gate.wait()
        finish(self, *arguments, **named)

    Staging.finish = held  # type: ignore[method-assign]


def main() -> None:
    """Run the worker, with a gate if it is the victim's."""
    manager = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    if any(argument.endswith(f"resource-id={os.environ['GATE_VICTIM']}") for argument in manager):
        hold(Gate(Path(os.environ["GATE"])))
    beam_worker.main()


if __name__ == "__main__":
    main()
