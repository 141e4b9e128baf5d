"""Virtual streams: clips of one camera of the bank in random order, with questions whose answers are known.

A virtual stream consists of row numbers of the bank. The pictures are encoded once, and a stream of any length is a
selection of their features.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from model.training.micro.clip_bank import ClipBank, bank_clips
from model.world.questions import Question, QuestionMaker
from model.world.scenes import Clip

__all__ = ["StreamMaker", "VirtualStream"]


@dataclass(frozen=True, slots=True)
class VirtualStream:
    """A stream of N frames, one a second."""

    rows: NDArray[np.int64]
    """The frame of the bank at each second, int64[N]."""
    clips: list[Clip]
    """What happens, in seconds of the stream."""
    began: datetime
    """Capture time of the first frame, UTC."""

    def clock(self, second: int) -> str:
        """The capture time of a second of the stream, HH:MM."""
        return (self.began + timedelta(seconds=int(second))).strftime("%H:%M")


class StreamMaker:
    """Assembles streams from a bank that has `clips_per_camera` clips of each camera."""

    def __init__(self, bank: ClipBank, clips_per_camera: int) -> None:
        self.frames: dict[int, list[NDArray[np.int64]]] = {}
        self.empty: dict[int, NDArray[np.int64]] = {}
        self.clips: dict[int, list[Clip]] = {}
        self.second = bank.second
        for camera in np.unique(bank.camera):
            seed = int(camera)
            rows = np.flatnonzero(bank.camera == camera)
            number = bank.clip[rows]
            self.frames[seed] = [rows[number == i] for i in range(clips_per_camera)]
            self.empty[seed] = rows[number < 0]
            self.clips[seed] = bank_clips(seed, clips_per_camera)
        self.cameras = sorted(self.frames)

    def make(self, rng: np.random.Generator, *, frames: int, clips: int) -> VirtualStream:
        """A stream of `frames` seconds with up to `clips` clips in random order and random gaps between them."""
        camera = self.cameras[rng.integers(len(self.cameras))]
        chosen: list[int] = []
        used = 0
        for i in rng.permutation(len(self.clips[camera])):
            length = len(self.frames[camera][i])
            if len(chosen) < clips and used + length <= frames:
                chosen.append(int(i))
                used += length
        share = rng.dirichlet(np.full(len(chosen) + 1, 0.6))
        gaps = np.floor(share * (frames - used)).astype(int)
        gaps[-1] += frames - used - gaps.sum()
        rows: list[NDArray[np.int64]] = []
        placed: list[Clip] = []
        t = 0
        for gap, i in zip(gaps, [*chosen, -1], strict=True):
            rows.append(rng.choice(self.empty[camera], gap))
            t += int(gap)
            if i >= 0:
                source, seen = self.clips[camera][i], self.frames[camera][i]
                shift = t - float(self.second[seen[0]]) - source.start
                events = tuple(event.shifted(shift) for event in source.events)
                placed.append(Clip(source.start + shift, source.end + shift, events))
                rows.append(seen)
                t += len(seen)
        began = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=int(rng.integers(86_400)))
        return VirtualStream(np.concatenate(rows), placed, began)


def ask_about(stream: VirtualStream, rng: np.random.Generator, kind: str, count: int = 0) -> Question | None:
    """A random question of `kind` about the stream (see `QuestionMaker.make`); None if several draws find none."""
    maker = QuestionMaker(stream.clips, stream.began)
    for _ in range(8):
        question = maker.make(kind, rng, count=count)
        if question is not None:
            return question
    return None
