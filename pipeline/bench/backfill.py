"""Benchmark of the Beam pipeline, `sightline bench backfill`: beside plain ingest of the same files, and two workers
beside one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from pydantic import BaseModel, ConfigDict

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
    """Result of the benchmark; seconds are medians."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    files: int
    """Files that are indexed."""
    footage_seconds: float
    """Seconds of footage in all of them."""
    frames: int
    """Frames in all of them."""
    ingest_seconds: float
    """Plain ingest."""
    pipeline_seconds: float
    """The pipeline in one process, with the same threads."""
    overhead: float
    """`pipeline_seconds` by `ingest_seconds`, less 1."""
    one_worker_seconds: float
    """The pipeline with one worker process of one thread; starting it and loading models included."""
    two_workers_seconds: float
    """The same with two worker processes."""
    scaling: float
    """`one_worker_seconds` by `two_workers_seconds`."""
    load: list[float]
    """The machine's load average before and after."""


def bench_backfill(
    profile: str = "micro", *, files: int = 30, minutes: float = 10.0, repeats: int = 3
) -> BackfillBench:
    """Render `files` cameras and index them in four ways, in turn. Rendering is not timed.

    Args:
        profile: name of the profile, or the path of its TOML file.
        files: number of files.
        minutes: length of each file.
        repeats: runs of each way; medians count.
    """
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
    """Time what `sightline ingest` does: load the models, create the store, ingest."""
    since = perf_counter()
    encoders = load_encoders(load_profile(profile))
    ingest_sources([folder / "footage"], store=Store.create(folder / name, encoders.pair), encoders=encoders)
    return perf_counter() - since
