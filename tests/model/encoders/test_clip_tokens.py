"""The encoder of clips over a SigLIP, against the SigLIP's own patches merged one clip at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.errors import UsageError, WeightsInvalid
from model.encoders.clip_tokens import ClipTokenEncoder, SiglipTower
from model.encoders.encoder import load_encoders
from model.encoders.siglip import SiglipEncoder, load_siglip
from model.encoders.tome import merge_tokens
from model.profiles.profile import HicoSpec, PatchEncoderSpec, Source, load_profile
from tests.support import tiny_checkpoints as tiny

SPEC = HicoSpec(clip_tokens=8, head_width=12)
CLIPS = [4, 1, 3, 2, 4, 4]


@pytest.fixture(scope="module")
def siglip(models: Path) -> SiglipEncoder:
    spec = PatchEncoderSpec(name="tiny-siglip", source=Source(folder=models / "siglip"), batch=8)
    return load_siglip(spec, torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder(siglip: SiglipEncoder) -> ClipTokenEncoder:
    return ClipTokenEncoder(SiglipTower(siglip), SPEC)


def _frames(n: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (40 + 8 * (i % 2), 64, 3), np.uint8) for i in range(n)]


def _naive(siglip: SiglipEncoder, frames: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Tokens [n, 2, Dp] of the frames of one clip: filled up with its last frame, merged, dealt out in order."""
    filled = frames + [frames[-1]] * (4 - len(frames))
    patches = [siglip.features(siglip.preprocessing([frame], siglip.device))[1][0] for frame in filled]
    merged = merge_tokens(torch.cat(patches)[None], 2 * len(frames), head_width=12)[0]
    return np.stack([merged[2 * i : 2 * i + 2].numpy() for i in range(len(frames))])


def test_a_clip_is_merged_and_dealt_out_to_its_frames(encoder: ClipTokenEncoder, siglip: SiglipEncoder) -> None:
    frames = _frames(sum(CLIPS))
    pooled, patches = encoder.encode_frames(frames, np.repeat(np.arange(len(CLIPS)), CLIPS))
    assert pooled.dtype == np.float32
    assert patches.dtype == np.float16
    assert patches.shape == (len(frames), 2, tiny.WIDTH)
    at = 0
    for length in CLIPS:
        expected = _naive(siglip, frames[at : at + length])
        np.testing.assert_allclose(patches[at : at + length], expected, atol=5e-3)
        at += length
    np.testing.assert_allclose(pooled, siglip.encode_frames(frames)[0], atol=1e-5)


def test_clip_numbers_need_not_ascend(encoder: ClipTokenEncoder) -> None:
    frames = _frames(6)
    _, one = encoder.encode_frames(frames, np.array([7, 7, 3, 3, 7, 7]))
    _, two = encoder.encode_frames(frames, np.array([0, 0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(one, two)


def test_without_clips_each_frame_is_one(encoder: ClipTokenEncoder, siglip: SiglipEncoder) -> None:
    frames = _frames(3)
    _, patches = encoder.encode_frames(frames)
    for frame, row in zip(frames, patches, strict=True):
        np.testing.assert_allclose(row, _naive(siglip, [frame])[0], atol=5e-3)


def test_no_frames(encoder: ClipTokenEncoder) -> None:
    pooled, patches = encoder.encode_frames([], np.empty(0, np.int64))
    assert (pooled.shape, patches.shape) == ((0, tiny.WIDTH), (0, 2, tiny.WIDTH))


def test_invalid_clips(encoder: ClipTokenEncoder) -> None:
    with pytest.raises(UsageError, match="at most 4 frames, got 5"):
        encoder.encode_frames(_frames(6), np.array([0, 1, 1, 1, 1, 1]))
    with pytest.raises(UsageError, match="one number for each frame"):
        encoder.encode_frames(_frames(2), np.array([0]))
    with pytest.raises(UsageError, match="frame 0"):
        encoder.encode_frames([np.zeros((4, 4), np.uint8)])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (HicoSpec(clip_tokens=68, head_width=12), "lower hico.clip_tokens"),
        (HicoSpec(clip_tokens=8, head_width=7), "hico.head_width 7"),
    ],
)
def test_a_profile_that_does_not_fit(siglip: SiglipEncoder, spec: HicoSpec, message: str) -> None:
    with pytest.raises(WeightsInvalid, match=message):
        ClipTokenEncoder(SiglipTower(siglip), spec)


def test_the_identity_says_how_tokens_were_merged(siglip: SiglipEncoder) -> None:
    specs = (
        SPEC,
        HicoSpec(clip_tokens=4, head_width=12),
        HicoSpec(clip_tokens=8, head_width=24),
        HicoSpec(clip_frames=2, clip_tokens=8, head_width=12),
    )
    made = [ClipTokenEncoder(SiglipTower(siglip), spec).identity for spec in specs]
    assert len({siglip.identity.preprocessing_digest, *(each.preprocessing_digest for each in made)}) == 5
    assert {each.weights_digest for each in made} == {siglip.identity.weights_digest}
    unchanged = HicoSpec(clip_tokens=8, head_width=12, min_frames=128, max_frames=256)  # what is read of a store
    assert ClipTokenEncoder(SiglipTower(siglip), unchanged).identity == made[0]


def test_a_profile_loads_it(clip_profile: str, models: Path) -> None:
    clips, frames = (load_encoders(load_profile(path), "cpu") for path in (clip_profile, models / "tiny.toml"))
    assert (clips.pair.patches, clips.pair.clip_frames) == (2, 4)
    assert (frames.pair.patches, frames.pair.clip_frames) == (tiny.PATCHES, 1)
    assert clips.pair.patch != frames.pair.patch
    text = ["red truck"]
    np.testing.assert_array_equal(clips.patch.encode_text(text), frames.patch.encode_text(text))
