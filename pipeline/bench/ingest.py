"""Benchmark of a whole ingest, `sightline bench ingest`, stage by stage."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.demo.render import render

__all__ = ["IngestBench", "bench_ingest"]


class IngestBench(BaseModel):
    """Result of ingesting rendered footage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    frames: int
    """Frames ingested."""
    frames_per_second: float
    """Frames ingested a second."""
    realtime_factor: float
    """Seconds of footage ingested a second."""
    stages: dict[str, float]
    """Seconds by stage, as in the report of an ingest."""
    peak_rss_bytes: int
    """Peak resident memory of this process."""


def bench_ingest(profile: str = "micro", *, minutes: float = 5.0) -> IngestBench:
    """Render `minutes` of one camera and time its ingest. Rendering is not timed."""
    encoders = load_encoders(load_profile(profile))
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        render(11, minutes, 1, Path(folder) / "footage")
        store = Store.create(Path(folder) / "store", encoders.pair)
        report = ingest_sources([Path(folder) / "footage"], store=store, encoders=encoders)
    return IngestBench(
        profile=profile,
        frames=report.frames,
        frames_per_second=report.frames_per_second,
        realtime_factor=report.realtime_factor,
        stages=report.stages,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
