"""Comparison of selectors and of rules of redundancy, `sightline bench selectors`.

Footage is rendered and ingested; a constant *scene* vector of a given length is then added to the frame vectors of each
camera, as a fixed camera's frames share their scene, and all are scaled to unit norm again. With `day_night` the second
half has another scene, whose cosine to the first is about 0.7. Every question is asked of every selector; a question
counts as a hit if a keyframe shows one of its events (`any`), or all of them (`all`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter, thread_time

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from index.records import to_micros
from index.selectors.registry import SELECTORS, SelectorName
from index.selectors.selector import REDUNDANCIES, Candidates, Redundancy, SelectionRule
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from model.world.questions import Question
from pipeline.demo.render import began_at, camera_name, questions
from pipeline.evaluation.footage import evidence_shown, rendered_store
from pipeline.share import Share, share

__all__ = ["SelectorReport", "bench_selectors", "time_selectors"]

SCENES = (0.0, 1.0, 2.0, 4.0, 8.0)
_TIMED_FRAMES, _TIMED_DIMENSION, _REPEATS = 10_000, 512, 25
_VARIANTS: tuple[tuple[SelectorName, Redundancy], ...] = (
    *(("dks", redundancy) for redundancy in REDUNDANCIES),
    ("inverse", "background"),
    ("segments", "background"),
    ("dpp", "background"),
    ("top-k", "fixed"),
    ("uniform", "fixed"),
)


class SelectorRow(BaseModel):
    """One selector under one condition."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    selector: str
    """Name of the selector."""
    redundancy: str
    """Its rule of redundancy."""
    scene: float
    """Length of the constant vector that is added to the frames' unit vectors."""
    day_night: bool
    """Whether the scene changes in the middle of the footage."""
    mean_cosine: float
    """Mean cosine of two frames of a camera."""
    k: int
    """Largest number of keyframes."""
    any: Share
    """Questions with a keyframe in one of their events."""
    all: Share
    """Questions with a keyframe in each of their events."""
    keyframes: float
    """Mean number of keyframes."""


class TimedSelector(BaseModel):
    """The time of one selector, on the threads that numpy has; the command sets one."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    selector: str
    """Name of the selector."""
    redundancy: str
    """Its rule of redundancy."""
    scene: float
    """Length of the constant vector in the frames."""
    seconds: float
    """Median time of one selection."""
    cpu_seconds: float
    """Median time that a core worked for one selection: its time on a machine without other work."""


class SelectorReport(BaseModel):
    """Result of the comparison."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seeds: list[int]
    """Seeds of the rendered worlds."""
    minutes: float
    """Length of each camera's footage."""
    cameras: int
    """Cameras of each seed."""
    questions: int
    """Questions that were asked."""
    tau: float
    """Similarity threshold τ."""
    rows: list[SelectorRow]
    """One row for each selector, condition and K."""
    timed_frames: int
    """Frames of the timed selection, of 512 dimensions."""
    load: float
    """Mean number of processes that wanted a core in the minute before the end."""
    timings: list[TimedSelector]
    """Time of each selector."""


