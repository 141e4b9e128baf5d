"""The language model: embeddings in, tokens out. A Qwen2 through transformers.

Knows prefill with a key-value cache, greedy decoding and the scoring of given answers. Does not know frames, prompts
or questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.errors import BudgetExceeded, UsageError, WeightsInvalid
from model.checkpoints.files import (
    check_tensors,
    loading,
    renamed,
    resolve,
    stream_tensors,
    tensor_files,
    tensor_shapes,
)
from model.checkpoints.vilamp import VilampConfig, language_names
from model.profiles.profile import LanguageModelSpec

__all__ = ["PREFILL_TOKENS", "LanguageModel", "Reading", "build_qwen2", "load_language", "load_transformers"]

# Prefill goes in pieces, so that activations stay small however long the prompt is.
PREFILL_TOKENS = 2048
_NEEDS = ("config.json", "tokenizer.json", "*.safetensors")
_TAKES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "*.safetensors.index.json")
# Checkpoint names → Qwen2ForCausalLM names, for both layouts transformers has written of LLaVA-OneVision.
_LLAVA = {
    r"language_model\.(model|lm_head)\.": r"\1.",
    r"model\.language_model\.": "model.",
    r"lm_head\.": "lm_head.",
    r"(?!(model\.)?(vision_tower|multi_modal_projector|image_newline))": "",  # nobody's: one too many
}
_HEAD = "lm_head.weight"


@dataclass(slots=True)
class Reading:
    """A prompt that was read: its key-value cache, its length, and the logits [vocabulary] after its last token."""

    cache: Any
    length: int
    logits: Tensor


class LanguageModel:
    """A causal language model with its tokenizer.

    `max_context` is the token budget of prompt and answer together, `cache_budget` the most bytes of one prompt's
    key-value cache; None for what the device has free.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_context: int, cache_budget: int | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.cache_budget = cache_budget
        self.max_context = min(max_context, int(model.config.max_position_embeddings))
        self.width = int(model.config.hidden_size)
        ends = _listed(model.generation_config.eos_token_id)
        self.end_id = -1
        if tokenizer is not None:  # random weights have none
            self.end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
            ends += [self.end_id, tokenizer.eos_token_id]
        self.stop_ids = frozenset(int(i) for i in ends if i is not None)

    @property
    def device(self) -> torch.device:
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype  # type: ignore[no-any-return]

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token ids → [n, width] in the model's dtype."""
        table = self.model.get_input_embeddings()
        rows: Tensor = table(torch.tensor(ids, dtype=torch.long, device=self.device))
        return rows

    @torch.inference_mode()
    def read(self, embeddings: Tensor, *, room: int = 256) -> Reading:
        """Prefill: [T, width] → the cache and the logits after the last token.

        The cache is allocated first, for T and `room` tokens behind them (what `decode` and `score` will need); then
        the prompt goes through in pieces, and only the last token through the head.

        Raises:
            UsageError: an empty prompt.
            BudgetExceeded: more tokens than `max_context`, or a cache that does not fit; said before any work.
        """
        if len(embeddings) == 0:
            raise UsageError("a language model needs at least one token to read")
        from model.language.kv_cache import SizedCache

        self._check_room(len(embeddings), room)
        cache = SizedCache(self.model.config, len(embeddings) + room, dtype=self.dtype, device=self.device)
        hidden: Any = None
        for piece in torch.split(embeddings.to(self.device, self.dtype), PREFILL_TOKENS):
            hidden = self.model.model(
                inputs_embeds=piece.unsqueeze(0), past_key_values=cache, use_cache=True
            ).last_hidden_state
        return Reading(cache, len(embeddings), self._logits(hidden[:, -1])[0])

    def _check_room(self, tokens: int, room: int) -> None:
        from model.language.kv_cache import cache_bytes

        if tokens > self.max_context:
            raise BudgetExceeded(f"the prompt has {tokens} tokens, the language model has room for {self.max_context}")
        need = cache_bytes(self.model.config, tokens + room, self.dtype)
        free = [self.cache_budget] if self.cache_budget is not None else []
        if self.device.type == "cuda":
            # What torch has reserved and does not use is free too.
            spare = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free.append(torch.cuda.mem_get_info(self.device)[0] + spare)
        if free and need > min(free):
            raise BudgetExceeded(
                f"the key-value cache of {tokens} prompt tokens and {room} more needs {need / 2**20:,.1f} MiB, "
                f"{min(free) / 2**20:,.1f} MiB are free; ask about a shorter time, or for fewer keyframes"
            )

    @torch.inference_mode()
    def decode(self, reading: Reading, *, max_new_tokens: int) -> Iterator[int]:
        """Greedy decoding: token ids one by one until the end of the turn, which is not yielded. Uses up `reading`."""
        logits = reading.logits
        for step in range(max_new_tokens):
            token = int(logits.argmax())
            if token in self.stop_ids:
                return
            yield token
            if step + 1 == max_new_tokens:
                return
            hidden = self.model.model(
                inputs_embeds=self.embed([token]).unsqueeze(0), past_key_values=reading.cache, use_cache=True
            ).last_hidden_state
            logits = self._logits(hidden[:, -1])[0]

    @torch.inference_mode()
    def score(self, reading: Reading, answers: Sequence[Sequence[int]]) -> list[float]:
        """log P(answer | prompt) of each answer, summed over its tokens (natural logarithm). Uses up `reading`.

        All answers go through the model in one pass behind one copy of the prompt's cache: they stand in a row, each
        at the positions right after the prompt, and a mask keeps them from seeing one another.

        Raises:
            UsageError: no answers, or one without tokens.
        """
        if not answers or not all(answers):
            raise UsageError("every answer to score needs at least one token")
        first = torch.log_softmax(reading.logits.float(), dim=-1)
        totals = [float(first[answer[0]]) for answer in answers]
        fed = [list(answer[:-1]) for answer in answers]  # what predicts tokens 2 to the last
        if not any(fed):
            return totals
        owner = torch.tensor([i for i, tokens in enumerate(fed) for _ in tokens], device=self.device)
        offset = torch.tensor([j for tokens in fed for j in range(len(tokens))], device=self.device)
        visible = (owner[:, None] == owner[None, :]) & (offset[:, None] >= offset[None, :])
        prompt = visible.new_ones(len(owner), reading.length)
        # 0 where a token may look, the most negative number elsewhere: the form every attention kernel takes.
        mask = torch.zeros(1, 1, len(owner), reading.length + len(owner), dtype=self.dtype, device=self.device)
        mask.masked_fill_(~torch.cat([prompt, visible], dim=1), torch.finfo(self.dtype).min)
        hidden = self.model.model(
            inputs_embeds=self.embed([t for tokens in fed for t in tokens]).unsqueeze(0),
            attention_mask=mask,
            position_ids=(reading.length + offset).unsqueeze(0),
            past_key_values=reading.cache,
            use_cache=True,
        ).last_hidden_state
        logs = torch.log_softmax(self._logits(hidden[0]).float(), dim=-1)
        wanted = torch.tensor([t for answer in answers for t in answer[1:]], device=self.device)
        gained = logs.gather(1, wanted[:, None])[:, 0]
        for i, value in zip(owner.tolist(), gained.tolist(), strict=True):
            totals[i] += value
        return totals

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.lm_head(hidden)
        return logits


