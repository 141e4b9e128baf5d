"""The authors' checkpoint layout (`llava_qwen`): one folder with the language model, the projector, the merger, the
SigLIP tower and the CLIP of keyframe selection.

    model.embed_tokens, model.layers, model.norm, lm_head    Qwen2, under the names of transformers
    model.mm_projector.{0,2}                                 Linear, GELU, Linear
    model.image_newline                                      ends the visual sequence
    model.composer_projector                                 `sig_pooling`: linear_q, linear_iq, linear_ik, linear_k, tau
                                                             `single_token`: {0,2}, one token out of a CLIP embedding
    model.vision_tower.vision_tower.vision_model             SigLIP; see `model.encoders.siglip`
    model.frame_selector.model                               CLIP in transformers' layout; see `model.encoders.clip`

Knows names, shapes and config.json. Paths in config.json that lead to the authors' own disk (`mm_vision_tower`,
`clip_model_path`) are never followed: the profile says where base models are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import WeightsInvalid, validation_message
from model.checkpoints.files import renamed

__all__ = ["VilampConfig", "clip_names", "connector_names", "language_names"]

_CONNECTOR = ("model.mm_projector.", "model.image_newline", "model.composer_projector.")
_ENCODERS = ("model.vision_tower.", "model.frame_selector.")


class VilampConfig(BaseModel):
    """What is read of config.json. A field without a default must be there; unknown fields belong to others.

    `f2f_thrd` is τ of keyframe selection, `f2t_thrd` the relevance floor, `max_frame_num` K. `mm_spatial_pool_stride`
    says how many patches of a keyframe's grid become one token, along each side.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_type: Literal["llava_qwen"]
    # Qwen2
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    tie_word_embeddings: bool
    # vision
    mm_hidden_size: int = Field(gt=0)
    mm_projector_type: Literal["mlp2x_gelu"]
    mm_spatial_pool_mode: str | None = None
    mm_spatial_pool_stride: int | None = Field(default=None, gt=0)
    # the merger and keyframe selection; these defaults are those of the layout's own class
    composer_type: Literal["sig_pooling", "single_token"] = "single_token"
    f2t_thrd: float = -1.0
    f2f_thrd: float | None = None
    max_frame_num: int | None = Field(default=None, gt=0)

    @classmethod
    def read(cls, folder: Path) -> VilampConfig:
        """config.json of a checkpoint folder.

        Raises:
            WeightsInvalid: not JSON, or a field is missing or not what this layout has; the message names it.
        """
        path = folder / "config.json"
        try:
            return cls.model_validate(_json(path))
        except ValidationError as error:
            raise WeightsInvalid(f"{path}: {validation_message(error)}") from None

    def keyframe_tokens(self, patches: int) -> int:
        """How many tokens a keyframe of `patches` patches keeps.

        Raises:
            WeightsInvalid: a way of pooling that is not bilinear.
        """
        stride = self.mm_spatial_pool_stride or 1
        if stride == 1:
            return patches
        if self.mm_spatial_pool_mode != "bilinear":
            raise WeightsInvalid(
                f"config.json: mm_spatial_pool_mode is {self.mm_spatial_pool_mode!r}, only 'bilinear' is known; "
                "set keyframe_tokens in the profile's dfm section"
            )
        return math.ceil(math.isqrt(patches) / stride) ** 2

    def differences(self, *, k: int, tau: float, floor: float) -> list[str]:
        """Where keyframe selection was set otherwise when these weights were trained, in words."""
        pairs = [("K", k, self.max_frame_num), ("τ", tau, self.f2f_thrd), ("the relevance floor", floor, self.f2t_thrd)]
        return [
            f"{name} is {ours}, the weights were trained with {theirs}"
            for name, ours, theirs in pairs
            if theirs not in (None, ours)
        ]

    @staticmethod
    def qwen2(folder: Path) -> Any:
        """The Qwen2Config inside config.json: every field of it that is there, as it is.

        Raises:
            WeightsInvalid: neither `rope_theta` nor `rope_parameters` is there.
        """
        from transformers import Qwen2Config

        raw = _json(folder / "config.json")
        if "rope_theta" not in raw and "rope_theta" not in (raw.get("rope_parameters") or {}):
            raise WeightsInvalid(f"{folder / 'config.json'}: rope_theta is missing")
        fields = Qwen2Config().to_dict().keys() | {"rope_theta", "rope_scaling"}
        return Qwen2Config(**{k: v for k, v in raw.items() if k in fields - {"model_type", "architectures", "dtype"}})


def language_names(names: Iterable[str]) -> list[str]:
    """The tensors that must be the language model's: all that are nobody else's."""
    return [name for name in names if not name.startswith((*_CONNECTOR, *_ENCODERS))]


def connector_names(names: Iterable[str]) -> list[str]:
    """The tensors of projector, newline and merger."""
    return [name for name in names if name.startswith(_CONNECTOR)]


_PREFIX = r"model\.frame_selector\.model\."
# A CLIP in transformers' layout → open_clip's. The three projections of an attention become one; see `encoders_clip`.
_CLIP = {
    _PREFIX + r"text_model\.embeddings\.token_embedding\.weight": "token_embedding.weight",
    _PREFIX + r"text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    _PREFIX + r"text_model\.encoder\.layers\.": "transformer.resblocks.",
    _PREFIX + r"text_model\.final_layer_norm\.": "ln_final.",
    _PREFIX + r"text_projection\.weight": "text_projection",
    _PREFIX + r"vision_model\.embeddings\.class_embedding": "visual.class_embedding",
    _PREFIX + r"vision_model\.embeddings\.patch_embedding\.weight": "visual.conv1.weight",
    _PREFIX + r"vision_model\.embeddings\.position_embedding\.weight": "visual.positional_embedding",
    _PREFIX + r"vision_model\.pre_layrnorm\.": "visual.ln_pre.",
    _PREFIX + r"vision_model\.encoder\.layers\.": "visual.transformer.resblocks.",
    _PREFIX + r"vision_model\.post_layernorm\.": "visual.ln_post.",
    _PREFIX + r"visual_projection\.weight": "visual.proj",
    _PREFIX + r"logit_scale": "logit_scale",
    _PREFIX: "?",
}
_BLOCK = (
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def clip_names(names: Iterable[str]) -> dict[str, str]:
    """Checkpoint name → open_clip name of the frame selector's tensors.

    q, k and v of an attention keep their own names, `….attn.q_proj.weight` for one part of `….attn.in_proj_weight`.
    Buffers of positions are left out; a name that open_clip has no place for begins with `?`.
    """
    chosen = renamed((n for n in names if not n.endswith("position_ids")), _CLIP)
    for name, new in chosen.items():
        if ".resblocks." in new:
            for old, ours in _BLOCK:
                new = new.replace(old, ours)
            chosen[name] = new
    return chosen


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsInvalid(f"{path}: does not read as JSON ({error}); download it again") from error
