"""The checkpoint layout of VideoChat-Flash's authors: one folder with the language model, the connector and the clip
encoder.

    model.embed_tokens, model.layers, model.norm, lm_head    Qwen2, under the names of transformers
    model.mm_projector.mlp.{0,2}                             Linear, GELU, Linear; the merging of tokens has no weights
    model.vision_tower.vision_tower.encoder                  UMT-L

Knows names, shapes and config.json. Fields that would change the result have the values that the released checkpoints
have, and any other value is an error, as is a field that is not known. Fields of still images (`image_aspect_ratio`,
`max_num_pixels`) and of training are ignored, because footage is read by clips alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator

from model.checkpoints.qwen2_fields import WITHOUT_EFFECT, Qwen2Fields
from model.profiles.profile import DroppingSpec

__all__ = ["ENCODER_PREFIX", "FlashConfig", "projector_names", "text_names"]

ENCODER_PREFIX = "model.vision_tower.vision_tower.encoder."
"""What the names of the clip encoder's tensors begin with."""

_PROJECTOR, _TOWER = "model.mm_projector.", "model.vision_tower."


class FlashConfig(Qwen2Fields):
    """The fields of config.json that are used. Fields without a default are required; a field that is neither used nor
    known to have no effect is an error of `qwen2`."""

    without_effect = WITHOUT_EFFECT | {
        "frame_grid_pinpoints",
        "max_num_pixels",
        "min_slow_num_frames",
        "mm_pos_num_frames",
    }

    model_type: Literal["videochat_flash_qwen", "llava_qwen_flash"]
    """Name of the layout, on the hub and in the authors' repository."""
    mm_hidden_size: int = Field(gt=0)
    """Width of a token of the clip encoder."""
    mm_projector_type: Literal["tome16_mlp_hd64"]
    """Tokens of a clip are merged to 16 a frame, compared over heads of 64, and then mapped."""
    mm_vision_tower: str
    """Name or path of the clip encoder: `umt-large` (224 pixels) or, with `umt-hd` in it, 448 pixels."""
    mm_vision_select_layer: Literal[-2] = -2
    """The encoder's last layer is not run."""
    mm_vision_select_feature: Literal["patch"] = "patch"
    """Tokens of patches, without a class token."""
    mm_local_num_frames: int = Field(default=4, gt=0)
    """Frames of a clip."""
    vision_encode_type: Literal["video_image"] = "video_image"
    """Footage is encoded by clips."""
    mm_patch_merge_type: Literal["spatial_nopad"] = "spatial_nopad"
    """No tokens are added between the frames of a clip."""
    mm_newline_position: Literal["nothing"] = "nothing"
    """Nothing separates clips."""
    mm_resampler_type: None = None
    """No resampler."""
    mm_use_im_start_end: Literal[False] = False
    """No tokens around the visual ones."""
    frame_aspect_ratio: Literal["square"] = "square"
    """Frames are squeezed into a square."""
    mm_llm_compress: bool = False
    """Whether the language model drops visual tokens in deep layers."""
    llm_compress_type: str = "attention"
    """How it drops them; see `model.profiles.profile.DroppingSpec.kind`."""
    llm_compress_layer_list: tuple[int, ...] = (8, 16, 24)
    """Layers after which it drops them."""
    llm_image_token_ratio_list: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    """Shares of the visual tokens that the groups of layers read."""

    @field_validator("mm_vision_tower")
    @classmethod
    def _is_umt(cls, name: str) -> str:
        if "umt-large" not in name and "umt-hd" not in name:
            raise ValueError(f"only umt-large and umt-hd-large are supported, got {name!r}")
        return name

    @property
    def image_size(self) -> int:
        """Side of the clip encoder's square input, pixels."""
        return 448 if "umt-hd" in self.mm_vision_tower else 224

    def dropping_difference(self, dropping: DroppingSpec | None) -> str | None:
        """A sentence on how the profile's dropping differs from the checkpoint's; None if the checkpoint drops nothing,
        which leaves the choice to the profile, or if both are equal."""
        if not self.mm_llm_compress:
            return None
        theirs = (self.llm_compress_layer_list, self.llm_image_token_ratio_list, self.llm_compress_type)
        if dropping is not None and (dropping.layers, dropping.ratios, dropping.kind) == theirs:
            return None
        layers, ratios, kind = theirs
        return (
            f"mm_llm_compress is true: set layers = {list(layers)}, ratios = {list(ratios)} and kind = {kind!r} in the "
            "profile's section language_model.dropping"
        )


def text_names(names: Iterable[str]) -> list[str]:
    """Names of the language model's tensors: all that belong neither to the connector nor to the clip encoder."""
    return [name for name in names if not name.startswith((_PROJECTOR, _TOWER))]


def projector_names(names: Iterable[str]) -> list[str]:
    """Names of the connector's tensors."""
    return [name for name in names if name.startswith(_PROJECTOR)]
