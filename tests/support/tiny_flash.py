"""Random checkpoints in the layout of VideoChat-Flash's authors, with the published names of tensors and fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.support.tiny_checkpoints import LANGUAGE_WIDTH, TEXT_FIELDS, save_state, save_tokenizer

TOWER = "model.vision_tower.vision_tower.encoder."


def tower_state(width: int, blocks: int, *, patch: int = 16) -> dict[str, torch.Tensor]:
    """Tensors of a UMT of `blocks` blocks by their published names, without the prefix."""
    generator = torch.Generator().manual_seed(8)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    state = {"patch_embed.proj.weight": make(width, 3, 1, patch, patch), "patch_embed.proj.bias": make(width)}
    for i in range(blocks):
        state |= {
            f"blocks.{i}.norm1.weight": 1 + make(width),
            f"blocks.{i}.norm1.bias": make(width),
            f"blocks.{i}.attn.qkv.weight": make(3 * width, width),
            f"blocks.{i}.attn.q_bias": make(width),
            f"blocks.{i}.attn.v_bias": make(width),
            f"blocks.{i}.attn.proj.weight": make(width, width),
            f"blocks.{i}.attn.proj.bias": make(width),
            f"blocks.{i}.norm2.weight": 1 + make(width),
            f"blocks.{i}.norm2.bias": make(width),
            f"blocks.{i}.mlp.fc1.weight": make(4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": make(4 * width),
            f"blocks.{i}.mlp.fc2.weight": make(width, 4 * width),
            f"blocks.{i}.mlp.fc2.bias": make(width),
        }
    return state | {"vision_layernorm.weight": 1 + make(width), "vision_layernorm.bias": make(width)}


def save_videochat_flash(
    folder: Path, *, width: int = 64, blocks: int = 2, shards: int = 1, tied: bool = False, **config: Any
) -> tuple[Qwen2ForCausalLM, dict[str, torch.Tensor]]:
    """Write a whole checkpoint; `config` overrides fields of config.json, None removes one.

    Args:
        folder: created by this function.
        width: width of the clip encoder.
        blocks: blocks of it that are stored.
        shards: files of the weights.
        tied: whether the language model's head shares its weights with the embedding.

    Returns:
        The language model, and the connector's tensors by their names.
    """
    folder.mkdir(parents=True)
    save_tokenizer(folder, close=False)
    torch.manual_seed(9)
    fields = {**TEXT_FIELDS, "tie_word_embeddings": tied, "rope_theta": 1e6}
    language = Qwen2ForCausalLM(Qwen2Config(**fields)).eval()
    connector = {
        f"model.mm_projector.mlp.{layer}.{kind}": torch.randn(shape) * 0.3
        for layer, wide in ((0, width), (2, LANGUAGE_WIDTH))
        for kind, shape in (("weight", (LANGUAGE_WIDTH, wide)), ("bias", (LANGUAGE_WIDTH,)))
    }
    state = {name: tensor for name, tensor in language.state_dict().items() if not (tied and name == "lm_head.weight")}
    state |= connector | {f"{TOWER}{name}": tensor for name, tensor in tower_state(width, blocks).items()}
    save_state(folder, state, shards=shards)
    written: dict[str, Any] = {
        **fields,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "model_type": "videochat_flash_qwen",
        "architectures": ["VideoChatFlashQwenForCausalLM"],
        "mm_vision_tower": "umt-hd-large",
        "mm_hidden_size": width,
        "mm_vision_select_layer": -2,
        "mm_projector_type": "tome16_mlp_hd64",
        "mm_local_num_frames": 4,
        "mm_pos_num_frames": 8,
        "vision_encode_type": "video_image",
        "mm_patch_merge_type": "spatial_nopad",
        "mm_newline_position": "nothing",
        "mm_llm_compress": False,
        "llm_compress_type": "attention",
        "llm_compress_layer_list": [8, 16, 24],
        "llm_image_token_ratio_list": [1.0, 0.5, 0.25, 0.125],
        "min_slow_num_frames": 4,
        "max_num_pixels": 14_745_600_000,
        "frame_aspect_ratio": "square",
        "image_aspect_ratio": "anyres_nopad",
        **config,
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in written.items() if v is not None}))
    return language, connector
