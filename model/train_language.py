"""Trains the connector and the language model of `micro` by equation 12: −log P(answer | frames, question).

The encoders are frozen. Each step puts streams together from the bank, picks keyframes by DKS for one of several
questions, folds the rest by DFM, reads the frames once, and asks all the questions against that one prefix. Only the
answer's tokens are supervised. Streams grow from half a minute to twenty minutes over three stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from index.keyframes import select_keyframes
from model.bank import Bank
from model.connector import Connector
from model.dfm import merge
from model.questions import Question
from model.sequence import build_prompt
from model.train_encoders import TEXT_LENGTH
from model.virtual_streams import StreamMaker, VirtualStream, ask_about
from model.vocabulary import build_tokenizer, save_tokenizer, words

LANGUAGE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 16_384,
    "tie_word_embeddings": True,
}
ROPE_THETA = 1_000_000.0
CONTEXT = 16_384


@dataclass(frozen=True, slots=True)
class Stage:
    """One length of stream: `streams` a step, each of `frames` seconds with `clips` clips, `k` keyframes and `questions`."""

    steps: int
    frames: int
    clips: int
    k: int
    streams: int
    questions: int


STAGES = (
    Stage(steps=1000, frames=28, clips=2, k=6, streams=16, questions=5),
    Stage(steps=500, frames=200, clips=6, k=14, streams=5, questions=10),
    Stage(steps=450, frames=1200, clips=24, k=32, streams=1, questions=24),
)


@dataclass(slots=True)
class Features:
    """What the frozen encoders say of every bank frame, and of texts.

    patches float16[N, M, d]; vectors float32[N, e] of unit norm; the two functions embed texts: SigLIP [n, d], CLIP [n, e].
    """

    patches: NDArray[np.float16]
    vectors: NDArray[np.float32]
    patch_text: Callable[[Sequence[str]], Tensor]
    frame_text: Callable[[Sequence[str]], NDArray[np.float32]]


def load_features(bank: Bank, micro: Path, work: Path, on_progress: Callable[[int, int], None]) -> Features:
    """Encode the bank with the encoders saved in `micro`; the arrays are kept in `work`."""
    import open_clip
    from transformers import SiglipModel

    siglip = SiglipModel.from_pretrained(micro / "siglip").float().eval()
    clip = open_clip.create_model(f"local-dir:{micro / 'clip'}").float().eval()
    tokenizer = build_tokenizer(max_length=TEXT_LENGTH, close=True)

    def ids(texts: Sequence[str]) -> Tensor:
        batch = tokenizer(list(texts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
        return batch.input_ids  # type: ignore[no-any-return]

    patches_path, vectors_path = work / "patches.npy", work / "vectors.npy"
    if not vectors_path.exists():
        width, count = siglip.config.vision_config.hidden_size, len(bank)
        patches = np.lib.format.open_memmap(patches_path, "w+", np.float16, (count, bank.patch_seen.shape[1], width))
        vectors: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for i in range(0, count, 256):
                pixels = torch.from_numpy(bank.pixels[i : i + 256]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
                patches[i : i + 256] = siglip.vision_model(pixel_values=pixels).last_hidden_state.half().numpy()
                vectors.append(functional.normalize(clip.encode_image(pixels), dim=-1).numpy())
                on_progress(min(i + 256, count), count)
        patches.flush()
        np.save(vectors_path, np.concatenate(vectors))

    @torch.inference_mode()
    def patch_text(texts: Sequence[str]) -> Tensor:
        return functional.normalize(siglip.text_model(input_ids=ids(texts)).pooler_output, dim=-1)

    @torch.inference_mode()
    def frame_text(texts: Sequence[str]) -> NDArray[np.float32]:
        return functional.normalize(clip.encode_text(ids(texts)), dim=-1).numpy()  # type: ignore[no-any-return]

    return Features(np.load(patches_path, mmap_mode="r"), np.load(vectors_path), patch_text, frame_text)


@dataclass(slots=True)
class Prepared:
    """One stream ready to be read: patches of keyframes [K, M, d], merged tokens [N − K, d], and the questions."""

    keyframes: NDArray[np.int64]
    clocks: list[str]
    key_patches: Tensor
    merged: Tensor
    frames: int
    questions: list[Question]


def _exactly(k: int, chosen: NDArray[np.int64], frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`chosen` and as many random other frames as make it `k`, ascending, so that streams of a batch are as long."""
    spare = np.setdiff1d(np.arange(frames), chosen)
    return np.sort(np.concatenate([chosen, rng.choice(spare, k - len(chosen), replace=False)]))


