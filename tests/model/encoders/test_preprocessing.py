"""The batched path gives what the libraries' own PIL path gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from index.errors import UsageError, WeightsInvalid
from model.encoders import preprocessing
from model.encoders.preprocessing import Preprocessing

SHAPES = [(120, 160), (96, 96), (45, 37), (270, 480), (96, 200), (33, 500)]
HALF = (0.5, 0.5, 0.5)
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _frames() -> list[NDArray[np.uint8]]:
    """Noise, edges and flat areas: what a resize can get wrong."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in SHAPES]
    for frame in frames:
        frame[: frame.shape[0] // 2, : frame.shape[1] // 2] = 0
        frame[frame.shape[0] // 2 :, : frame.shape[1] // 3] = 255
    return frames


def _agree(a: torch.Tensor, b: torch.Tensor, std: tuple[float, ...]) -> None:
    """Two levels where sharp noise rounds twice (across, then down), and almost always none."""
    levels = (a - b).abs() * torch.tensor(std).view(1, 3, 1, 1) * 255
    assert float(levels.max()) <= 2.01
    assert float(levels.mean()) <= 0.02


@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize(
    ("interpolation", "mean", "std"), [("bicubic", OPENAI_MEAN, OPENAI_STD), ("bilinear", HALF, HALF)]
)
def test_equals_open_clip(mode: str, interpolation: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    config = PreprocessCfg(size=96, mean=mean, std=std, interpolation=interpolation, resize_mode=mode)
    theirs = image_transform_v2(config, is_train=False)
    ours = Preprocessing.from_open_clip(vars(config), source="test")
    expected = torch.stack([theirs(Image.fromarray(frame)) for frame in _frames()])
    _agree(ours(_frames(), torch.device("cpu")), expected, std)


def test_equals_transformers() -> None:
    theirs = SiglipImageProcessorPil(size={"height": 64, "width": 96}, image_mean=list(HALF), image_std=list(HALF))
    ours = Preprocessing.from_transformers({"size": {"height": 64, "width": 96}, "resample": 3}, source="test")
    expected = torch.cat([theirs(Image.fromarray(f), return_tensors="pt").pixel_values for f in _frames()])
    _agree(ours(_frames(), torch.device("cpu")), expected, HALF)


def test_order_and_batching_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Preprocessing(height=32, width=32, resize_mode="squash", interpolation="bicubic", mean=HALF, std=HALF)
    frames = _frames() + _frames()[::-1]
    together = prepare(frames, torch.device("cpu"))
    monkeypatch.setattr(preprocessing, "_STACKED_BYTES", 1)
    alone = torch.cat([prepare([frame], torch.device("cpu")) for frame in frames])
    assert torch.equal(together, alone)
    assert torch.equal(together, prepare(frames, torch.device("cpu")))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(frame: NDArray[np.uint8]) -> None:
    prepare = Preprocessing(height=8, width=8, resize_mode="squash", interpolation="bicubic", mean=HALF, std=HALF)
    with pytest.raises(UsageError, match="frame 0"):
        prepare([frame], torch.device("cpu"))


def test_the_digest_tells_settings_apart() -> None:
    one = Preprocessing(height=8, width=8, resize_mode="squash", interpolation="bicubic", mean=HALF, std=HALF)
    other = one.model_copy(update={"interpolation": "bilinear"})
    assert one.digest() == one.model_copy().digest()
    assert len({one.digest(), other.digest(), one.digest(layer=26), one.digest(layer=27)}) == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"shortest_edge": 384}}, "height"),
        ({"size": {"height": 8, "width": 8}, "resample": 1}, "interpolation"),
        ({"size": {"height": 8, "width": 8}, "do_center_crop": True}, "crops"),
        ({"size": {"height": 8, "width": 8}, "rescale_factor": 1.0}, "rescales"),
        ({"size": {"height": 8, "width": 8}, "image_mean": [0.5]}, "mean"),
    ],
)
def test_settings_that_are_not_done_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsInvalid, match=message):
        Preprocessing.from_transformers(config, source="somewhere")


def test_open_clip_padding_is_refused() -> None:
    config = {"size": 8, "mean": HALF, "std": HALF, "resize_mode": "longest"}
    with pytest.raises(WeightsInvalid, match="resize_mode"):
        Preprocessing.from_open_clip(config, source="somewhere")
