"""Benchmark of a whole question, `sightline bench ask`, stage by stage."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from time import perf_counter

import numpy as np
from pydantic import BaseModel, ConfigDict

from index.records import FrameRecords, Segment
from index.store import Store
from model.encoders.encoder import load_encoders
from model.encoders.norms import split_norms
from model.profiles.profile import load_profile
from model.world.drawing import draw
from model.world.scenes import make_camera, make_timeline
from pipeline.questions.asker import Asker

__all__ = ["AskReport", "bench_ask"]

_REPEATS = 3


class AskRow(BaseModel):
    """One window size; seconds are medians."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames of the question."""
    keyframes: int
    """Keyframes among them."""
    visual_tokens: int
    """Tokens of all frames."""
    patch_bytes: int
    """Bytes of patches that are read."""
    seconds: dict[str, float]
    """Seconds by stage; `wall` is the whole question."""


class AskReport(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    rows: list[AskRow]
    """One row for each size."""


def bench_ask(profile: str = "micro", frames: Sequence[int] = (1_200, 10_000)) -> AskReport:
    """Ask about stores of several sizes, filled with encodings of drawn scenes."""
    encoders = load_encoders(load_profile(profile))
    camera, clips = make_camera(11), make_timeline(11, 600)
    pictures = [draw(camera, [e for c in clips for e in c.events], t, "", t)[0] for t in range(600)]
    vectors, norms = split_norms(encoders.frame.frame_features(pictures))
    pooled, patches = encoders.patch.encode_frames(pictures)
    rows: list[AskRow] = []
    for count in frames:
        with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
            store = Store.create(folder, encoders.pair)
            for chunk, first in enumerate(range(0, count, 600)):
                some = slice(0, min(600, count - first))
                size = some.stop
                at = 1_709_280_000_000_000 + (first + np.arange(size, dtype=np.int64)) * 1_000_000
                records = FrameRecords(
                    stream_id="bench",
                    clock_source="given",
                    captured_at=at,
                    pts_seconds=first + np.arange(size, dtype=np.float64),
                    frame_vectors=vectors[some],
                    patch_pooled=pooled[some],
                    patches=patches[some],
                    pictures=[b""] * size,
                    frame_norms=norms[some],
                )
                segment = Segment(
                    stream_id="bench",
                    source="bench",
                    chunk=chunk,
                    uri="bench",
                    start=int(at[0]),
                    end=int(at[-1]) + 1_000_000,
                    frames=size,
                    decode_mode="all",
                    clock_source="given",
                )
                store.append(segment, records)
            asker = Asker(store, profile)
            asker.ask("What red thing was at the gate?")  # loads the language model
            runs = []
            for _ in range(_REPEATS):
                since = perf_counter()
                asked = asker.ask("What red thing was at the gate?")
                runs.append({**asked.timings_seconds, "wall": perf_counter() - since})
            rows.append(
                AskRow(
                    frames=asked.frames,
                    keyframes=len(asked.keyframes),
                    visual_tokens=asked.visual_tokens,
                    patch_bytes=asked.frames * encoders.pair.patches * encoders.pair.patch.dimension * 2,
                    seconds={name: float(np.median([run[name] for run in runs])) for name in runs[0]},
                )
            )
    return AskReport(profile=profile, rows=rows)