def prepare(stream: VirtualStream, features: Features, rng: np.random.Generator, stage: Stage) -> Prepared | None:
    """Keyframes and merged tokens for one of the stream's questions; None when no question can be answered."""
    questions = ask_about(stream, rng, stage.questions)
    if not questions:
        return None
    frames = len(stream.rows)
    vectors = features.vectors[stream.rows]
    query = features.frame_text([questions[0].text])[0]
    keyframes = _exactly(stage.k, select_keyframes(vectors, query, k=stage.k, tau=0.85), frames, rng)

    def seen(question: Question) -> bool:
        return all(((keyframes >= e.seen_from) & (keyframes <= e.seen_until)).any() for e in question.evidence)

    questions = [q for q in questions if seen(q)]
    if not questions:
        return None
    patches = torch.from_numpy(features.patches[stream.rows]).float()
    patch_query = features.patch_text([questions[0].text])[0].clone()
    merged: list[Tensor] = []
    edges = [0, *(int(i) for i in keyframes), frames]
    for i, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        begin = first if i == 0 else first + 1
        if begin < last:
            merged.append(merge(patches[begin:last], None if i == 0 else patches[first], patch_query))
    clocks = [stream.clock(int(i)) for i in keyframes]
    width = patches.shape[-1]
    tokens = torch.cat(merged) if merged else patches.new_zeros(0, width)
    return Prepared(keyframes, clocks, patches[torch.from_numpy(keyframes)], tokens, frames, questions)


