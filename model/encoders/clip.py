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

from index.errors import WeightsInvalid
from index.records import EncoderIdentity
from model.checkpoints.files import (
    check_tensors,
    loading,
    resolve,
    stream_tensors,
    tensor_files,
    tensor_shapes,
    weights_digest,
    weights_files,
)
from model.checkpoints.vilamp import clip_names
from model.encoders.preprocessing import Preprocessing
from model.profiles.profile import FrameEncoderSpec

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

    @property
    def model(self) -> Any:
        return self._model

    @property
    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

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
        return functional.normalize(self._encoded(texts), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self._identity.dimension), np.float32)
        return self._encoded(texts).cpu().numpy()

    def _encoded(self, texts: Sequence[str]) -> Tensor:
        vectors: Tensor = self._model.encode_text(self._tokenizer(list(texts)).to(self._device))
        return vectors.float()


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    return functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def load_clip(spec: FrameEncoderSpec, device: torch.device) -> ClipEncoder:
    """The CLIP of a profile.

    Raises:
        WeightsNotFound: see `resolve`.
        WeightsInvalid: a configuration or tensors that open_clip refuses.
    """
    import open_clip

    what, whole = f"frame encoder {spec.name}", spec.tower is None
    folder = resolve(spec.source, needs=_NEEDS if whole else _NEEDS[:1], takes=_TOKENIZER, what=what)
    with loading(what, folder):
        model = open_clip.create_model(
            f"local-dir:{folder}", device=device, require_pretrained=whole, load_weights=whole
        )
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if spec.tower is not None:
        takes = ("*.safetensors.index.json",)
        tower = resolve(spec.tower, needs=("*.safetensors",), takes=takes, what=f"{what}, weights")
        _fill(model, tower)
        digested = weights_files(tower)
    else:
        digested = [_chosen(folder)]
    model.eval().requires_grad_(False)
    preprocessing = Preprocessing.from_open_clip(open_clip.get_model_preprocess_cfg(model), source=str(folder))
    identity = EncoderIdentity(
        name=spec.name,
        revision="+".join(s.revision or "local" for s in (spec.source, spec.tower) if s is not None),
        weights_digest=weights_digest(digested),
        preprocessing_digest=preprocessing.digest(),
        dimension=_dimension(model, tokenizer, device),
    )
    return ClipEncoder(model, tokenizer, preprocessing, identity, spec.batch)


@torch.no_grad()
def _fill(model: Any, folder: Path) -> None:
    """Put the frame selector's tensors of an authors' checkpoint into an open_clip model.

    Raises:
        WeightsInvalid: one is missing, extra or of another shape; the message has the name it has in the checkpoint.
    """
    files = tensor_files(folder)
    names = clip_names(files)
    own = _parts(model)
    shapes = tensor_shapes({name: files[name] for name in names})
    back = {new: name for name, new in names.items()}
    for new in sorted(own.keys() - back.keys()):
        raise WeightsInvalid(
            f"{folder}: model.frame_selector has no tensor for CLIP's {new}; is it the right checkpoint?"
        )
    expected = {back[new]: tuple(tensor.shape) for new, tensor in own.items()}
    check_tensors(str(folder), shapes, expected)
    for name, tensor in stream_tensors(files, names):
        own[names[name]].copy_(tensor)


def _parts(model: Any) -> dict[str, Tensor]:
    """An open_clip CLIP's tensors as the other layout has them: q, k and v apart, projections transposed; all views."""
    parts: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".attn.in_proj_" in name:
            for part, view in zip("qkv", tensor.chunk(3), strict=True):
                parts[name.replace("in_proj_", f"{part}_proj.")] = view
        elif name in ("text_projection", "visual.proj"):
            parts[name] = tensor.T
        elif name != "attn_mask":
            parts[name] = tensor
    return parts


def _chosen(folder: Path) -> Path:
    return next(folder / name for name in _WEIGHTS if (folder / name).exists())


@torch.inference_mode()
def _dimension(model: Any, tokenizer: Any, device: torch.device) -> int:
    return int(model.encode_text(tokenizer(["a"]).to(device)).shape[-1])
