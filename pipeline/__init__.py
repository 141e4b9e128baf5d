"""What people touch: the command line, questions, reports, evaluation, benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.questions.asker import ask

__all__ = ["ask"]


def __getattr__(name: str) -> Any:
    if name == "ask":
        from pipeline.questions.asker import ask

        return ask
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
