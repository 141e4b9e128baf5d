"""The fields of a Qwen2 in the config.json of a checkpoint that has other models beside it.

Knows config.json alone; names and shapes of tensors are in the modules of the layouts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import WeightsInvalid, validation_message

__all__ = ["WITHOUT_EFFECT", "Qwen2Fields"]


WITHOUT_EFFECT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "auto_map",
        "_attn_implementation",
        "attn_implementation",
        "faster_token_stride",
        "force_sample",
        "freeze_mm_mlp_adapter",
        "image_aspect_ratio",
        "image_crop_resolution",
        "image_grid_pinpoints",
        "image_split_resolution",
        "image_token_index",
        "mm_compressor_type",
        "mm_newline_position",
        "mm_patch_merge_type",
        "mm_projector_lr",
        "mm_spatial_pool_out_channels",
        "mm_spatial_pool_stride",
        "mm_tunable_parts",
        "mm_use_im_patch_token",
        "mm_vision_select_feature",
        "mm_vision_tower_lr",
        "pos_skipping_range",
        "tokenizer_model_max_length",
        "tokenizer_padding_side",
        "torch_dtype",
        "transformers_version",
        "tune_mm_mlp_adapter",
        "unfreeze_mm_vision_tower",
        "use_mm_proj",
        "use_pos_skipping",
        "vision_tower_pretrained",
    ]
)
"""Fields of LLaVA's layouts that have no effect on an answer about video: paths, training, single pictures, notes."""


class Qwen2Fields(BaseModel):
    """The fields of a Qwen2. Fields without a default are required; for others see `without_effect`."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), use_attribute_docstrings=True)

    without_effect: ClassVar[frozenset[str] | None] = None
    """Fields that have no effect on an answer. `qwen2` refuses any that is neither used, nor Qwen2's, nor one of these;
    None for a layout whose other fields are ignored."""
    vocab_size: int = Field(gt=0)
    """Qwen2: tokens of the vocabulary."""
    hidden_size: int = Field(gt=0)
    """Qwen2: width."""
    intermediate_size: int = Field(gt=0)
    """Qwen2: width of the feed-forward layers."""
    num_hidden_layers: int = Field(gt=0)
    """Qwen2: layers."""
    num_attention_heads: int = Field(gt=0)
    """Qwen2: attention heads."""
    num_key_value_heads: int = Field(gt=0)
    """Qwen2: heads of keys and values."""
    max_position_embeddings: int = Field(gt=0)
    """Qwen2: largest number of positions."""
    rms_norm_eps: float = Field(gt=0)
    """Qwen2: epsilon of the norms."""
    tie_word_embeddings: bool
    """Qwen2: whether the head shares its weights with the embedding."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read config.json of a checkpoint folder.

        Raises:
            WeightsInvalid: the file is not JSON, or a field is missing or invalid; the message names it.
        """
        path = folder / "config.json"
        try:
            return cls.model_validate(_json(path))
        except ValidationError as error:
            raise WeightsInvalid(f"{path}: {validation_message(error)}") from None

    @classmethod
    def qwen2(cls, folder: Path) -> Any:
        """The Qwen2Config inside config.json, with every field of it that is present.

        Raises:
            WeightsInvalid: the file has neither `rope_theta` nor `rope_parameters`, or has a field that is not known.
        """
        from transformers import Qwen2Config

        raw = _json(folder / "config.json")
        if "rope_theta" not in raw and "rope_theta" not in (raw.get("rope_parameters") or {}):
            raise WeightsInvalid(f"{folder / 'config.json'}: rope_theta is missing")
        fields = Qwen2Config().to_dict().keys() | {"rope_theta", "rope_scaling"}
        known = fields | cls.model_fields.keys() | (raw.keys() if cls.without_effect is None else cls.without_effect)
        # A field that is empty or false switches nothing on.
        unknown = sorted(
            key for key, value in raw.items() if key not in known and value not in (None, False, "", [], {})
        )
        if unknown:
            raise WeightsInvalid(
                f"{folder / 'config.json'}: {', '.join(unknown)}: not known, so answers may differ from those of the "
                "authors' code; if a field has no effect on an answer, remove it from the file"
            )
        return Qwen2Config(**{k: v for k, v in raw.items() if k in fields - {"model_type", "architectures", "dtype"}})


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsInvalid(f"{path}: is not valid JSON ({error}); download it again") from error
