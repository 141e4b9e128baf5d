"""Rendered streams with questions, drawn at one frame a second: footage of ablations and studies.

Each stream is a camera of its own with a timeline of its own, so that streams are independent clusters. Drawing one
frame a second costs a tenth of what `sightline render` draws, and the store samples one frame a second anyway.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

from index.child_processes import process_pool
from index.records import to_micros
from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import Encoders
from model.world.questions import Question, make_questions
from model.world.scenes import make_timeline, rng_of
from pipeline.evaluation.needles.rendered import BEGAN, RenderedStream, write_stream

__all__ = ["AskedStream", "rendered_streams"]

_SEEDS = 1_500_000_000  # apart from the seeds of training banks, of other rendered footage and of needles


@dataclass(frozen=True, slots=True)
class AskedStream:
    """A stream of the store with questions about it."""

    name: str
    """Its name in the store."""
    questions: tuple[Question, ...]
    """The questions."""


def rendered_streams(
    store: Store,
    encoders: Encoders,
    work: Path,
    *,
    seed: int,
    count: int,
    seconds: int,
    each: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[AskedStream]:
    """The streams of a seed, which are drawn and ingested if the store lacks them.

    Args:
        store: the store.
        encoders: its encoders.
        work: folder for files of footage; they are deleted once all are stored.
        seed: seed of the streams.
        count: number of streams.
        seconds: length of each.
        each: questions of every kind and stream, if its timeline has that many.
        on_progress: called with the streams drawn and the streams to draw.
    """
    streams = [
        RenderedStream(f"rendered-{seed}-{seconds}-{i:03}", _SEEDS + seed * 1000 + i, seconds) for i in range(count)
    ]
    stored = {segment.stream_id for segment in store.segments() if segment.final}
    missing = [stream for stream in streams if stream.name not in stored]
    if missing:
        work.mkdir(parents=True, exist_ok=True)
        with process_pool(min(2, len(missing))) as pool:
            jobs = [pool.submit(write_stream, stream, work) for stream in missing]
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                on_progress(done, len(missing))
        for stream in missing:
            files = [work / f"{stream.name}.mp4"]
            ingest_sources(files, store=store, encoders=encoders, stream=stream.name, start=to_micros(BEGAN))
        shutil.rmtree(work)
    return [
        AskedStream(
            stream.name,
            tuple(
                make_questions(
                    make_timeline(stream.seed, seconds), BEGAN, rng_of("stream questions", stream.seed), each=each
                )
            ),
        )
        for stream in streams
    ]
