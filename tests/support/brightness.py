"""Footage that is dark or bright, and an encoder that sees nothing else: what a standing question finds is then known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.records import from_micros
from index.standing_questions import AlertRule
from ingest.video_writer import VideoWriter
from tests.support.kafka_worker import counting
from tests.support.records import PAIR

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z
SECOND = 1_000_000
RULE = AlertRule(floor=0.3, warm_up=15, samples=60, every=1)


class Bright:
    """Patches that point along the question's vector the more the brighter the frame is."""

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]], clips: Any = None) -> Any:
        patches = np.zeros((len(frames), 4, 12), np.float16)
        for i, frame in enumerate(frames):
            patches[i, :, 0], patches[i, :, 1] = frame.mean() / 255, 1 - frame.mean() / 255
        return np.ones((len(frames), 12), np.float32), patches


ENCODERS: Any = SimpleNamespace(frame=counting().frame, patch=Bright(), pair=PAIR)


def film(folder: Path, bright: range, first: int, length: int) -> Path:
    """Dark but for the seconds of `bright`, which count from BEGAN as `first` does."""
    folder.mkdir(exist_ok=True)
    began = from_micros(BEGAN + first * SECOND)
    path = folder / f"gate_{began:%Y-%m-%dT%H-%M-%SZ}.mp4"
    with VideoWriter(path, 64, 48, fps=5, gop=5, created=began) as writer:
        for second in range(first, first + length):
            for _ in range(5):
                writer.write(np.full((48, 64, 3), 220 if second in bright else 20, np.uint8))
    return path
