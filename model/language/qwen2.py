"""Qwen2 checkpoints: a transformers module and its tokenizer from one of the four layouts on disk.

    causal_lm          transformers' own layout of a Qwen2
    llava_onevision    transformers' layouts (there are two) of LLaVA-OneVision; only its language model is read
    vilamp             the layout of ViLAMP's authors; see `model.checkpoints.vilamp`
    videochat_flash    the layout of VideoChat-Flash's authors; see `model.checkpoints.videochat_flash`

Knows names and shapes of tensors. Does not know prefill, caches or answers.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
)
from transformers.initialization import no_init_weights

from index.errors import WeightsInvalid
from model.checkpoints.files import (
    check_tensors,
    loading,
    renamed,
    resolve,
    stream_tensors,
    tensor_files,
    tensor_shapes,
)
from model.checkpoints.videochat_flash import FlashConfig, text_names
from model.checkpoints.vilamp import VilampConfig, language_names
from model.profiles.profile import LanguageModelSpec

__all__ = ["build_qwen2", "load_generation", "load_qwen2", "load_tokenizer", "resolve_qwen2"]

_NEEDS = ("config.json", "tokenizer.json", "*.safetensors")
_TAKES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "*.safetensors.index.json")
# Checkpoint names → Qwen2ForCausalLM names, for both layouts that transformers has written of LLaVA-OneVision.
_LLAVA = {
    r"language_model\.(model|lm_head)\.": r"\1.",
    r"model\.language_model\.": "model.",
    r"lm_head\.": "lm_head.",
    # Any other tensor keeps its name and is then reported as one too many.
    r"(?!(model\.)?(vision_tower|multi_modal_projector|image_newline))": "",
}
_HEAD = "lm_head.weight"


def resolve_qwen2(spec: LanguageModelSpec) -> Path:
    """The local folder of a profile's language model.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
    """
    return resolve(spec.source, needs=_NEEDS, takes=_TAKES, what="language model")


def load_qwen2(spec: LanguageModelSpec, device: torch.device) -> tuple[Any, PreTrainedTokenizerFast]:
    """Load the Qwen2ForCausalLM of a profile and its tokenizer: float32 on a CPU, `spec.dtype` on CUDA.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
        WeightsInvalid: the tensors do not fit, or the tokenizer has no `<|im_end|>`.
    """
    folder = resolve_qwen2(spec)
    dtype = getattr(torch, spec.dtype) if device.type == "cuda" else torch.float32
    with loading("language model", folder):
        if spec.layout == "causal_lm":
            model = _load_causal(folder, dtype).to(device)
        else:
            model = _load_from_multimodal(folder, spec, dtype, device)
    tokenizer = load_tokenizer(folder)
    if tokenizer.convert_tokens_to_ids("<|im_end|>") in (None, tokenizer.unk_token_id):
        raise WeightsInvalid(f"language model: the tokenizer in {folder} has no <|im_end|>; it needs ChatML")
    model.requires_grad_(False)
    return model, tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint folder.

    Raises:
        WeightsInvalid: the tokenizer's files do not load.
    """
    with loading("language model", folder):
        # Not AutoTokenizer: beside a Qwen2 configuration it takes any tokenizer.json for Qwen2's own.
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def load_generation(folder: Path) -> GenerationConfig | None:
    """The generation_config.json of a checkpoint folder; None if there is none.

    Raises:
        WeightsInvalid: the file does not load, or its repetition penalty is not above 0.
    """
    if not (folder / "generation_config.json").is_file():
        return None
    with loading("language model", folder):
        config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    penalty = config.repetition_penalty
    if penalty is not None and not penalty > 0:
        raise WeightsInvalid(f"{folder / 'generation_config.json'}: repetition_penalty must be above 0, got {penalty}")
    return config


def build_qwen2(config: Any, device: torch.device, dtype: torch.dtype, *, empty: bool = False) -> Any:
    """A Qwen2ForCausalLM with SDPA attention, from its configuration alone.

    Args:
        config: a Qwen2Config.
        device: where it is created; may be `meta`.
        dtype: of all weights.
        empty: leave the weights uninitialised; they are random otherwise.
    """
    with torch.device(device), no_init_weights() if empty else nullcontext():
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    return model


def _load_causal(folder: Path, dtype: torch.dtype) -> Any:
    """A checkpoint in the `causal_lm` layout, on the CPU."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        dtype=dtype,
        output_loading_info=True,
        attn_implementation="sdpa",
        use_safetensors=True,
    )
    for key, reason in (("missing_keys", "has no tensor"), ("unexpected_keys", "has one tensor too many,")):
        if report[key]:
            raise WeightsInvalid(f"language model: {folder} {reason} {min(report[key])}")
    return model


@torch.no_grad()
def _load_from_multimodal(folder: Path, spec: LanguageModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """The Qwen2 inside a multimodal checkpoint, one tensor in host memory at a time."""
    files = tensor_files(folder)
    if spec.layout == "vilamp":
        VilampConfig.read(folder)
        config, names = VilampConfig.qwen2(folder), {name: name for name in language_names(files)}
    elif spec.layout == "videochat_flash":
        difference = FlashConfig.read(folder).dropping_difference(spec.dropping)
        if difference is not None:
            raise WeightsInvalid(f"{folder / 'config.json'}: {difference}")
        config, names = FlashConfig.qwen2(folder), {name: name for name in text_names(files)}
    else:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).text_config
        names = renamed(files, _LLAVA)
    head = next((name for name, new in names.items() if new == _HEAD), None)
    if config.tie_word_embeddings and head is not None:
        # A checkpoint with tied weights may contain a head nevertheless: a copy is skipped, a different one is used.
        embedding = next((name for name, new in names.items() if new == "model.embed_tokens.weight"), head)
        both = dict(stream_tensors(files, (head, embedding)))
        if torch.equal(both[head], both[embedding]):
            del names[head]
        else:
            config.tie_word_embeddings = False
    model = build_qwen2(config, device, dtype, empty=True)
    own = model.state_dict()
    if config.tie_word_embeddings:
        own.pop(_HEAD, None)
    back = {new: name for name, new in names.items()}
    shapes = tensor_shapes({name: files[name] for name in names})
    expected = {back.get(new, new): tuple(tensor.shape) for new, tensor in own.items()}
    check_tensors(f"language model: {folder}", shapes, expected)
    for name, tensor in stream_tensors(files, names):
        own[names[name]].copy_(tensor)
    generation = load_generation(folder)
    if generation is not None:
        model.generation_config = generation
    return model.eval()