class Trainee(nn.Module):
    """The connector and the language model, as they are trained together."""

    def __init__(self, patch_dim: int) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.tokenizer = build_tokenizer(max_length=CONTEXT, close=False)
        rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
        ids = {"bos_token_id": None, "eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
        config = Qwen2Config(vocab_size=len(words()), rope_parameters=rope, **ids, **LANGUAGE)
        self.language = Qwen2ForCausalLM(config)
        self.connector = Connector(patch_dim, LANGUAGE["hidden_size"])
        self.cache: dict[str, Tensor] = {}

    def ids(self, text: str) -> Tensor:
        if text not in self.cache:
            self.cache[text] = torch.tensor(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self.cache[text]

    def visual(self, stream: Prepared) -> Tensor:
        """[V, width]: in temporal order, a keyframe's clock and M tokens, any other frame's one token."""
        embed = self.language.get_input_embeddings()
        keys, others = self.connector(stream.key_patches, stream.merged)
        clocks = embed(torch.stack([self.ids(" " + clock) for clock in stream.clocks]))
        keys = torch.cat([clocks, keys], dim=1)
        pieces: list[Tensor] = []
        before = 0
        for i, at in enumerate(stream.keyframes):
            gap = int(at) - i  # frames before this keyframe that are not keyframes
            pieces += [others[before:gap], keys[i]]
            before = gap
        pieces.append(others[before:])
        return torch.cat(pieces)

    def loss(self, streams: Sequence[Prepared], rng: np.random.Generator) -> tuple[Tensor, float]:
        """Mean cross-entropy of the answers' tokens, and the share of questions whose words are all right."""
        from transformers import DynamicCache

        embed = self.language.get_input_embeddings()
        prefix, _ = build_prompt(self.tokenizer, "")
        head = embed(torch.tensor(prefix))
        context = torch.stack([torch.cat([head, self.visual(s)]) for s in streams])
        cache = self.language.model(inputs_embeds=context, past_key_values=DynamicCache(), use_cache=True).past_key_values
        rows = max(len(s.questions) for s in streams)
        asked: list[list[int]] = []
        answers: list[int] = []
        for stream in streams:
            for i in range(rows):
                question = stream.questions[i % len(stream.questions)]
                options = question.options if rng.random() < 0.8 else ()
                _, suffix = build_prompt(self.tokenizer, question.text, options)
                answer = self.tokenizer(f" {question.answer}", add_special_tokens=False).input_ids
                asked.append([*suffix, *answer, self.tokenizer.eos_token_id])
                answers.append(len(answer) + 1)
        longest = max(len(a) for a in asked)
        ids = torch.full((len(asked), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(asked), longest), -100)
        for i, (tokens, count) in enumerate(zip(asked, answers, strict=True)):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, len(tokens) - count : len(tokens)] = torch.tensor(tokens[-count:])
        cache.batch_repeat_interleave(rows)
        hidden = self.language.model(inputs_embeds=embed(ids), past_key_values=cache, use_cache=True).last_hidden_state
        wanted = labels[:, 1:] != -100
        logits = self.language.lm_head(hidden[:, :-1][wanted])
        target = labels[:, 1:][wanted]
        row = torch.arange(len(asked)).unsqueeze(1).expand_as(wanted)[wanted]
        wrong = torch.zeros(len(asked)).index_add_(0, row, (logits.argmax(-1) != target).float())
        return functional.cross_entropy(logits.float(), target), float((wrong == 0).float().mean())

    def save(self, micro: Path) -> None:
        deepcopy(self.language).half().save_pretrained(micro / "llm")
        save_tokenizer(micro / "llm", max_length=CONTEXT, close=False)
        self.connector.save(micro / "connector.safetensors")


@dataclass(slots=True)
class LanguageRun:
    seed: int = 0
    rate: float = 1.5e-3
    warm_up: int = 150
    threads: int = 2
    save_every: int = 100
    stages: tuple[Stage, ...] = STAGES
    history: list[dict[str, float]] = field(default_factory=list)


def train_language(
    bank: Bank, clips: int, features: Features, work: Path, micro: Path, run: LanguageRun, on_step: Callable[[int, dict[str, float]], None]
) -> None:
    """Train through all stages of `run` and save to `micro/llm` and `micro/connector.safetensors`; resumable."""
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    maker = StreamMaker(bank, clips)
    model = Trainee(features.patches.shape[-1])
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=run.rate, betas=(0.9, 0.98), fused=True)
    checkpoint, first = work / "language.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, run.history = state["step"], state["history"]
    plan = [stage for stage in run.stages for _ in range(stage.steps)]
    mean: dict[str, float] = {}
    for step in range(first, len(plan)):
        stage = plan[step]
        rng = np.random.default_rng([run.seed, 7, step])
        streams: list[Prepared] = []
        while len(streams) < stage.streams:
            one = prepare(maker.make(rng, frames=stage.frames, clips=stage.clips), features, rng, stage)
            if one is not None:
                streams.append(one)
        rate = run.rate * min(1.0, (step + 1) / run.warm_up) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / len(plan))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = model.loss(streams, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for key, value in (("loss", loss.item()), ("right", right)):
            mean[key] = 0.95 * mean.get(key, value) + 0.05 * value
        if (step + 1) % 20 == 0:
            run.history.append({"step": step + 1, **mean})
            on_step(step + 1, mean)
        if (step + 1) % run.save_every == 0 or step + 1 == len(plan):
            part = checkpoint.with_suffix(".part")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "history": run.history}
            torch.save(state, part)
            part.replace(checkpoint)
    model.eval().save(micro)
