"""The training examples of `micro-hico`, on a small rendered bank with random features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.training.micro.clip_bank import ClipBank, make_bank
from model.training.micro.clips import CLIP_FRAMES, CLIP_TOKENS, draw_clip_example
from model.training.micro.examples import BankFeatures, Example, StreamSize, patch_labels
from model.training.micro.language import MicroModel
from model.training.micro.virtual_streams import StreamMaker

CLIPS = 6
SIZE = StreamSize(frames=82, clips=CLIPS, k=0, others=0, batch=1)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ClipBank:
    folder: Path = tmp_path_factory.mktemp("bank")
    return make_bank(folder, seed=3, cameras=1, clips=CLIPS, workers=1, on_progress=lambda done, total: None)


@pytest.fixture(scope="module")
def features(bank: ClipBank) -> BankFeatures:
    rng = np.random.default_rng(0)
    return BankFeatures(
        patches=rng.normal(size=(len(bank), 36, 64)).astype(np.float16),
        vectors=rng.normal(size=(len(bank), 8)).astype(np.float32),
        patch_text=lambda texts: functional.normalize(torch.ones(len(texts), 64), dim=-1),
        frame_text=lambda texts: np.ones((len(texts), 8), np.float32),
    )


@pytest.fixture(scope="module")
def examples(bank: ClipBank, features: BankFeatures) -> list[Example]:
    maker, rng = StreamMaker(bank, CLIPS), np.random.default_rng(1)
    return [draw_clip_example(maker, bank, features, rng, SIZE) for _ in range(12)]


def test_a_stream_is_read_by_whole_clips(examples: list[Example]) -> None:
    for example in examples:
        assert example.key_patches.shape == (SIZE.frames // CLIP_FRAMES, CLIP_TOKENS, 64)
        assert len(example.clocks) == len(example.key_patches)
        assert example.merged.shape == (0, 64)


def test_a_token_is_named_after_most_of_its_patches(bank: ClipBank) -> None:
    """With one feature for what a patch shows, merging joins equal patches first, so that each token shows one thing."""
    labels = patch_labels(bank, np.arange(len(bank)))
    kinds = int(labels[..., 0].max()) + 2
    patches = functional.one_hot(torch.from_numpy(labels[..., 0]) + 1, 64).numpy().astype(np.float16)
    assert kinds <= CLIP_TOKENS
    plain = BankFeatures(
        patches,
        np.zeros((len(bank), 8), np.float32),
        lambda texts: torch.ones(1, 64),
        lambda t: np.ones((1, 8), np.float32),
    )
    example = draw_clip_example(StreamMaker(bank, CLIPS), bank, plain, np.random.default_rng(2), SIZE)
    pure = example.key_patches.max(-1).values > 0.99
    shown = example.key_patches.argmax(-1) - 1
    assert pure.float().mean() > 0.9
    assert torch.equal(example.named[..., 0][pure], shown[pure])
    assert (shown >= 0).any()


def test_a_pair_of_events_is_in_two_clips(examples: list[Example]) -> None:
    """A token attends to earlier tokens only; a label in the same clip made the loss infinite."""
    pairs = [pair for example in examples for pair in example.follows]
    assert pairs
    for pair in pairs:
        later, earlier = pair.later.any(1).nonzero(), pair.earlier.any(1).nonzero()
        assert len(later)
        assert int(later.min()) > int(earlier.max())


def test_the_loss_and_its_gradient_are_finite(examples: list[Example]) -> None:
    torch.manual_seed(0)
    model = MicroModel(64, 4096)
    loss, figures = model.loss(examples[:6], np.random.default_rng(0))
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert all(np.isfinite(value) for value in figures.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_training_starts_from_saved_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two = MicroModel(64, 2048), MicroModel(64, 4096)
    one.save(tmp_path)
    two.load(tmp_path)
    for name, weight in one.connector.state_dict().items():
        torch.testing.assert_close(two.connector.state_dict()[name], weight.half().float())
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(two.language(ids).logits, one.half().float().language(ids).logits)
    assert two.language.config.max_position_embeddings == 4096
