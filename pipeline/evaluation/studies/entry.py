"""What the commands `sightline eval study …` call: videos and questions, then the study. Loads torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from index.store import Store
from ingest.decoding.limits import DecodeLimits
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.evaluation.benchmarks.registry import benchmark
from pipeline.evaluation.runs.footage import Footage
from pipeline.evaluation.streams import rendered_streams
from pipeline.evaluation.studies.attention import AttentionStudy, study_answerer, study_attention
from pipeline.evaluation.studies.length import study_memory
from pipeline.evaluation.studies.looking import Subject

__all__ = ["benchmark_study", "rendered_study", "study_memory"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the stage, what is done of it, and all of it."""


def rendered_study(
    work: Path,
    *,
    profile: str,
    device: str | None = None,
    streams: int,
    seconds: int,
    each: int,
    frames: int,
    seed: int,
    lines: Path | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> AttentionStudy:
    """Study rendered footage, which is drawn and ingested where `work` lacks it.

    Args:
        work: folder for the store; a later run with the same profile uses it again.
        profile: name of the profile, or the path of its TOML file.
        device: device of the models.
        streams: number of streams.
        seconds: length of each.
        each: questions of every kind and stream.
        frames: most frames of a stream that are shown.
        seed: seed of the streams and of the study.
        lines: file of the figures of each video, from which a study that was stopped goes on.
        on_progress: see `Progress`.
    """
    loaded = load_profile(profile)
    encoders = load_encoders(loaded, device)
    store = Store.open_or_create(str(work / f"store-{loaded.name}"), encoders.pair)
    asked = rendered_streams(
        store,
        encoders,
        work / "drawn",
        seed=seed,
        count=streams,
        seconds=seconds,
        each=each,
        on_progress=lambda done, total: on_progress("footage", done, total),
    )
    subjects = [
        Subject(
            stream=stream.name,
            question=question.text,
            options=question.options,
            answer=question.options.index(question.answer),
            evidence=tuple((event.seen_from, event.seen_until) for event in question.evidence),
        )
        for stream in asked
        for question in stream.questions
    ]
    return study_attention(
        study_answerer(loaded, encoders, device),
        store,
        subjects,
        source=f"rendered footage of seed {seed}, {seconds} seconds each",
        frames=frames,
        seed=seed,
        lines=lines,
        on_progress=lambda done, total: on_progress("questions", done, total),
    )


def benchmark_study(
    data: Path,
    rows: str,
    store: str,
    *,
    profile: str,
    device: str | None = None,
    limit: int,
    frames: int,
    seed: int,
    limits: DecodeLimits | None = None,
    lines: Path | None = None,
    on_progress: Progress = lambda stage, done, total: None,
) -> tuple[AttentionStudy, list[str]]:
    """Study the questions of a benchmark, as the paper studies Video-MME.

    Args:
        data: folder of the data set.
        rows: name of the benchmark.
        store: the store that its videos are ingested into.
        profile: name of the profile, or the path of its TOML file.
        device: device of the models.
        limit: most questions, from the front.
        frames: most frames of a video that are shown.
        seed: seed of the study.
        limits: of the decoder.
        lines: file of the figures of each video, from which a study that was stopped goes on.
        on_progress: see `Progress`.

    Returns:
        The study, and what was left out with the reason.

    Raises:
        UsageError: the benchmark or its files are not known, or no video can be read.
    """
    loaded, bench = load_profile(profile), benchmark(rows)
    encoders = load_encoders(loaded, device)
    opened = Store.open_or_create(store, encoders.pair)
    footage = Footage(bench, data, opened, lambda: encoders, limits)
    subjects, left_out = list[Subject](), list[str]()
    items = [item for item in bench.read(data, bench.splits[0]).items if item.problem is None][:limit]
    for number, item in enumerate(sorted(items, key=lambda each: each.video), 1):
        found = footage.find(item)
        if found.stream is None:
            left_out.append(f"{item.id}: {found.problem}")
        else:
            subjects.append(Subject(found.stream, item.question, tuple(item.options), item.answer, tuple(item.spans)))
        on_progress("videos", number, len(items))
    study = study_attention(
        study_answerer(loaded, encoders, device),
        opened,
        subjects,
        source=bench.title,
        frames=frames,
        seed=seed,
        lines=lines,
        on_progress=lambda done, total: on_progress("questions", done, total),
    )
    return study, left_out
