"""Batches of frames: in order, and preprocessed ahead of their use where a GPU encodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from index.errors import UsageError
from model.encoders.pretrained import PretrainedEncoder


class Counting(PretrainedEncoder):
    """An encoder whose preprocessing counts what it was given; it says that it is on `device`."""

    def __init__(self, device: str) -> None:
        self.device, self.batch, self.seen = torch.device(device), 4, list[int]()
        self.preprocessing: Any = self.prepare

    def prepare(self, frames: Sequence[int], device: torch.device) -> Tensor:
        """Keep the frames' numbers; frame 13 is invalid."""
        if 13 in frames:
            raise UsageError("frame 13")
        self.seen += frames
        return torch.tensor(list(frames))

    def forward_text(self, ids: Tensor) -> Tensor:
        """Not used."""
        return ids


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_every_frame_comes_once_and_in_order(device: str, count: int) -> None:
    encoder: Any = Counting(device)
    got = np.full(count, -1)
    for rows, pixels in encoder.batches(list(range(count))):
        assert len(pixels) <= 4
        got[rows] = pixels.numpy()
    assert got.tolist() == encoder.seen == list(range(count))


def test_at_most_one_batch_is_preprocessed_ahead() -> None:
    encoder: Any = Counting("cuda")
    for done, (_, pixels) in enumerate(encoder.batches(list(range(12)))):
        assert pixels.tolist() == list(range(4 * done, 4 * done + 4))
        assert len(encoder.seen) <= 4 * (done + 2)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_invalid_frame_is_an_error_of_its_batch(device: str) -> None:
    encoder: Any = Counting(device)
    batches = encoder.batches(list(range(16)))
    assert [next(batches)[0] for _ in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(UsageError, match="frame 13"):
        next(batches)
