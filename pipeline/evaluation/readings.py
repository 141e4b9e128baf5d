"""Comparison of the ways to read footage on the same questions, `sightline bench readings`: DFM (ViLAMP), HiCo
(VideoChat-Flash), and HiCo with progressive dropping.

For each length, footage is rendered and ingested once for each profile, and every question is answered with all frames
of the stream. Each profile and length has a process of its own, so that peaks of memory do not mix. FLOPs are counted
from shapes (see `pipeline.bench.cost`), not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from index.child_processes import process_pool
from index.errors import UsageError
from index.records import to_micros
from model.answerer import load_answerer
from model.encoders.encoder import load_encoders
from model.language.transformers_engine import PREFILL_TOKENS
from model.profiles.profile import DroppingSpec, Profile, load_profile
from model.selection import select_rows
from model.world.questions import QUESTION_KINDS
from pipeline.bench.cost import prefill
from pipeline.bench.memory import peak_bytes, reset_peak
from pipeline.console import configure_logging
from pipeline.demo.render import began_at, camera_name, questions
from pipeline.evaluation.camera import Camera
from pipeline.evaluation.footage import rendered_store
from pipeline.share import Share, share

__all__ = ["MICRO_DROPPING", "Reading", "ReadingReport", "bench_readings", "prefill_flops"]


MICRO_DROPPING = DroppingSpec(layers=(1, 3))
"""The published setting for a model of four layers: layers 4 and 18 of 28 are as deep as 1 and 3 of 4."""


class Reading(BaseModel):
    """One way to read footage of one length."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    dropping: str
    """Layers and ratios of progressive dropping; empty without."""
    frames: int
    """Frames of the stream; all are read."""
    accuracy: dict[str, Share]
    """Right answers, by kind of question and of `all`."""
    visual_tokens: float
    """Mean vision tokens of a prompt."""
    prompt_tokens: float
    """Mean tokens of a prompt."""
    prefill_flops: int
    """FLOPs of the prefill of a prompt of mean size, counted; 0 if the profile has no shape."""
    stored_bytes: int
    """Bytes of the tokens or patches that the store keeps of the stream, uncompressed."""
    seconds: float
    """Median time from the question to the scores of its options, patches in memory."""
    prefill_seconds: float
    """Median time of the prefill."""
    peak_bytes: int
    """Growth of the process's peak resident memory while it answered."""


class ReadingReport(BaseModel):
    """Result of the comparison."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seed: int
    """Seed of the rendered worlds."""
    each: int
    """Questions of every kind, if the timeline has that many."""
    rows: list[Reading]
    """One row for each length and way to read."""


def bench_readings(
    work: Path,
    *,
    profiles: Sequence[str] = ("micro", "micro-hico"),
    lengths: Sequence[int] = (500, 1000, 2000, 4000),
    seed: int = 201,
    each: int = 8,
    dropping: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReadingReport:
    """Render, ingest and ask. Footage and stores are kept under `work` and used again.

    Args:
        work: folder for footage and stores.
        profiles: names of the profiles.
        lengths: lengths of the streams, in frames (seconds).
        seed: seed of the rendered worlds.
        each: questions of every kind.
        dropping: add a row with progressive dropping for each profile that reads by clips.
        on_progress: called with rows done and rows in all.

    Raises:
        UsageError: a length is below 60 frames.
    """
    if any(length < 60 for length in lengths):
        raise UsageError(f"lengths must be at least 60 frames, got {min(lengths)}")
    jobs: list[tuple[Path, str, int, int, int, DroppingSpec | None]] = []
    for length in lengths:
        for name in profiles:
            jobs.append((work, name, length, seed, each, None))
            if dropping and load_profile(name).hico is not None:
                jobs.append((work, name, length, seed, each, MICRO_DROPPING))
    rows = []
    for job in jobs:
        with process_pool(1) as pool:
            pool.submit(configure_logging, debug=False).result()  # logs go to standard error there too
            rows.append(pool.submit(_read, *job).result())
        on_progress(len(rows), len(jobs))
    return ReadingReport(seed=seed, each=each, rows=rows)


def _read(work: Path, name: str, length: int, seed: int, each: int, dropping: DroppingSpec | None) -> Reading:
    """One row; runs in a process of its own."""
    profile = _with_dropping(load_profile(name), dropping)
    encoders = load_encoders(profile)
    store = rendered_store(work, encoders, seed=seed, minutes=length / 60, cameras=1, name=profile.name)
    window = store.window([camera_name(0)], None, None)
    camera = Camera(store, window, to_micros(began_at(seed)))
    answerer = load_answerer(profile, encoders)
    reset_peak()
    before = peak_bytes()
    answers, right = [], dict[str, list[bool]]()
    for question in questions(seed, 0, length / 60, each=each):
        query = encoders.frame.encode_text([question.text])[0]
        keyframes = select_rows(window.frame_vectors, query, profile).rows
        answer = camera.answer(answerer, question, keyframes)
        answers.append(answer)
        for kind in (question.kind, "all"):
            right.setdefault(kind, []).append(answer.text == question.answer)
    tokens = float(np.mean([answer.prompt_tokens for answer in answers]))
    visual = float(np.mean([answer.visual_tokens for answer in answers]))
    return Reading(
        profile=profile.name,
        dropping="" if dropping is None else str(dropping),
        frames=len(window),
        accuracy={
            kind: share(sum(right[kind]), len(right[kind])) for kind in (*QUESTION_KINDS, "all") if kind in right
        },
        visual_tokens=visual,
        prompt_tokens=tokens,
        prefill_flops=prefill_flops(profile, round(tokens), round(visual)),
        stored_bytes=camera.patches.nbytes,
        seconds=float(np.median([answer.timings["first_token"] for answer in answers])),
        prefill_seconds=float(np.median([answer.timings["prefill"] for answer in answers])),
        peak_bytes=peak_bytes() - before,
    )


def _with_dropping(profile: Profile, dropping: DroppingSpec | None) -> Profile:
    """The profile with this dropping in place of its own."""
    language = profile.language_model.model_copy(update={"dropping": dropping})
    return profile.model_copy(update={"language_model": language})


def prefill_flops(profile: Profile, tokens: int, visual_tokens: int) -> int:
    """FLOPs of the products of a prefill, whose layers read fewer tokens where visual tokens are dropped."""
    shape, dropping = profile.shape, profile.language_model.dropping
    if shape is None:
        return 0
    lengths = [tokens] * shape.layers
    if dropping is not None:
        lengths = dropping.lengths(shape.layers, tokens, visual_tokens)
    return prefill(shape, lengths, PREFILL_TOKENS, 4).products
