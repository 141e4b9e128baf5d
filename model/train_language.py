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
from itertools import pairwise
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
from model.scenes import COLOURS, KINDS, PLACES
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
    """One length of stream: `streams` a step, each of `frames` seconds with `clips` clips, `k` keyframes, `questions`.

    At most `others` of the frames that are no keyframes are read, a random choice of them: what the model must learn
    first is to find the right one among many keyframes, and that needs no long prefix.
    """

    steps: int
    frames: int
    clips: int
    k: int
    others: int
    streams: int
    questions: int


STAGES = (
    Stage(steps=800, frames=130, clips=8, k=10, others=20, streams=6, questions=10),
    Stage(steps=350, frames=420, clips=16, k=20, others=100, streams=3, questions=14),
    Stage(steps=250, frames=1200, clips=24, k=32, others=1168, streams=1, questions=24),
)
# The layer and heads that are told where the answer stands (see `Trainee.loss`).
LOOK_LAYER, LOOK_HEADS, LOOK_WEIGHT = 2, 3, 0.5
NAME_SCALE, NAME_WEIGHT = 12.0, 0.3


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
        batch = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
        )
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
    """One stream ready to be read.

    Patches of the keyframes [K, M, d], merged tokens of the others [n, d], how many others stand before each keyframe
    int64[K], the questions, and for each of them bool[K, M]: the patches that show its answer.
    `named` int[K, M, 3]: kind, colour and place of the actor that covers a patch, −1 where there is none.
    """

    keyframes: NDArray[np.int64]
    clocks: list[str]
    key_patches: Tensor
    merged: Tensor
    before: NDArray[np.int64]
    questions: list[Question]
    shown: list[Tensor]
    named: Tensor


