"""The language model: embeddings in, tokens out. A Qwen2 through transformers.

Knows prefill with a key-value cache, greedy decoding and the scoring of given answers. Does not know frames, prompts
or questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.errors import UsageError, WeightsInvalid
from model.checkpoints import loading, read_tensors, resolve
from model.profiles import LanguageModelSpec

__all__ = ["LanguageModel", "Reading", "load_language"]

# Prefill goes in pieces, so that activations stay small however long the prompt is.
_PREFILL_TOKENS = 2048
_NEEDS = ("config.json", "tokenizer.json", "*.safetensors")
_TAKES = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "*.safetensors.index.json")
# Checkpoint names → Qwen2ForCausalLM names, for both layouts transformers has written of LLaVA-OneVision.
_LLAVA = {
    r"language_model\.(model|lm_head)\.": r"\1.",
    r"model\.language_model\.": "model.",
    r"lm_head\.": "lm_head.",
}


@dataclass(slots=True)
class Reading:
    """A prompt that was read: its key-value cache, its length, and the logits [vocabulary] after its last token."""

    cache: Any
    length: int
    logits: Tensor


class LanguageModel:
    """A causal language model with its tokenizer. `max_context` is the token budget of prompt and answer together."""

    def __init__(self, model: Any, tokenizer: Any, *, max_context: int) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_context = min(max_context, int(model.config.max_position_embeddings))
        self.width = int(model.config.hidden_size)
        self.end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        ends = {self.end_id, tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)}
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
    def read(self, embeddings: Tensor) -> Reading:
        """Prefill: [T, width] → the cache and the logits after the last token.

        Raises:
            UsageError: an empty prompt.
        """
        if len(embeddings) == 0:
            raise UsageError("a language model needs at least one token to read")
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        hidden: Any = None
        for piece in torch.split(embeddings.to(self.device, self.dtype), _PREFILL_TOKENS):
            hidden = self.model.model(
                inputs_embeds=piece.unsqueeze(0), past_key_values=cache, use_cache=True
            ).last_hidden_state
        return Reading(cache, len(embeddings), self._logits(hidden[:, -1])[0])

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
    return value if isinstance(value, list) else [] if value is None else [value]


def load_language(spec: LanguageModelSpec, device: torch.device) -> LanguageModel:
    """The language model of a profile: float32 on a CPU, `spec.dtype` on CUDA.

    Raises:
        WeightsNotFound: see `resolve`.
        WeightsInvalid: a checkpoint whose tensors do not fit, without `<|im_end|>`, or of a layout not read yet.
    """
    if spec.layout == "vilamp":
        raise WeightsInvalid(
            f"language model: {spec.source} is in the authors' own layout, which this version cannot read; "
            "use the edge profile, or name a Qwen2 or LLaVA-OneVision checkpoint"
        )
    from transformers import PreTrainedTokenizerFast

    folder = resolve(spec.source, needs=_NEEDS, takes=_TAKES, what="language model")
    dtype = getattr(torch, spec.dtype) if device.type == "cuda" else torch.float32
    with loading("language model", folder):
        model, report = _load_causal(folder, dtype) if spec.layout == "causal_lm" else _load_llava(folder, dtype)
        # Not AutoTokenizer: beside a Qwen2 configuration it takes any tokenizer.json for Qwen2's own.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if report["missing_keys"]:
        raise WeightsInvalid(f"language model: {folder} has no tensor {min(report['missing_keys'])}")
    if tokenizer.convert_tokens_to_ids("<|im_end|>") in (None, tokenizer.unk_token_id):
        raise WeightsInvalid(f"language model: the tokenizer in {folder} has no <|im_end|>; it needs ChatML")
    model.to(device).requires_grad_(False)
    return LanguageModel(model, tokenizer, max_context=spec.max_context)


def _load_causal(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=dtype, output_loading_info=True
    )
    return model, report


def _load_llava(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The Qwen2 inside a LLaVA-OneVision checkpoint; its vision tower is not read."""
    from transformers import AutoConfig, Qwen2ForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    state = read_tensors(folder, _LLAVA)
    model, report = Qwen2ForCausalLM.from_pretrained(
        None, config=config.text_config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    return model, report
