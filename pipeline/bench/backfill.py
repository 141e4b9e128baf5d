"""`sightline bench backfill`: the pipeline beside plain ingest on the same files in the same run, and two workers beside one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from pydantic import BaseModel

from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.backfill.job import backfill
from pipeline.backfill.manifest import read_manifest
from pipeline.demo.render import render

__all__ = ["BackfillBench", "bench_backfill"]

_WORKERS = "--direct_running_mode=multi_processing"


class BackfillBench(BaseModel):
    """Seconds, medians. `overhead` is pipeline by ingest, less 1: both in one process with the same threads.

    `scaling` is one worker process by two, each with one thread; both include starting the workers and loading models.
    `load` is the machine's load average before and after.
    """

    profile: str
    files: int
    footage_seconds: float
    frames: int
    ingest_seconds: float
    pipeline_seconds: float
    overhead: float
    one_worker_seconds: float
    two_workers_seconds: float
    scaling: float
    load: list[float]


def bench_backfill(
    profile: str = "micro", *, files: int = 30, minutes: float = 10.0, repeats: int = 3
) -> BackfillBench:
    """Render `files` cameras, then index them in four ways, in turn; rendering does not count."""

    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        render(11, minutes, files, folder / "footage")
        entries = read_manifest(str(folder / "footage" / "*.mp4"))
        took: dict[str, list[float]] = {"ingest": [], "pipeline": [], "one": [], "two": []}
        frames = seconds = 0.0
        for turn in range(repeats):
            took["ingest"].append(_ingest(folder, f"ingest-{turn}", profile))
            for kind, options, threads in (
                ("pipeline", (), None),
                ("one", (_WORKERS, "--direct_num_workers=1"), 1),
                ("two", (_WORKERS, "--direct_num_workers=2"), 1),
            ):
                since = perf_counter()
                report = backfill(
                    entries, store=str(folder / f"{kind}-{turn}"), profile=profile, options=options, threads=threads
                )
                took[kind].append(perf_counter() - since)
                frames, seconds = report.frames, report.hours * 3600
    load.append(os.getloadavg()[0])
    at = {kind: median(runs) for kind, runs in took.items()}
    return BackfillBench(
        profile=profile,
        files=files,
        footage_seconds=seconds,
        frames=int(frames),
        ingest_seconds=at["ingest"],
        pipeline_seconds=at["pipeline"],
        overhead=at["pipeline"] / at["ingest"] - 1,
        one_worker_seconds=at["one"],
        two_workers_seconds=at["two"],
        scaling=at["one"] / at["two"],
        load=load,
    )


def _ingest(folder: Path, name: str, profile: str) -> float:
    """What the command does: load the models, make the store, ingest."""

    since = perf_counter()
    encoders = load_encoders(load_profile(profile))
    ingest_sources([folder / "footage"], store=Store.create(folder / name, encoders.pair), encoders=encoders)
    return perf_counter() - since
