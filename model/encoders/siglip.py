"""The patch encoder: a SigLIP through transformers.

Patches leave the vision tower after the layer that the profile names, with or without the final norm. The pooled vector
always comes out of the whole tower. One pass gives both.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SiglipModel

from index.errors import WeightsInvalid
from index.records import EncoderIdentity
from model.checkpoints.files import loading, read_tensors, renamed, resolve, weights_files
from model.encoders.plain_tokens import controls_of, plain_tokenize
from model.encoders.preprocessing import Preprocessing
from model.encoders.pretrained import PretrainedEncoder, Tokenize, half_patches, identify, resolve_tower, unit_vectors
from model.profiles.profile import PatchEncoderSpec

__all__ = ["SiglipEncoder", "load_siglip", "tower_names"]

_NEEDS = ("config.json", "preprocessor_config.json", "tokenizer.json", "*.safetensors")
_TAKES = ("tokenizer_config.json", "special_tokens_map.json", "*.safetensors.index.json")
# `vision_tower.vision_model.…` in transformers' LLaVA layouts, `model.vision_tower.vision_tower.vision_model.…` in the
# original layout.
_TOWER = r"(model\.)?(vision_tower\.)+(vision_model\.)?"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class SiglipEncoder(PretrainedEncoder):
    """A `model.encoders.encoder.PatchEncoder`; `model` is a SiglipModel. `spec` says where patches leave it."""

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        preprocessing: Preprocessing,
        identity: EncoderIdentity,
        spec: PatchEncoderSpec,
    ) -> None:
        super().__init__(model, tokenize, preprocessing, identity, spec.batch)
        vision = model.config.vision_config
        self.patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
        self._post_layernorm, self._layer = spec.post_layernorm, spec.layer
        self._layer_output: Tensor | None = None
        layers = model.vision_model.encoder.layers
        # A hook keeps one layer's output; transformers' `output_hidden_states` would keep the output of every layer.
        layers[spec.layer - 1 if spec.layer > 0 else -1].register_forward_hook(self._keep_output)

    def tower(self) -> nn.Sequential:
        """The modules that patches pass, and only those: pixels float32[n, 3, H, W] → [n, M, Dp], with gradients."""
        vision = self.model.vision_model
        layers = list(vision.encoder.layers)
        passed = layers[: self._layer] if self._layer > 0 else layers
        norm = vision.post_layernorm if self._post_layernorm else nn.Identity()
        return nn.Sequential(vision.embeddings, *map(_UnmaskedLayer, passed), norm)

    @torch.inference_mode()
    def encode_frames(
        self, frames: Sequence[NDArray[np.uint8]], clips: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Pooled vectors float32[n, Dp] of unit norm, and patches float16[n, M, Dp], of uint8[H, W, 3] RGB frames.

        `clips` has no effect: each frame is encoded by itself.

        Raises:
            UsageError: a frame has another shape or dtype.
        """
        width = self.identity.dimension
        pooled = np.empty((len(frames), width), np.float32)
        patches = np.empty((len(frames), self.patches, width), np.float16)
        for rows, pixels in self.batches(frames):
            vectors, tokens = self.features(pixels)
            pooled[rows], patches[rows] = unit_vectors(vectors), half_patches(tokens)
        return pooled, patches

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [n, Dp], not of unit norm, and patches [n, M, Dp], both float32 on the model's device, of
        preprocessed pixels float32[n, 3, height, width]."""
        with self.half_precision():
            out = self.model.vision_model(pixel_values=pixels)
        tokens: Any = out.last_hidden_state if self._post_layernorm else self._layer_output
        self._layer_output = None
        return out.pooler_output.float(), tokens.float()

    def forward_text(self, ids: Tensor) -> Tensor:
        """Features of token ids int64[n, length], [n, Dp]."""
        features: Tensor = self.model.text_model(input_ids=ids).pooler_output
        return features

    def _keep_output(self, module: Any, inputs: Any, output: Any) -> None:
        self._layer_output = output[0] if isinstance(output, tuple) else output


class _UnmaskedLayer(nn.Module):
    """An encoder layer without an attention mask."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, M, Dp] after the layer."""
        result: Tensor = self.layer(hidden, None)
        return result


def load_siglip(spec: PatchEncoderSpec, device: torch.device) -> SiglipEncoder:
    """Load the SigLIP of a profile; the vision layers of `spec.tower`, if given, replace its own.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
        WeightsInvalid: the configuration or the tensors do not fit, or texts and patches differ in width.
    """
    what = f"patch encoder {spec.name}"
    folder = resolve(spec.source, needs=_NEEDS, takes=_TAKES, what=what)
    files = weights_files(folder)
    with loading(what, folder):
        model, report = SiglipModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, use_safetensors=True
        )
    if report["missing_keys"]:
        raise WeightsInvalid(f"{what}: {folder} has no tensor {min(report['missing_keys'])}; is it a SigLIP?")
    tower = resolve_tower(spec, f"{what}, vision tower")
    if tower is not None:
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
    identity = identify(
        spec,
        weights=files,
        preprocessing_digest=preprocessing.digest(layer=spec.layer, post_layernorm=spec.post_layernorm),
        dimension=width,
    )
    model.to(device).eval().requires_grad_(False)
    tokenize = _tokenizer(folder, int(model.config.text_config.max_position_embeddings), what)
    return SiglipEncoder(model, tokenize, preprocessing, identity, spec)


def tower_names(names: Iterable[str]) -> dict[str, str]:
    """Map checkpoint names of a vision tower's tensors to their names in transformers' vision model."""
    return renamed(names, {_TOWER: ""})


def _replace_vision(model: Any, folder: Path, spec: PatchEncoderSpec) -> None:
    """Replace the vision layers of `model`, up to the layer after which patches leave, by those in `folder`."""
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
    """The encoder layer of a tensor; infinity for tensors outside of the layers."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layers"] else float("inf")


def _tokenizer(folder: Path, length: int, what: str) -> Tokenize:
    """A function from texts to token ids padded to `length`, as SigLIP was trained.

    The fast tokenizer is read from tokenizer.json, so sentencepiece is not needed. The original SigLIP tokenizer
    removes punctuation and lower-cases first; that is done here for checkpoints that name its class. Control tokens in
    a text are read as ordinary text.
    """
    config = folder / "tokenizer_config.json"
    original = config.is_file() and str(_json(config).get("tokenizer_class", "")).startswith("SiglipTokenizer")
    with loading(f"{what}, tokenizer", folder):
        fast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)

    def tokenize(texts: Sequence[str]) -> Tensor:
        """Token ids of texts, int64[n, length]."""
        clean = [" ".join(t.translate(_NO_PUNCTUATION).lower().split()) for t in texts] if original else list(texts)
        ids: Tensor = fast(
            clean, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return ids

    return plain_tokenize(tokenize, controls_of(fast))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsInvalid(f"{path}: is not valid JSON ({error}); download it again") from error
    return dict(data)
