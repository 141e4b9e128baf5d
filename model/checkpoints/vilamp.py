"""The checkpoint layout of ViLAMP's authors (`llava_qwen`): one folder with the language model, the projector, the
merger, the SigLIP tower and the CLIP of keyframe selection.

    model.embed_tokens, model.layers, model.norm, lm_head    Qwen2, under the names of transformers
    model.mm_projector.{0,2}                                 Linear, GELU, Linear
    model.image_newline                                      ends the visual sequence
    model.composer_projector                                 `sig_pooling`: linear_q, linear_iq, linear_ik, linear_k,
                                                             tau
                                                             `single_token`: {0,2}, one token out of a CLIP embedding
    model.vision_tower.vision_tower.vision_model             SigLIP; see `model.encoders.siglip`
    model.frame_selector.model                               CLIP in transformers' layout; see `model.encoders.clip`

Knows names, shapes and config.json. Paths in config.json that point to the authors' own disk (`mm_vision_tower`,
`clip_model_path`) are ignored: the profile names the base models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from index.errors import WeightsInvalid
from model.checkpoints.files import renamed
from model.checkpoints.qwen2_fields import WITHOUT_EFFECT, Qwen2Fields

__all__ = ["VilampConfig", "clip_names", "connector_names", "language_names"]

_CONNECTOR = ("model.mm_projector.", "model.image_newline", "model.composer_projector.")
_ENCODERS = ("model.vision_tower.", "model.frame_selector.")


class VilampConfig(Qwen2Fields):
    """The fields of config.json that are used. Fields without a default are required; a field that is neither used nor
    known to have no effect is an error of `qwen2`."""

    without_effect = WITHOUT_EFFECT | {"clip_model_path", "mm_vision_select_layer", "mm_vision_tower"}

    model_type: Literal["llava_qwen"]
    """Name of the layout."""
    mm_hidden_size: int = Field(gt=0)
    """Width of a patch."""
    mm_projector_type: Literal["mlp2x_gelu"]
    """Form of the projector: Linear, GELU, Linear."""
    mm_spatial_pool_mode: str | None = None
    """How a keyframe's patches are pooled: `bilinear` halves the grid along each side, `none` keeps all patches."""
    composer_type: Literal["sig_pooling", "single_token"] = "single_token"
    """The merger; this default and those below are the defaults of the layout's own class."""
    mm_resampler_type: None = None
    """A resampler between tower and projector, which is not supported."""
    mm_use_im_start_end: Literal[False] | None = False
    """Tokens around the frames, which are not supported."""
    add_faster_video: Literal[False] | None = False
    """Frames with fewer tokens between the others, which are not supported."""
    add_time_instruction: Literal[False] | None = False
    """A sentence on the times of the frames, which is not supported."""
    f2t_thrd: float = -1.0
    """Relevance floor of keyframe selection."""
    f2f_thrd: float | None = None
    """τ of keyframe selection."""
    max_frame_num: int | None = Field(default=None, gt=0)
    """K of keyframe selection."""

    def keyframe_tokens(self, patches: int) -> int:
        """Number of tokens of a keyframe with `patches` patches, which form a square grid.

        `bilinear` halves the grid along each side, whatever `mm_spatial_pool_stride` is: the authors' code passes its
        default of 2 and never reads the field. 27 × 27 patches become 14 × 14 = 196 tokens. `none` keeps all patches.

        Raises:
            WeightsInvalid: another pooling, or none is named.
        """
        if self.mm_spatial_pool_mode == "none":
            return patches
        if self.mm_spatial_pool_mode != "bilinear":
            raise WeightsInvalid(
                f"config.json: mm_spatial_pool_mode is {self.mm_spatial_pool_mode!r}, only 'bilinear' and 'none' are "
                "supported; set keyframe_tokens in the profile's dfm section"
            )
        return math.ceil(math.isqrt(patches) / 2) ** 2

    def differences(self, *, k: int, tau: float, floor: float) -> list[str]:
        """Sentences on the settings of keyframe selection that differ from those these weights were trained with."""
        pairs = [("K", k, self.max_frame_num), ("τ", tau, self.f2f_thrd), ("the relevance floor", floor, self.f2t_thrd)]
        return [
            f"{name} is {ours}, the weights were trained with {theirs}"
            for name, ours, theirs in pairs
            if theirs not in (None, ours)
        ]


def language_names(names: Iterable[str]) -> list[str]:
    """Names of the language model's tensors: all that belong neither to the connector nor to an encoder."""
    return [name for name in names if not name.startswith((*_CONNECTOR, *_ENCODERS))]


def connector_names(names: Iterable[str]) -> list[str]:
    """Names of the tensors of projector, newline and merger."""
    return [name for name in names if name.startswith(_CONNECTOR)]


_PREFIX = r"model\.frame_selector\.model\."
# A CLIP in transformers' layout → open_clip's. The three projections of an attention become one; see
# `model.encoders.clip`.
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
    """Map checkpoint names of the frame selector's tensors to open_clip's names.

    q, k and v of an attention keep separate names, `….attn.q_proj.weight` for one part of `….attn.in_proj_weight`.
    Buffers of positions are omitted; the new name of a tensor that open_clip does not have begins with `?`.
    """
    chosen = renamed((n for n in names if not n.endswith("position_ids")), _CLIP)
    for name, new in chosen.items():
        if ".resblocks." in new:
            for old, ours in _BLOCK:
                new = new.replace(old, ours)
            chosen[name] = new
    return chosen
