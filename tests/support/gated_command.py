"""The `sightline` command, which stops at a gate in the middle of its work: `python -m tests.support.gated_command`.

The arguments are a name of `GATES`, the folder of the gate, and those of the command. Whatever the speed of the machine,
the work of a process that a test kills or stops meanwhile is begun and unfinished.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.gate import Gate

STEPS = 50
"""Steps of a training run before its gate."""


def before_the_last_segment(gate: Gate) -> None:
    """Hold `ingest` before it stores the last segment of a file."""
    from index.store import Store

    append = Store.append

    def held(self: Store, segment: Any, frames: Any) -> Any:
        """Wait, and append."""
        if segment.final:
            gate.wait()
        return append(self, segment, frames)

    Store.append = held  # type: ignore[method-assign]


def before_the_third_commit(gate: Gate) -> None:
    """Hold workers of `backfill` once their store has two commits."""
    from index.commits import bulk

    commit = bulk.commit

    def held(tables: Any, chunks: Any) -> Any:
        """Wait, and commit. The first version of a table is an empty one."""
        if tables.segments.open().version() >= 2:
            gate.wait()
        return commit(tables, chunks)

    bulk.commit = held


def in_training(gate: Gate) -> None:
    """Hold `train run` in the step after `STEPS`."""
    from accelerate import Accelerator

    clip, calls = Accelerator.clip_grad_norm_, 0

    def held(self: Accelerator, *arguments: Any, **named: Any) -> Any:
        """Wait, and clip; called once a step."""
        nonlocal calls
        calls += 1
        if calls > STEPS:
            gate.wait()
        return clip(self, *arguments, **named)

    Accelerator.clip_grad_norm_ = held


def before_answers(gate: Gate) -> None:
    """Hold `model-service` before each answer; a request that is cancelled meanwhile ends."""
    from model.answerer import Answerer
    from model.answers import AnswerPiece

    answer = Answerer.answer

    def held(self: Answerer, request: Any) -> Iterator[Any]:
        """Wait, and answer. The question that loads the models has no frames."""
        if len(request.captured_at):
            gate.arrive()
            while not gate.opened:
                time.sleep(0.05)
                yield AnswerPiece("")
        yield from answer(self, request)

    Answerer.answer = held  # type: ignore[method-assign]


GATES: dict[str, Callable[[Gate], None]] = {
    "before-the-last-segment": before_the_last_segment,
    "in-training": in_training,
    "before-answers": before_answers,
}


def command(name: str, gate: Gate) -> list[str]:
    """The start of a command line that runs `sightline` with a gate."""
    return [sys.executable, "-m", "tests.support.gated_command", name, str(gate.folder)]


if __name__ == "__main__":
    from pipeline.cli.main import run

    chosen, folder = sys.argv[1:3]
    del sys.argv[1:3]
    GATES[chosen](Gate(Path(folder)))
    run()
