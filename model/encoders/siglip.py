"""SigLIP through transformers: the patch encoder.

Patches may leave the vision tower after any layer, with or without the final norm, while the pooled vector always
comes out of the whole tower: one pass gives both.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from index.errors import WeightsInvalid
from index.records import EncoderIdentity
from model.checkpoints.files import loading, read_tensors, renamed, resolve, weights_digest, weights_files
from model.encoders.preprocessing import Preprocessing
from model.profiles.profile import PatchEncoderSpec

__all__ = ["SiglipEncoder", "load_siglip", "tower_names"]

_NEEDS = ("config.json", "preprocessor_config.json", "tokenizer.json", "*.safetensors")
_TAKES = ("tokenizer_config.json", "special_tokens_map.json", "*.safetensors.index.json")
# `vision_tower.vision_model.…` in transformers' LLaVA layouts, `model.vision_tower.vision_tower.vision_model.…` in the
# original one.
_TOWER = r"(model\.)?(vision_tower\.)+(vision_model\.)?"
_FLOAT16_MAX = 65_504.0
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SiglipEncoder:
    """See `PatchEncoder`. `model` is a SiglipModel; `tokenize` gives int64[n, length] ids."""

    def __init__(
        self,
        model: Any,
        tokenize: Callable[[Sequence[str]], Tensor],
        preprocessing: Preprocessing,
        identity: EncoderIdentity,
        spec: PatchEncoderSpec,
    ) -> None:
        self._model, self._tokenize, self._preprocessing = model, tokenize, preprocessing
        self._identity, self._batch = identity, spec.batch
        self._device = next(model.parameters()).device
        vision = model.config.vision_config
        self._patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
        self._normed, self._layer = spec.post_layernorm, spec.layer
        self._taken: Tensor | None = None
        layers = model.vision_model.encoder.layers
        # A hook holds one layer's output; asking transformers for hidden states would hold every layer's.
        layers[spec.layer - 1 if spec.layer > 0 else -1].register_forward_hook(self._take)

    @property
    def identity(self) -> EncoderIdentity:
        return self._identity

    @property
    def patches(self) -> int:
        return self._patches

    @property
    def model(self) -> Any:
        return self._model

    @property
    def preprocessing(self) -> Preprocessing:
        return self._preprocessing

    def tower(self) -> nn.Sequential:
        """The modules that patches pass, and only those: float32[n, 3, H, W] pixels → [n, M, Dp], with gradients."""
        vision = self._model.vision_model
        layers = list(vision.encoder.layers)
        taken = layers[: self._layer] if self._layer > 0 else layers
        return nn.Sequential(
            vision.embeddings, *map(_Unmasked, taken), vision.post_layernorm if self._normed else nn.Identity()
        )

    def _take(self, module: Any, inputs: Any, output: Any) -> None:
        self._taken = output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        width = self._identity.dimension
        pooled = np.empty((len(frames), width), np.float32)
        patches = np.empty((len(frames), self._patches, width), np.float16)
        for i in range(0, len(frames), self._batch):
            pixels = self._preprocessing(frames[i : i + self._batch], self._device)
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                out = self._model.vision_model(pixel_values=pixels)
            tokens: Any = out.last_hidden_state if self._normed else self._taken
            self._taken = None
            pooled[i : i + self._batch] = _unit(out.pooler_output)
            # A few channels of large towers are huge; they must not become infinite in half precision.
            patches[i : i + self._batch] = tokens.float().clamp_(-_FLOAT16_MAX, _FLOAT16_MAX).half().cpu().numpy()
        return pooled, patches

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self._identity.dimension), np.float32)
        return _unit(self._model.text_model(input_ids=self._tokenize(texts).to(self._device)).pooler_output)


class _Unmasked(nn.Module):
    """An encoder layer without an attention mask."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.layer(hidden, None)
        return result


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    return functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def load_siglip(spec: PatchEncoderSpec, device: torch.device) -> SiglipEncoder:
    """The SigLIP of a profile, its vision layers replaced by those of `spec.tower` where there is one.

    Raises:
        WeightsNotFound: see `resolve`.
        WeightsInvalid: a configuration or tensors that do not fit, or text and patches of different width.
    """
    from transformers import SiglipModel

    what = f"patch encoder {spec.name}"
    folder = resolve(spec.source, needs=_NEEDS, takes=_TAKES, what=what)
    files = weights_files(folder)
    with loading(what, folder):
        model, report = SiglipModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    if report["missing_keys"]:
        raise WeightsInvalid(f"{what}: {folder} has no tensor {min(report['missing_keys'])}; is it a SigLIP?")
    if spec.tower is not None:
        takes = ("*.safetensors.index.json",)
        tower = resolve(spec.tower, needs=("*.safetensors",), takes=takes, what=f"{what}, vision tower")
        files += weights_files(tower)
        _replace_vision(model, tower, spec)
    layers = len(model.vision_model.encoder.layers)
    if spec.layer > layers:
        raise WeightsInvalid(f"{what}: layer {spec.layer} was asked for, {folder} has {layers}; change the profile")
    width = int(model.config.vision_config.hidden_size)
    text_width = int(model.text_model.head.out_features)
    if width != text_width:
        raise WeightsInvalid(f"{what}: patches have {width} dimensions and texts {text_width}; DFM compares the two")
    preprocessing = Preprocessing.from_transformers(_json(folder / "preprocessor_config.json"), source=str(folder))
    identity = EncoderIdentity(
        name=spec.name,
        revision="+".join(s.revision or "local" for s in (spec.source, spec.tower) if s is not None),
        weights_digest=weights_digest(files),
        preprocessing_digest=preprocessing.digest(layer=spec.layer, post_layernorm=spec.post_layernorm),
        dimension=width,
    )
    model.to(device).eval().requires_grad_(False)
    tokenize = _tokenizer(folder, int(model.config.text_config.max_position_embeddings), what)
    return SiglipEncoder(model, tokenize, preprocessing, identity, spec)


