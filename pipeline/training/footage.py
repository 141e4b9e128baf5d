"""Samples of training with their features: worker processes read and resize frames, the main process encodes and caches
them.

A video gives `fps` frames a second of stream time, each the first frame with pts ≥ its second. If there are more than
`max_frames`, every second one is kept, then every fourth, and so on: a video of any length takes bounded memory. A
picture is one frame.

A cache entry is a folder of arrays. Its name is a digest of the file (path, size, time of modification), the sampling
and the encoders. An entry under that name is complete, and may be deleted at any time.
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
from index.files import DAMAGED_ARRAYS, load_array
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
    """Output of a worker for one sample: frames resized for both encoders, uint8[N, H, W, 3] tensors in shared memory.

    All are None if the features are in the cache.
    """

    number: int
    frame_pixels: torch.Tensor | None = None
    patch_pixels: torch.Tensor | None = None
    captured_at: torch.Tensor | None = None


class _Frames(Dataset["_Read | SightlineError"]):
    """The part of reading a sample that runs in worker processes."""

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
        except SightlineError as error:  # an exception raised in a worker would be printed as a traceback
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
            raise TrainingDataInvalid(
                f"{conversation.where}: {error}; repair the file or leave the sample out"
            ) from None
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
            f"{conversation.where}: {conversation.footage} is not a readable picture ({error}); leave it out"
        ) from None


class SampleReader:
    """Yields samples by their numbers, in the given order; decoding runs ahead in `plan.workers` processes.

    Raises, while iterating:
        TrainingDataInvalid: footage does not decode; the message names the sample and its file.
        UsageError: a prompt is invalid.
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
            collate_fn=_unchanged,
            generator=torch.Generator(),  # without it, every start draws from the run's random numbers
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


def _unchanged(value: Any) -> Any:
    return value


class _Entries:
    """Maps a sample to its folder in the cache; to None if there is no cache."""

    def __init__(self, plan: TrainingPlan, trainee: TrainableModel) -> None:
        pair = trainee.encoders.pair
        self._folder = plan.cache
        self._facts = [
            "norms",  # entries of earlier versions lack them
            plan.fps,
            plan.max_frames,
            pair.frame.model_dump(),
            "pixels" if trainee.trains_encoder else "patches",
        ]
        # Pixels do not depend on the weights, which training changes.
        patch = pair.patch.model_dump()
        self._facts.append(patch["preprocessing_digest"] if trainee.trains_encoder else patch)

    def __call__(self, conversation: Conversation) -> Path | None:
        if self._folder is None:
            return None
        path = conversation.footage.resolve()
        try:
            stat = path.stat()
        except OSError as error:
            raise TrainingDataInvalid(f"{conversation.where}: {path} no longer exists ({error.strerror})") from None
        facts = [str(path), stat.st_size, stat.st_mtime_ns, conversation.is_image, *self._facts]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._folder / digest[:2] / digest


def _keep(entry: Path, features: SampleFeatures) -> None:
    """Write an entry under a temporary name and rename it; another process may have written it first."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".part", dir=entry.parent))
        try:
            for name in ("vectors", "norms", "captured_at", "patches", "pixels"):
                array = getattr(features, name)
                if array is not None:
                    np.save(part / f"{name}.npy", array)
            os.rename(part, entry)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not entry.is_dir():
                raise
    except OSError as error:
        raise UsageError(f"cache: {entry.parent} not writable ({error.strerror}); set another folder") from None


def _load(entry: Path, conversation: Conversation) -> SampleFeatures:
    try:
        arrays = {path.stem: load_array(path, mapped=True) for path in entry.glob("*.npy")}
        return SampleFeatures(**{**arrays, **{name: np.array(arrays[name]) for name in ("vectors", "norms")}})
    except DAMAGED_ARRAYS:
        raise TrainingDataInvalid(
            f"{conversation.where}: its cache {entry} is damaged; delete that folder and run again"
        ) from None
