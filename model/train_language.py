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
    """One length of stream: `batch` streams a step, each of `frames` seconds with `clips` clips and `k` keyframes.

    At most `others` of the frames that are no keyframes are read, a random choice of them: what the model must learn
    first is to find the right patch among many, and that needs no long prefix.
    """

    steps: int
    frames: int
    clips: int
    k: int
    others: int
    batch: int


STAGES = (
    Stage(steps=700, frames=100, clips=6, k=8, others=16, batch=12),
    Stage(steps=150, frames=600, clips=16, k=24, others=150, batch=4),
    Stage(steps=80, frames=1200, clips=24, k=32, others=1168, batch=2),
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
        return functional.normalize(clip.encode_text(ids(texts)), dim=-1).numpy()

    return Features(np.load(patches_path, mmap_mode="r"), np.load(vectors_path), patch_text, frame_text)


@dataclass(slots=True)
class Prepared:
    """One stream ready to be read for one question.

    Patches of the keyframes [K, M, d], merged tokens of the others [n, d], how many others stand before each keyframe
    int64[K], the question and its embedding [d]; `shown` bool[K, M]: the patches that show its answer; `named`
    int[K, M, 3]: kind, colour and place of the actor that covers a patch, −1 where there is none.
    """

    clocks: list[str]
    key_patches: Tensor
    merged: Tensor
    before: NDArray[np.int64]
    question: Question
    query: Tensor
    shown: Tensor
    named: Tensor


def _exactly(k: int, chosen: NDArray[np.int64], frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`chosen` and as many random other frames as make it `k`, ascending, so that streams of a batch are as long."""
    spare = np.setdiff1d(np.arange(frames), chosen)
    return np.sort(np.concatenate([chosen, rng.choice(spare, k - len(chosen), replace=False)]))


def prepare(
    stream: VirtualStream, bank: Bank, features: Features, rng: np.random.Generator, stage: Stage
) -> Prepared | None:
    """Keyframes and merged tokens for one question about the stream; None when its evidence was not chosen."""
    questions = ask_about(stream, rng, 1)
    if not questions:
        return None
    question, frames = questions[0], len(stream.rows)
    vectors = features.vectors[stream.rows]
    chosen = select_keyframes(vectors, features.frame_text([question.text])[0], k=stage.k, tau=0.85)
    keyframes = _exactly(stage.k, chosen, frames, rng)
    for event in question.evidence:
        if not ((keyframes >= event.seen_from) & (keyframes <= event.seen_until)).any():
            return None
    others = np.setdiff1d(np.arange(frames), keyframes)
    others = np.sort(rng.choice(others, min(stage.others, len(others)), replace=False))
    key_patches = torch.from_numpy(features.patches[stream.rows[keyframes]]).float()
    patches = torch.from_numpy(features.patches[stream.rows[others]]).float()
    query = features.patch_text([question.text])[0].clone()
    before = np.searchsorted(others, keyframes)
    edges = [0, *(int(i) for i in before), len(others)]
    merged = [
        merge(patches[first:last], None if i == 0 else key_patches[i - 1], query)
        for i, (first, last) in enumerate(pairwise(edges))
        if first < last
    ]
    tokens = torch.cat(merged) if merged else key_patches.new_zeros(0, key_patches.shape[-1])
    clocks = [stream.clock(int(i)) for i in keyframes]
    rows = stream.rows[keyframes]
    owner = bank.patch_seen[rows]
    participant = np.maximum(owner, 0)[..., None].astype(np.int64)
    of_patch = np.take_along_axis(bank.seen[rows], participant, axis=1)[..., :3]
    named = torch.from_numpy(np.where(owner[..., None] >= 0, of_patch, -1).astype(np.int64))
    event, actor = question.shown
    during = torch.from_numpy((keyframes >= event.seen_from) & (keyframes <= event.seen_until))
    shown = (named[..., 0] == actor.kind) & (named[..., 1] == actor.colour) & during[:, None]
    return Prepared(clocks, key_patches, tokens, before, question, query, shown, named)


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
        self.connector = Connector(patch_dim, LANGUAGE["hidden_size"], relevance=True)
        self.cache: dict[str, Tensor] = {}

    def ids(self, text: str) -> Tensor:
        if text not in self.cache:
            self.cache[text] = torch.tensor(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self.cache[text]

    def visual(self, stream: Prepared) -> Tensor:
        """[V, width]: in temporal order, a keyframe's clock and M tokens, any other frame's one token."""
        embed = self.language.get_input_embeddings()
        keys, others = self.connector(stream.key_patches, stream.merged, stream.query)
        clocks = embed(torch.stack([self.ids(" " + clock) for clock in stream.clocks]))
        keys = torch.cat([clocks, keys], dim=1)
        pieces: list[Tensor] = []
        last = 0
        for i, before in enumerate(stream.before.tolist()):
            pieces += [others[last:before], keys[i]]
            last = before
        pieces.append(others[last:])
        return torch.cat(pieces)

    def _places(self, stream: Prepared, head: int, length: int) -> Tensor:
        """bool[length]: what shows the answer as places in the sequence, whose visual tokens begin at `head`."""
        places = torch.zeros(length, dtype=torch.bool)
        clock, count = len(self.ids(" 00:00")), stream.shown.shape[1]
        for i, before in enumerate(stream.before.tolist()):
            at = head + before + i * (clock + count) + clock
            places[at : at + count] = stream.shown[i]
        return places

    def _naming(self, streams: Sequence[Prepared]) -> Tensor:
        """Cross-entropy of reading kind, colour and place off a keyframe's token by the words' own embeddings.

        It puts what a patch shows and the words for it into the same directions, so that a question's words can find it.
        """
        embed = self.language.get_input_embeddings()
        tokens = self.connector.keyframe(torch.cat([s.key_patches for s in streams])).flatten(0, 1)
        named = torch.cat([s.named for s in streams]).flatten(0, 1)
        total: Tensor = tokens.new_zeros(())
        for column, names in enumerate((KINDS, COLOURS, PLACES)):
            known = named[:, column] >= 0
            words = functional.normalize(embed(torch.cat([self.ids(" " + name) for name in names])), dim=-1)
            logits = NAME_SCALE * functional.normalize(tokens[known], dim=-1) @ words.T
            total = total + functional.cross_entropy(logits.float(), named[known, column])
        return total

    def _looking(self, hidden: Tensor, keys: Tensor, rows: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """−log of the attention that the first heads of one layer pay to the patches that show the answer.

        hidden [B, T, width] enters the layer, keys [B, heads, T, d] are those it attends to; `rows` and `positions` name
        the places that predict the answer, `places` bool[n, T] what they should look at.
        """
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        layer = self.language.model.layers[LOOK_LAYER]
        size = LANGUAGE["hidden_size"] // LANGUAGE["num_attention_heads"]
        entering = layer.input_layernorm(hidden[rows, positions])
        query = layer.self_attn.q_proj(entering).view(len(rows), 1, -1, size).transpose(1, 2)
        cos, sin = self.language.model.rotary_emb(entering, positions.unsqueeze(1))
        query, _ = apply_rotary_pos_emb(query, query, cos, sin)
        scores = (query[:, :LOOK_HEADS] @ keys[rows, :LOOK_HEADS].transpose(-1, -2)).squeeze(2).float()
        ahead = torch.arange(keys.shape[2]).unsqueeze(0) > positions.unsqueeze(1)
        shares = (scores / math.sqrt(size)).masked_fill(ahead.unsqueeze(1), -torch.inf).log_softmax(-1)
        wanted = shares.masked_fill(~places.unsqueeze(1), -torch.inf).logsumexp(-1)
        kept: Tensor = wanted[places.any(1)].clamp(min=-20)
        return -kept.mean()

    def loss(self, streams: Sequence[Prepared], rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the answers' tokens (equation 12), and with it the attention that finds them.

        Equation 12 alone has to discover by chance that the answer stands at the patches which fit the question; telling
        a few heads of one layer so makes that the first thing learned instead of the last.
        """
        from transformers import DynamicCache

        embed = self.language.get_input_embeddings()
        sequences: list[Tensor] = []
        targets: list[Tensor] = []
        places: list[Tensor] = []
        for stream in streams:
            options = stream.question.options if rng.random() < 0.8 else ()
            prefix, suffix = build_prompt(self.tokenizer, stream.question.text, options)
            answer = self.tokenizer(f" {stream.question.answer}", add_special_tokens=False).input_ids
            said = [*answer, self.tokenizer.eos_token_id]
            visual = self.visual(stream)
            sequences.append(torch.cat([embed(torch.tensor(prefix)), visual, embed(torch.tensor([*suffix, *said]))]))
            target = torch.full((len(sequences[-1]),), -100)
            target[-len(said) - 1 : -1] = torch.tensor(said)  # each place predicts the token after it
            targets.append(target)
            places.append(self._places(stream, len(prefix), len(target)))
        inputs = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        target = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        where = nn.utils.rnn.pad_sequence(places, batch_first=True)
        out = self.language.model(
            inputs_embeds=inputs, past_key_values=DynamicCache(), use_cache=True, output_hidden_states=True
        )
        row, position = (target != -100).nonzero(as_tuple=True)
        wanted = target[row, position]
        logits = self.language.lm_head(out.last_hidden_state[row, position])
        wrong = torch.zeros(len(streams)).index_add_(0, row, (logits.argmax(-1) != wanted).float())
        words = functional.cross_entropy(logits.float(), wanted)
        told = wanted != self.tokenizer.eos_token_id
        keys = out.past_key_values.layers[LOOK_LAYER].keys
        look = self._looking(out.hidden_states[LOOK_LAYER], keys, row[told], position[told], where[row[told]])
        name = self._naming(streams)
        right = float((wrong == 0).float().mean())
        figures = {"loss": words.item(), "look": look.item(), "name": name.item(), "right": right}
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
        while len(streams) < stage.batch:
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
        torch.autograd.backward(loss)
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