def _with_scene(
    vectors: NDArray[np.float32], scene: float, day_night: bool, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Unit vectors with a constant component of length `scene`, float32[N, d]."""
    first, other = (each / np.linalg.norm(each) for each in rng.standard_normal((2, vectors.shape[1])))
    second = (first + other) / np.linalg.norm(first + other) if day_night else first
    half = np.arange(len(vectors))[:, None] < len(vectors) // 2
    wide = vectors + scene * np.where(half, first, second)
    shifted: NDArray[np.float32] = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)
    return shifted


def _cameras(
    work: Path, encoders: Encoders, seeds: Sequence[int], minutes: float, cameras: int, each: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64], list[Question], NDArray[np.float32]]]:
    """Frame vectors, seconds, questions and their vectors of each camera."""
    for seed in seeds:
        store = rendered_store(work, encoders, seed=seed, minutes=minutes, cameras=cameras)
        began = to_micros(began_at(seed))
        for number in range(cameras):
            window = store.window([camera_name(number)], None, None)
            asked = list(questions(seed, number, minutes, each=each))
            vectors = encoders.frame.encode_text([question.text for question in asked])
            yield window.frame_vectors, (window.captured_at - began) / 1e6, asked, vectors


def bench_selectors(
    work: Path,
    *,
    profile: str = "micro",
    seeds: Sequence[int] = (101, 102, 103),
    minutes: float = 20.0,
    cameras: int = 2,
    each: int = 6,
    ks: Sequence[int] = (8, 32),
    scenes: Sequence[float] = SCENES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SelectorReport:
    """Compare all selectors.

    Args:
        work: folder for footage and stores, which are used again.
        profile: name of the profile whose frame encoder and τ are used.
        seeds, minutes, cameras, each: see `pipeline.evaluation.rendered.evaluate`.
        ks: numbers of keyframes.
        scenes: lengths of the scene vector.
        on_progress: called with the cameras done and the cameras in all.
    """
    settings = load_profile(profile)
    encoders = load_encoders(settings)
    conditions = [(scene, night) for scene in scenes for night in (False, True) if scene or not night]
    counts = {(c, k, v): [0, 0, 0, 0] for c in conditions for k in ks for v in _VARIANTS}
    cosines: dict[tuple[float, bool], list[float]] = {condition: [] for condition in conditions}
    asked = 0
    for done, (vectors, seconds, listed, queries) in enumerate(_cameras(work, encoders, seeds, minutes, cameras, each)):
        asked += len(listed)
        for condition in conditions:
            rng = np.random.default_rng(done)
            shifted = _with_scene(vectors, *condition, rng)
            cosines[condition].append(float(np.square(shifted.mean(axis=0)).sum()))
            for question, query in zip(listed, queries, strict=True):
                for k in ks:
                    for name, redundancy in _VARIANTS:
                        rule = SelectionRule(k, settings.tau, redundancy)
                        chosen = SELECTORS[name](Candidates(shifted, query), rule).rows
                        found = evidence_shown(question, seconds[chosen])
                        tally = counts[condition, k, (name, redundancy)]
                        tally[0] += 1
                        tally[1] += any(found)
                        tally[2] += all(found)
                        tally[3] += len(chosen)
        on_progress(done + 1, len(seeds) * cameras)
    rows = [
        SelectorRow(
            selector=name,
            redundancy=redundancy,
            scene=scene,
            day_night=night,
            mean_cosine=round(float(np.mean(cosines[scene, night])), 3),
            k=k,
            any=share(hit, total),
            all=share(every, total),
            keyframes=round(frames / total, 2),
        )
        for ((scene, night), k, (name, redundancy)), (total, hit, every, frames) in counts.items()
    ]
    return SelectorReport(
        seeds=list(seeds),
        minutes=minutes,
        cameras=cameras,
        questions=asked,
        tau=settings.tau,
        rows=rows,
        timed_frames=_TIMED_FRAMES,
        timings=time_selectors(settings.tau),
        load=round(os.getloadavg()[0], 1),
    )


def time_selectors(tau: float = 0.85, k: int = 32) -> list[TimedSelector]:
    """Measure every selector on 10,000 frames of 512 dimensions in scenes of 50 similar ones, with and without a
    constant component."""
    rng = np.random.default_rng(0)
    runs = rng.standard_normal((_TIMED_FRAMES // 50, _TIMED_DIMENSION)).repeat(50, axis=0)
    frames = runs + 0.2 * rng.standard_normal(runs.shape)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    query = rng.standard_normal(_TIMED_DIMENSION).astype(np.float32)
    timings: list[TimedSelector] = []
    for scene in (0.0, 4.0):
        candidates = Candidates(_with_scene(frames.astype(np.float32), scene, False, rng), query)
        for name, redundancy in _VARIANTS:
            taken = []
            for _ in range(_REPEATS):
                since, worked = perf_counter(), thread_time()
                SELECTORS[name](candidates, SelectionRule(k, tau, redundancy))
                taken.append((perf_counter() - since, thread_time() - worked))
            seconds, cpu = np.median(np.asarray(taken), axis=0).tolist()
            timings.append(
                TimedSelector(selector=name, redundancy=redundancy, scene=scene, seconds=seconds, cpu_seconds=cpu)
            )
    return timings
