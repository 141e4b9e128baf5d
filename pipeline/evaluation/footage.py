"""What every evaluation on rendered footage needs: a store of each seed, and whether keyframes show the evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import Encoders
from model.world.questions import Question
from pipeline.demo.render import render

__all__ = ["evidence_shown", "rendered_store"]


def rendered_store(
    work: Path, encoders: Encoders, *, seed: int, minutes: float, cameras: int, name: str = "store"
) -> Store:
    """The store of a seed's footage, which is rendered and ingested if `work` does not have it yet.

    Stores of different encoders need a different `name`; they share the footage.
    """
    footage = work / f"seed-{seed}-{minutes:g}m-{cameras}c"
    if not (footage / "truth.json").exists():
        render(seed, minutes, cameras, footage)
    store = Store.open_or_create(str(work / f"{name}-{footage.name}"), encoders.pair)
    ingest_sources([str(footage)], store=store, encoders=encoders)
    return store


def evidence_shown(question: Question, seconds: NDArray[np.float64]) -> list[bool]:
    """For each event of the evidence, whether one of `seconds` shows it."""
    return [bool(((seconds >= e.seen_from) & (seconds <= e.seen_until)).any()) for e in question.evidence]
