"""Random checkpoints of a few thousand parameters in the layouts of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.visual.connector import Connector

SIZE, PATCH, WIDTH = 32, 8, 24
CLIP_WIDTH = 16
PATCHES = (SIZE // PATCH) ** 2
LANGUAGE_WIDTH = 32
_SENTENCES = (
    "system user assistant you are a helpful what colour was the truck at gate red blue green white car please choose",
    "right answer from following options where when . , : ; ? ' \" [ ] 00 08 07 15 59",
)
WORDS = " ".join(_SENTENCES).split()
VOCABULARY = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *WORDS, "<eos>"]
TEXT_FIELDS: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": len(VOCABULARY),
    "hidden_size": LANGUAGE_WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
"""Fields of a Qwen2Config."""


def save_tokenizer(folder: Path, *, close: bool) -> Any:
    """Write a word-level tokenizer like that of `micro`; `close` appends `<eos>`, as the encoders require."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Fuse(), decoders.Replace(" : ", ":")]
    )
    if close:
        raw.post_processor = processors.TemplateProcessing(
            single="$A <eos>", pair="$A $B <eos>", special_tokens=[("<eos>", ids["<eos>"])]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>" if close else "<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_qwen_tokenizer(folder: Path) -> Any:
    """Write a tokenizer as Qwen2's checkpoints have it: bytes and merges, composed (NFC), with its added tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_clip(folder: Path, *, resize_mode: str = "squash") -> Path:
    """Write a CLIP in open_clip's layout."""
    folder.mkdir(parents=True)
    save_tokenizer(folder, close=True)
    config: dict[str, Any] = {
        "embed_dim": CLIP_WIDTH,
        "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": PATCH},
        "text_cfg": {
            "context_length": 12,
            "vocab_size": len(VOCABULARY),
            "hf_tokenizer_name": "tokenizer",
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    half = (0.5, 0.5, 0.5)
    preprocess = {"size": SIZE, "mean": half, "std": half, "interpolation": "bicubic", "resize_mode": resize_mode}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    state = {k: v.half().contiguous() for k, v in CLIP(**config).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def save_siglip(folder: Path, *, layers: int = 3, tokenizer_class: str | None = None) -> Path:
    """Write a SigLIP in transformers' layout."""
    folder.mkdir(parents=True)
    save_tokenizer(folder, close=True)
    if tokenizer_class is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": tokenizer_class}))
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "projection_size": WIDTH,
        "pad_token_id": 0,
        "bos_token_id": len(VOCABULARY) - 1,
        "eos_token_id": len(VOCABULARY) - 1,
    }
    torch.manual_seed(2)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=_vision(layers)))
    model.half().save_pretrained(folder)
    preprocess = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocess))
    return folder


def _vision(layers: int, *, head: bool = True) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": PATCH,
        "vision_use_head": head,
    }


def save_language(folder: Path) -> Path:
    """Write a Qwen2 in transformers' layout."""
    folder.mkdir(parents=True)
    save_tokenizer(folder, close=False)
    torch.manual_seed(3)
    Qwen2ForCausalLM(Qwen2Config(**TEXT_FIELDS)).half().save_pretrained(folder)
    return folder


def save_connector(path: Path) -> Path:
    """Write a two-stream connector."""
    torch.manual_seed(4)
    Connector(WIDTH, LANGUAGE_WIDTH).save(path)
    return path


def save_llava_onevision(folder: Path, *, layers: int = 2, tied: bool = True, shards: int = 1) -> Any:
    """Write a LLaVA-OneVision, whose vision tower has `layers` layers and no pooling head, as in the published one.

    Returns:
        The model that was saved.
    """
    folder.mkdir(parents=True)
    save_tokenizer(folder, close=False)
    torch.manual_seed(5)
    config = LlavaOnevisionConfig(
        vision_config=_vision(layers, head=False),
        text_config={**TEXT_FIELDS, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    if shards > 1:
        state = load_state(folder)
        (folder / "model.safetensors").unlink()
        save_state(folder, state, shards=shards)
    return model


def save_vilamp(folder: Path, *, composer: str = "sig_pooling", shards: int = 1, layers: int = 2, **config: Any) -> Any:
    """Write a checkpoint in the layout of ViLAMP's authors; `config` overrides fields of config.json, None removes one.

    Returns:
        Its parts: the language model (Qwen2ForCausalLM), the SigLIP (SiglipVisionModel) and the CLIP (CLIPModel).
    """
    folder.mkdir(parents=True)
    save_tokenizer(folder, close=False)
    torch.manual_seed(6)
    language = Qwen2ForCausalLM(Qwen2Config(**{**TEXT_FIELDS, "tie_word_embeddings": False, "rope_theta": 1e6})).eval()
    vision = SiglipVisionModel(SiglipVisionConfig(**_vision(layers, head=False))).eval()
    tower = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "vocab_size": len(VOCABULARY),
                "max_position_embeddings": 12,
                "hidden_act": "gelu",
                "bos_token_id": len(VOCABULARY) - 1,
                "eos_token_id": len(VOCABULARY) - 1,
            },
            vision_config={**tower, "image_size": SIZE, "patch_size": PATCH, "hidden_act": "gelu"},
            projection_dim=CLIP_WIDTH,
        )
    ).eval()
    state = dict(language.state_dict())
    plain = {k.removeprefix("vision_model."): v for k, v in vision.state_dict().items()}
    state |= {f"model.vision_tower.vision_tower.vision_model.{k}": v for k, v in plain.items()}
    state |= {f"model.frame_selector.model.{k}": v for k, v in clip.state_dict().items()}
    state |= {
        f"model.mm_projector.{i}.{kind}": torch.randn(shape) * 0.3
        for i, width in ((0, WIDTH), (2, LANGUAGE_WIDTH))
        for kind, shape in (("weight", (LANGUAGE_WIDTH, width)), ("bias", (LANGUAGE_WIDTH,)))
    }
    state["model.image_newline"] = torch.randn(LANGUAGE_WIDTH)
    first = {"sig_pooling": "linear_q", "single_token": "0"}[composer]
    others = {"sig_pooling": ("linear_iq", "linear_ik", "linear_k"), "single_token": ("2",)}[composer]
    for name in (first, *others):
        width = CLIP_WIDTH if name == first else LANGUAGE_WIDTH
        state[f"model.composer_projector.{name}.weight"] = torch.randn(LANGUAGE_WIDTH, width) * 0.3
        state[f"model.composer_projector.{name}.bias"] = torch.randn(LANGUAGE_WIDTH) * 0.3
    if composer == "sig_pooling":
        state["model.composer_projector.tau"] = torch.tensor(0.05)
    save_state(folder, state, shards=shards)
    fields: dict[str, Any] = {
        **TEXT_FIELDS,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": "/home/author/siglip",
        "clip_model_path": "/home/author/clip",
        "mm_hidden_size": WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "mm_spatial_pool_mode": "bilinear",
        "f2f_thrd": 0.85,
        "f2t_thrd": 0.2,
        "max_frame_num": 32,
        "composer_type": composer,
        **config,
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return language, vision, clip


def save_state(folder: Path, state: dict[str, Any], *, shards: int) -> None:
    """Write tensors as one `model.safetensors`, or as `shards` files with an index."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({n: tensors[n] for n in names[i::shards]}, folder / file, metadata={"format": "pt"})
    weight_map = {name: files[i % shards] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load_state(folder: Path) -> dict[str, Any]:
    """All tensors of a folder."""
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}
