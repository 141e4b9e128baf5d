"""CLIP through open_clip: the frame encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from index.records import EncoderIdentity
from model.checkpoints import loading, resolve, weights_digest
from model.preprocessing import Preprocessing
from model.profiles import FrameEncoderSpec

__all__ = ["ClipEncoder", "load_clip"]

# The names open_clip itself looks for, in its order of preference.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_NEEDS = (
    "open_clip_config.json",
    "open_clip_model.safetensors|open_clip_pytorch_model.safetensors|open_clip_pytorch_model.bin",
)
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json")


class ClipEncoder:
    """See `FrameEncoder`. `model` and `tokenizer` are open_clip's."""

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, identity: EncoderIdentity, batch: int
    ) -> None:
        self._model, self._tokenizer, self._preprocessing = model, tokenizer, preprocessing
        self._identity, self._batch = identity, batch
        self._device = next(model.parameters()).device

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    @torch.inference_mode()
    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        result = np.empty((len(frames), self._identity.dimension), np.float32)
        for i in range(0, len(frames), self._batch):
            pixels = self._preprocessing(frames[i : i + self._batch], self._device)
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                vectors = self._model.encode_image(pixels)
            result[i : i + self._batch] = _unit(vectors)
        return result

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self._identity.dimension), np.float32)
        return _unit(self._model.encode_text(self._tokenizer(list(texts)).to(self._device)))


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    return functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def load_clip(spec: FrameEncoderSpec, device: torch.device) -> ClipEncoder:
    """The CLIP of a profile.

    Raises:
        WeightsNotFound: see `resolve`.
        WeightsInvalid: a configuration or tensors that open_clip refuses.
    """
    import open_clip

    folder = resolve(spec.source, needs=_NEEDS, takes=_TOKENIZER, what=f"frame encoder {spec.name}")
    with loading(f"frame encoder {spec.name}", folder):
        model = open_clip.create_model(f"local-dir:{folder}", device=device, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval().requires_grad_(False)
    preprocessing = Preprocessing.from_open_clip(open_clip.get_model_preprocess_cfg(model), source=str(folder))
    identity = EncoderIdentity(
        name=spec.name,
        revision=spec.source.revision or "local",
        weights_digest=weights_digest([_chosen(folder)]),
        preprocessing_digest=preprocessing.digest(),
        dimension=_dimension(model, tokenizer, device),
    )
    return ClipEncoder(model, tokenizer, preprocessing, identity, spec.batch)


def _chosen(folder: Path) -> Path:
    return next(folder / name for name in _WEIGHTS if (folder / name).exists())


@torch.inference_mode()
def _dimension(model: Any, tokenizer: Any, device: torch.device) -> int:
    return int(model.encode_text(tokenizer(["a"]).to(device)).shape[-1])
