"""The frame encoder: a CLIP through open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizerFast, PreTrainedTokenizerBase

from index.errors import WeightsInvalid
from index.records import EncoderIdentity
from model.checkpoints.files import (
    check_tensors,
    loading,
    resolve,
    stream_tensors,
    tensor_files,
    tensor_shapes,
    weights_files,
)
from model.checkpoints.vilamp import clip_names
from model.encoders.norms import split_norms
from model.encoders.plain_tokens import controls_of, plain_tokenize
from model.encoders.preprocessing import Preprocessing
from model.encoders.pretrained import PretrainedEncoder, Tokenize, identify, resolve_tower
from model.profiles.profile import FrameEncoderSpec
from model.vocabulary import unknown_words

__all__ = ["ClipEncoder", "load_clip"]

# The names that open_clip itself looks for, in its order of preference.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_NEEDS = (
    "open_clip_config.json",
    "open_clip_model.safetensors|open_clip_pytorch_model.safetensors|open_clip_pytorch_model.bin",
)
_REFERENCE = ("tokenizer.json|vocab.json",)
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json")


class ClipEncoder(PretrainedEncoder):
    """A `model.encoders.encoder.FrameEncoder`; `model` is open_clip's.

    Args:
        model, tokenize, preprocessing, identity, batch: see `model.encoders.pretrained.PretrainedEncoder`.
        tokenizer: the transformers tokenizer that `tokenize` uses; None if open_clip's own, which knows every text.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        preprocessing: Preprocessing,
        identity: EncoderIdentity,
        batch: int,
        tokenizer: Any = None,
    ) -> None:
        super().__init__(model, tokenize, preprocessing, identity, batch)
        self._tokenizer = tokenizer

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the encoder does not know, in their order, each once."""
        return [] if self._tokenizer is None else unknown_words(self._tokenizer, text)

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors of uint8[H, W, 3] RGB frames of any sizes, float32[n, Df] of unit norm.

        Raises:
            UsageError: a frame has another shape or dtype.
        """
        return split_norms(self.frame_features(frames))[0]

    @torch.inference_mode()
    def frame_features(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embeddings of frames as the image tower gives them, float32[n, Df], not of unit norm. Raises as
        `encode_frames`."""
        result = np.empty((len(frames), self.identity.dimension), np.float32)
        for rows, pixels in self.batches(frames):
            with self.half_precision():
                vectors = self.model.encode_image(pixels)
            result[rows] = vectors.float().cpu().numpy()
        return result

    def forward_text(self, ids: Tensor) -> Tensor:
        """Features of token ids int64[n, length], [n, Df]."""
        features: Tensor = self.model.encode_text(ids)
        return features


def load_clip(spec: FrameEncoderSpec, device: torch.device) -> ClipEncoder:
    """Load the CLIP of a profile.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
        WeightsInvalid: open_clip rejects the configuration or the tensors.
    """
    what, whole = f"frame encoder {spec.name}", spec.tower is None
    needs = (*(_NEEDS if whole else _NEEDS[:1]), *(_REFERENCE if spec.tokenizer == "transformers" else ()))
    folder = resolve(spec.source, needs=needs, takes=_TOKENIZER, what=what)
    with loading(what, folder):
        model = open_clip.create_model(
            f"local-dir:{folder}",
            device=device,
            require_pretrained=whole,
            load_weights=whole,
            weights_only=True,  # of a `.bin` file, which `resolve` refuses unless the profile allows it
        )
        tokenizer: Any
        if spec.tokenizer == "transformers":
            tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            as_given = _reference(tokenizer, model.context_length)
        else:
            read: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
            tokenizer, as_given = getattr(read, "tokenizer", read), lambda texts: read(list(texts))
    tokenize = plain_tokenize(as_given, controls_of(tokenizer))
    tower = resolve_tower(spec, f"{what}, weights")
    if tower is not None:
        _copy_frame_selector(model, tower)
    model.eval().requires_grad_(False)
    preprocessing = Preprocessing.from_open_clip(open_clip.get_model_preprocess_cfg(model), source=str(folder))
    identity = identify(
        spec,
        weights=[_preferred_weights(folder)] if tower is None else weights_files(tower),
        preprocessing_digest=preprocessing.digest(),
        dimension=_dimension(model, tokenize, device),
    )
    words = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
    return ClipEncoder(model, tokenize, preprocessing, identity, spec.batch, words)


def _reference(tokenizer: Any, length: int) -> Tokenize:
    """The ids of transformers' tokenizer, int64[n, length], cut at `length` and filled with 0 as OpenAI's."""

    def tokenize(texts: Sequence[str]) -> Tensor:
        """Token ids of texts, int64[n, length]."""
        rows = tokenizer(list(texts), max_length=length, truncation=True).input_ids
        ids = torch.zeros((len(rows), length), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        return ids

    return tokenize


@torch.no_grad()
def _copy_frame_selector(model: Any, folder: Path) -> None:
    """Copy the frame selector's tensors of a checkpoint in the `vilamp` layout into an open_clip model.

    Raises:
        WeightsInvalid: a tensor is missing, extra or of another shape; the message names it as the checkpoint does.
    """
    files = tensor_files(folder)
    names = clip_names(files)
    own = _split_projections(model)
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


def _split_projections(model: Any) -> dict[str, Tensor]:
    """Views of an open_clip model's tensors in transformers' layout: q, k and v separate, projections transposed."""
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


def _preferred_weights(folder: Path) -> Path:
    """The weights file of `folder` that open_clip loads."""
    return next(folder / name for name in _WEIGHTS if (folder / name).exists())


@torch.inference_mode()
def _dimension(model: Any, tokenize: Tokenize, device: torch.device) -> int:
    """Df, the width of the model's vectors."""
    return int(model.encode_text(tokenize(["a"]).to(device)).shape[-1])