def tower_names(names: Iterable[str]) -> dict[str, str]:
    """Checkpoint name → name in the vision model, of the tensors of a vision tower."""
    return renamed(names, {_TOWER: ""})


def _replace_vision(model: Any, folder: Path, spec: PatchEncoderSpec) -> None:
    """Put the tower's tensors in place; every one up to the layer that patches leave must be there."""
    new = read_tensors(folder, {_TOWER: ""})
    vision = model.vision_model
    depth = spec.layer if spec.layer > 0 else len(vision.encoder.layers)
    own = vision.state_dict()
    for name in sorted(new.keys() - own.keys()):
        if not name.endswith("position_ids"):
            raise WeightsInvalid(
                f"{folder}: the vision tower's {name} is one too many; the base SigLIP has no such tensor"
            )
    needed = [name for name in own if name.startswith("embeddings.") or _layer(name) < depth]
    for name in needed:
        if name not in new:
            raise WeightsInvalid(f"{folder}: the vision tower has no {name}; patches leave after layer {depth}")
        if new[name].shape != own[name].shape:
            shapes = f"{list(new[name].shape)}, the base SigLIP has {list(own[name].shape)}"
            raise WeightsInvalid(f"{folder}: the vision tower's {name} is {shapes}; the two do not belong together")
    vision.load_state_dict({name: new[name].float() for name in needed}, strict=False)


def _layer(name: str) -> float:
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layers"] else float("inf")


def _tokenizer(folder: Path, length: int, what: str) -> Callable[[Sequence[str]], Tensor]:
    """Texts → ids padded to `length`, as SigLIP was trained.

    The fast tokenizer is read from tokenizer.json, so sentencepiece is not needed; the cleaning that the original
    SigLIP tokenizer does before it (no punctuation, lower case) is done here for checkpoints that name that class.
    """
    from transformers import PreTrainedTokenizerFast

    config = folder / "tokenizer_config.json"
    original = config.is_file() and str(_json(config).get("tokenizer_class", "")).startswith("SiglipTokenizer")
    with loading(f"{what}, tokenizer", folder):
        fast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)

    def tokenize(texts: Sequence[str]) -> Tensor:
        clean = [" ".join(t.translate(_NO_PUNCTUATION).lower().split()) for t in texts] if original else list(texts)
        ids: Tensor = fast(
            clean, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return ids

    return tokenize


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsInvalid(f"{path}: does not read as JSON ({error}); download it again") from error
    return dict(data)
