"""Samples as the model takes them: frames read and resized by worker processes, encoded here, kept in a cache.

A video gives `fps` frames a second of stream time, each the first with pts ≥ its second (`ingest.decoding.sandbox.read_frames`). What is
longer than `max_frames` is thinned evenly: every second frame, every fourth, and so on, so that a video of any length
takes bounded memory. An image is one frame.

A cache entry is a folder of arrays, named by a digest of the file (path, size, time of change), the sampling and the
encoders; it is complete when it has that name, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from index.errors import SightlineError, TrainingDataInvalid, UsageError
from index.records import to_micros
from ingest.decoding.sandbox import read_frames
from model.encoders.preprocessing import Preprocessing
from model.training.conversation import Script, write_script
from model.training.plan import TrainingPlan
from model.training.trainable import Sample, SampleFeatures, TrainableModel
from pipeline.training.data import Conversation, Conversations

__all__ = ["SampleReader"]

_RESIZED_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class _Read:
    """What a worker made of a sample: resized frames of both encoders as uint8[N, H, W, 3] tensors, which travel in
    shared memory; or only the place in the cache."""

    number: int
    frame_pixels: torch.Tensor | None = None
    patch_pixels: torch.Tensor | None = None
    captured_at: torch.Tensor | None = None


class _Frames(Dataset["_Read | SightlineError"]):
    """What the workers do."""

    def __init__(
        self,
        conversations: Conversations,
        plan: TrainingPlan,
        frame: Preprocessing,
        patch: Preprocessing,
        entry: Callable[[Conversation], Path | None],
    ) -> None:
        self.conversations, self.plan, self.frame, self.patch, self.entry = conversations, plan, frame, patch, entry

    def __getitem__(self, number: int) -> _Read | SightlineError:
        try:
            conversation = self.conversations[number]
            entry = self.entry(conversation)
            if entry is not None and entry.is_dir():
                return _Read(number)
            return self._read(number, conversation)
        except SightlineError as error:  # a worker's exception would reach people as a traceback
            return error

    def _read(self, number: int, conversation: Conversation) -> _Read:
        if conversation.is_image:
            pixels = [_picture(conversation)]
            return _Read(number, *self._resized(pixels), torch.zeros(1, dtype=torch.int64))
        step = 1
        both: list[tuple[torch.Tensor, torch.Tensor]] = []
        times: list[int] = []
        waiting: list[NDArray[np.uint8]] = []

        def settle() -> None:
            both.extend(zip(*self._resized(waiting), strict=True))
            waiting.clear()

        try:
            for i, frame in enumerate(read_frames(conversation.footage, fps=self.plan.fps)):
                if i % step == 0 and len(times) == self.plan.max_frames:
                    settle()
                    both, times, step = both[::2], times[::2], 2 * step
                if i % step:
                    continue
                waiting.append(frame.pixels)
                times.append(to_micros(frame.captured_at))
                if len(waiting) == _RESIZED_TOGETHER:
                    settle()
        except SightlineError as error:
            raise TrainingDataInvalid(f"{conversation.where}: {error}; mend the file or leave the sample out") from None
        settle()
        frames, patches = (torch.stack([pair[i] for pair in both]) for i in (0, 1))
        return _Read(number, frames, patches, torch.tensor(times))

    def _resized(self, pixels: Sequence[NDArray[np.uint8]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.frame.resized(pixels)), torch.from_numpy(self.patch.resized(pixels))


def _picture(conversation: Conversation) -> NDArray[np.uint8]:
    try:
        with Image.open(conversation.footage) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise TrainingDataInvalid(
            f"{conversation.where}: {conversation.footage} is no picture that can be read ({error}); leave it out"
        ) from None


class SampleReader:
    """Samples by their numbers, in the order asked for; decoding runs ahead in `plan.workers` processes.

    Raises, while iterating:
        TrainingDataInvalid: footage that does not decode; says which sample of which file.
        UsageError: a prompt that cannot be.
    """

    def __init__(self, conversations: Conversations, plan: TrainingPlan, trainee: TrainableModel) -> None:
        self.conversations, self.plan, self.trainee = conversations, plan, trainee
        self._frames = _Frames(
            conversations,
            plan,
            trainee.frame_encoder.preprocessing,
            trainee.patch_encoder.preprocessing,
            _Entries(plan, trainee),
        )

    def __call__(self, numbers: Sequence[int]) -> Iterator[Sample]:
        workers = self.plan.workers
        loader = DataLoader(
            self._frames,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else every start would draw from the run's random numbers
        )
        for read in loader:
            if isinstance(read, SightlineError):
                raise read
            yield self._sample(read)

    def _sample(self, read: _Read) -> Sample:
        conversation = self.conversations[read.number]
        script: Script = write_script(self.trainee.tokenizer, conversation.turns)
        keyframes = conversation.keyframes or self.plan.keyframes or self.trainee.profile.k
        features = self._features(conversation, read)
        return Sample(script, conversation.query, keyframes, features, conversation.where)

    def _features(self, conversation: Conversation, read: _Read) -> SampleFeatures:
        entry = self._frames.entry(conversation)
        if read.captured_at is None or read.frame_pixels is None or read.patch_pixels is None:
            assert entry is not None  # the worker found it
            return _load(entry, conversation)
        features = self.trainee.encode(read.frame_pixels.numpy(), read.patch_pixels.numpy(), read.captured_at.numpy())
        if entry is not None:
            _keep(entry, features)
        return features


def _as_it_is(value: Any) -> Any:
    return value


class _Entries:
    """Where a sample's features are in the cache; None without one."""

    def __init__(self, plan: TrainingPlan, trainee: TrainableModel) -> None:
        pair = trainee.encoders.pair
        self._folder = plan.cache
        self._facts = [plan.fps, plan.max_frames, pair.frame.model_dump(), "pixels" if trainee.sees else "patches"]
        # Pixels do not depend on weights that are about to change.
        patch = pair.patch.model_dump()
        self._facts.append(patch["preprocessing_digest"] if trainee.sees else patch)

    def __call__(self, conversation: Conversation) -> Path | None:
        if self._folder is None:
            return None
        path = conversation.footage.resolve()
        try:
            stat = path.stat()
        except OSError as error:
            raise TrainingDataInvalid(f"{conversation.where}: {path} has gone ({error.strerror})") from None
        facts = [str(path), stat.st_size, stat.st_mtime_ns, conversation.is_image, *self._facts]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._folder / digest[:2] / digest


def _keep(entry: Path, features: SampleFeatures) -> None:
    """Write an entry beside its name and give it the name; another process may have been quicker."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".part", dir=entry.parent))
        try:
            for name in ("vectors", "captured_at", "patches", "pixels"):
                array = getattr(features, name)
                if array is not None:
                    np.save(part / f"{name}.npy", array)
            os.rename(part, entry)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not entry.is_dir():
                raise
    except OSError as error:
        raise UsageError(f"cache: {entry.parent} cannot be written ({error.strerror}); name another folder") from None


def _load(entry: Path, conversation: Conversation) -> SampleFeatures:
    try:
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in entry.glob("*.npy")}
        return SampleFeatures(**{**arrays, "vectors": np.array(arrays["vectors"])})
    except (OSError, ValueError, TypeError, LookupError):
        raise TrainingDataInvalid(
            f"{conversation.where}: its cache {entry} does not read back; delete that folder and run again"
        ) from None