def _exactly(k: int, chosen: NDArray[np.int64], frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`chosen` and as many random other frames as make it `k`, ascending, so that streams of a batch are as long."""
    spare = np.setdiff1d(np.arange(frames), chosen)
    return np.sort(np.concatenate([chosen, rng.choice(spare, k - len(chosen), replace=False)]))


def _shown(stream: VirtualStream, bank: Bank, keyframes: NDArray[np.int64], question: Question) -> Tensor:
    """bool[K, M]: patches of `keyframes` that the actor who answers the question covers during its event."""
    event, actor = question.shown
    rows = stream.rows[keyframes]
    owner = bank.patch_seen[rows]
    seen = np.take_along_axis(bank.seen[rows], np.maximum(owner, 0)[..., None].astype(np.int64), axis=1)
    mine = (owner >= 0) & (seen[..., 0] == actor.kind) & (seen[..., 1] == actor.colour)
    during = (keyframes >= event.seen_from) & (keyframes <= event.seen_until)
    return torch.from_numpy(mine & during[:, None])


def prepare(
    stream: VirtualStream, bank: Bank, features: Features, rng: np.random.Generator, stage: Stage
) -> Prepared | None:
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
    others = np.setdiff1d(np.arange(frames), keyframes)
    others = np.sort(rng.choice(others, min(stage.others, len(others)), replace=False))
    key_patches = torch.from_numpy(features.patches[stream.rows[keyframes]]).float()
    patches = torch.from_numpy(features.patches[stream.rows[others]]).float()
    patch_query = features.patch_text([questions[0].text])[0].clone()
    before = np.searchsorted(others, keyframes)
    edges = [0, *(int(i) for i in before), len(others)]
    merged = [
        merge(patches[first:last], None if i == 0 else key_patches[i - 1], patch_query)
        for i, (first, last) in enumerate(pairwise(edges))
        if first < last
    ]
    tokens = torch.cat(merged) if merged else key_patches.new_zeros(0, key_patches.shape[-1])
    clocks = [stream.clock(int(i)) for i in keyframes]
    shown = [_shown(stream, bank, keyframes, question) for question in questions]
    owner = bank.patch_seen[stream.rows[keyframes]]
    seen = np.take_along_axis(
        bank.seen[stream.rows[keyframes]], np.maximum(owner, 0)[..., None].astype(np.int64), axis=1
    )
    named = torch.from_numpy(np.where(owner[..., None] >= 0, seen[..., :3], -1).astype(np.int64))
    return Prepared(keyframes, clocks, key_patches, tokens, before, questions, shown, named)


class Trainee(nn.Module):
    """The connector and the language model, as they are trained together."""

    def __init__(self, patch_dim: int) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.tokenizer = build_tokenizer(max_length=CONTEXT, close=False)
        rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
        ids = {
            "bos_token_id": None,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
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
        last = 0
        for i, before in enumerate(stream.before.tolist()):
            pieces += [others[last:before], keys[i]]
            last = before
        pieces.append(others[last:])
        return torch.cat(pieces)

    def _places(self, stream: Prepared, shown: Tensor, head: int, length: int) -> Tensor:
        """bool[length]: `shown` [K, M] as places in the prefix, whose visual tokens begin at `head`."""
        places = torch.zeros(length, dtype=torch.bool)
        clock, count = len(self.ids(" 00:00")), shown.shape[1]
        for i, before in enumerate(stream.before.tolist()):
            at = head + before + i * (clock + count) + clock
            places[at : at + count] = shown[i]
        return places

    def _naming(self, streams: Sequence[Prepared]) -> Tensor:
        """Cross-entropy of reading kind, colour and place off a keyframe's token by the words' own embeddings.

        It puts what a patch shows and the words for it into the same directions, so that a question's words can find it.
        """
        embed = self.language.get_input_embeddings()
        tokens = self.connector.keyframe(torch.cat([s.key_patches for s in streams])).flatten(0, 1)
        named = torch.cat([s.named for s in streams]).flatten(0, 1)
        total = tokens.new_zeros(())
        for column, names in enumerate((KINDS, COLOURS, PLACES)):
            known = named[:, column] >= 0
            words = functional.normalize(embed(torch.cat([self.ids(" " + name) for name in names])), dim=-1)
            logits = NAME_SCALE * functional.normalize(tokens[known], dim=-1) @ words.T
            total = total + functional.cross_entropy(logits.float(), named[known, column])
        return total

    def _looking(self, hidden: Tensor, keys: Tensor, rows: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """−log of the attention that the first heads of one layer pay to the patches that show the answer.

        hidden [B, T, width] enters the layer, keys [B, heads, S + T, d] are those it attends to; `rows` and `positions`
        name the places that predict the answer, `places` bool[n, S] what they should look at.
        """
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        layer = self.language.model.layers[LOOK_LAYER]
        size = LANGUAGE["hidden_size"] // LANGUAGE["num_attention_heads"]
        prefix = places.shape[1]
        entering = layer.input_layernorm(hidden[rows, positions])
        query = layer.self_attn.q_proj(entering).view(len(rows), 1, -1, size).transpose(1, 2)
        cos, sin = self.language.model.rotary_emb(entering, (positions + prefix).unsqueeze(1))
        query, _ = apply_rotary_pos_emb(query, query, cos, sin)
        scores = (query[:, :LOOK_HEADS] @ keys[rows, :LOOK_HEADS].transpose(-1, -2)).squeeze(2).float() / math.sqrt(
            size
        )
        ahead = torch.arange(keys.shape[2]).unsqueeze(0) > (positions + prefix).unsqueeze(1)
        shares = scores.masked_fill(ahead.unsqueeze(1), -torch.inf).log_softmax(-1)[..., :prefix]
        wanted = shares.masked_fill(~places.unsqueeze(1), -torch.inf).logsumexp(-1)
        return -wanted[places.any(1)].clamp(min=-20).mean()

    def loss(self, streams: Sequence[Prepared], rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the answers' tokens, and with it the attention that finds them.

        Equation 12 alone has to discover by chance that the answer stands at the patches which fit the question; telling
        a few heads of one layer so makes that the first thing learned instead of the last.
        """
        from transformers import DynamicCache

        embed = self.language.get_input_embeddings()
        prefix, _ = build_prompt(self.tokenizer, "")
        head = embed(torch.tensor(prefix))
        context = torch.stack([torch.cat([head, self.visual(s)]) for s in streams])
        cache = self.language.model(
            inputs_embeds=context, past_key_values=DynamicCache(), use_cache=True
        ).past_key_values
        rows = max(len(s.questions) for s in streams)
        asked: list[list[int]] = []
        answers: list[int] = []
        places: list[Tensor] = []
        for stream in streams:
            for i in range(rows):
                question = stream.questions[i % len(stream.questions)]
                options = question.options if rng.random() < 0.8 else ()
                _, suffix = build_prompt(self.tokenizer, question.text, options)
                answer = self.tokenizer(f" {question.answer}", add_special_tokens=False).input_ids
                asked.append([*suffix, *answer, self.tokenizer.eos_token_id])
                answers.append(len(answer) + 1)
                shown = stream.shown[i % len(stream.questions)]
                places.append(self._places(stream, shown, len(prefix), context.shape[1]))
        longest = max(len(a) for a in asked)
        ids = torch.full((len(asked), longest), self.tokenizer.pad_token_id)
        labels = torch.full((len(asked), longest), -100)
        for i, (tokens, count) in enumerate(zip(asked, answers, strict=True)):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, len(tokens) - count : len(tokens)] = torch.tensor(tokens[-count:])
        cache.batch_repeat_interleave(rows)
        out = self.language.model(
            inputs_embeds=embed(ids), past_key_values=cache, use_cache=True, output_hidden_states=True
        )
        wanted = labels[:, 1:] != -100
        logits = self.language.lm_head(out.last_hidden_state[:, :-1][wanted])
        target = labels[:, 1:][wanted]
        row, position = wanted.nonzero(as_tuple=True)
        wrong = torch.zeros(len(asked)).index_add_(0, row, (logits.argmax(-1) != target).float())
        words = functional.cross_entropy(logits.float(), target)
        said = target != self.tokenizer.eos_token_id
        keys = out.past_key_values.layers[LOOK_LAYER].keys
        look = self._looking(
            out.hidden_states[LOOK_LAYER], keys, row[said], position[said], torch.stack(places)[row[said]]
        )
        name = self._naming(streams)
        figures = {
            "loss": words.item(),
            "look": look.item(),
            "name": name.item(),
            "right": float((wrong == 0).float().mean()),
        }
        return words + LOOK_WEIGHT * look + NAME_WEIGHT * name, figures

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
    save_every: int = 50
    stages: tuple[Stage, ...] = STAGES
    history: list[dict[str, float]] = field(default_factory=list)


def train_language(
    bank: Bank,
    clips: int,
    features: Features,
    work: Path,
    micro: Path,
    run: LanguageRun,
    on_step: Callable[[int, dict[str, float]], None],
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
            one = prepare(maker.make(rng, frames=stage.frames, clips=stage.clips), bank, features, rng, stage)
            if one is not None:
                streams.append(one)
        rate = (
            run.rate * min(1.0, (step + 1) / run.warm_up) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / len(plan))))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = model.loss(streams, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for key, value in figures.items():
            mean[key] = 0.95 * mean.get(key, value) + 0.05 * value
        if (step + 1) % 20 == 0:
            run.history.append({"step": step + 1, **mean})
            on_step(step + 1, mean)
        if (step + 1) % run.save_every == 0 or step + 1 == len(plan):
            part = checkpoint.with_suffix(".part")
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "history": run.history,
            }
            torch.save(state, part)
            part.replace(checkpoint)
    model.eval().save(micro)