def _listed(value: int | list[int] | None) -> list[int]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def load_language(spec: LanguageModelSpec, device: torch.device) -> LanguageModel:
    """The language model of a profile in the engine that it names.

    Raises:
        WeightsNotFound, WeightsInvalid: see `load_transformers`.
        EngineMissing, ModelError: see `model.language.vllm_engine`.
    """
    if spec.engine == "vllm":
        from model.language.vllm_engine import load_vllm

        return load_vllm(spec, device)
    return load_transformers(spec, device)


def load_transformers(spec: LanguageModelSpec, device: torch.device) -> LanguageModel:
    """The language model of a profile: float32 on a CPU, `spec.dtype` on CUDA.

    Raises:
        WeightsNotFound: see `resolve`.
        WeightsInvalid: a checkpoint whose tensors do not fit, or without `<|im_end|>`.
    """
    from transformers import PreTrainedTokenizerFast

    folder = resolve(spec.source, needs=_NEEDS, takes=_TAKES, what="language model")
    dtype = getattr(torch, spec.dtype) if device.type == "cuda" else torch.float32
    with loading("language model", folder):
        if spec.layout == "causal_lm":
            model = _load_causal(folder, dtype).to(device)
        else:
            model = _load_parts(folder, spec.layout, dtype, device)
        # Not AutoTokenizer: beside a Qwen2 configuration it takes any tokenizer.json for Qwen2's own.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if tokenizer.convert_tokens_to_ids("<|im_end|>") in (None, tokenizer.unk_token_id):
        raise WeightsInvalid(f"language model: the tokenizer in {folder} has no <|im_end|>; it needs ChatML")
    model.requires_grad_(False)
    return LanguageModel(model, tokenizer, max_context=spec.max_context, cache_budget=spec.cache_bytes)


def build_qwen2(config: Any, device: torch.device, dtype: torch.dtype, *, empty: bool = False) -> Any:
    """A Qwen2ForCausalLM from its configuration alone, made on `device` (which may be `meta`), with SDPA.

    Weights are random, or not written at all when `empty`.
    """
    from transformers import Qwen2ForCausalLM
    from transformers.initialization import no_init_weights

    with torch.device(device), no_init_weights() if empty else nullcontext():
        model = Qwen2ForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    return model


def _load_causal(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=dtype, output_loading_info=True, attn_implementation="sdpa"
    )
    for key, reason in (("missing_keys", "has no tensor"), ("unexpected_keys", "has one tensor too many,")):
        if report[key]:
            raise WeightsInvalid(f"language model: {folder} {reason} {min(report[key])}")
    return model


@torch.no_grad()
def _load_parts(folder: Path, layout: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The Qwen2 inside a checkpoint that holds more than that, one tensor in host memory at a time."""
    files = tensor_files(folder)
    if layout == "vilamp":
        VilampConfig.read(folder)
        config, names = VilampConfig.qwen2(folder), {name: name for name in language_names(files)}
    else:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True).text_config
        names = renamed(files, _LLAVA)
    head = next((name for name, new in names.items() if new == _HEAD), None)
    if config.tie_word_embeddings and head is not None:
        # A checkpoint may carry its head all the same: a copy is left out, another one is used.
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
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()
