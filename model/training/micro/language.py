"""Trains the connector and the language model of `micro` by equation 12: −log P(answer | frames, question).

The encoders are frozen. Each step reads a few streams of one length with one question each (see `model.training.micro.examples`);
only the answer's tokens are supervised. Streams grow from a minute and a half to twenty minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from model.training.micro.clip_bank import Bank
from model.training.micro.examples import ClipFeatures, Example, Length, draw_example
from model.training.micro.virtual_streams import StreamMaker
from model.visual.connector import Connector
from model.visual.prompt import build_prompt
from model.world.questions import QUESTION_KINDS
from model.world.scenes import COLOURS, COUNTS, KINDS, PLACES
from model.world.vocabulary import build_tokenizer, save_tokenizer, words

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
CLOCK = "HH:MM"  # one token a letter


SHORT = Length(frames=100, clips=6, k=8, others=16, batch=12)
MEDIUM = Length(frames=600, clips=16, k=24, others=100, batch=4)
LONG = Length(frames=1200, clips=24, k=32, others=150, batch=3)
WHOLE = Length(frames=1200, clips=24, k=32, others=1168, batch=2)


@dataclass(frozen=True, slots=True)
class Stage:
    """`steps` steps, each of a length drawn evenly from `lengths`."""

    steps: int
    lengths: tuple[Length, ...]


STAGES = (
    Stage(steps=1300, lengths=(SHORT,)),
    Stage(steps=1300, lengths=(SHORT, MEDIUM, LONG)),
    Stage(steps=800, lengths=(MEDIUM, LONG, LONG, WHOLE)),
)


class _Told(NamedTuple):
    """What some heads of a layer are told to look at, and which of READS the place that looks must say afterwards."""

    name: str
    layer: int
    heads: slice
    weight: float
    reads: tuple[int, ...]


# The answer looks at the patches that show it; a patch at the four digits of its clock, and at what stood at its place
# before. What a patch has learned so must be readable from it where the answer looks: four digits, kind, colour.
TOLD = (
    _Told("look", 2, slice(0, 4), 0.5, ()),
    *(_Told(f"digit {i + 1}", 1, slice(2 + i, 3 + i), 0.1, (i,)) for i in range(4)),
    _Told("follows", 1, slice(0, 2), 0.3, (4, 5)),
)
READS, READ_LAYER, READ_WEIGHT = (10, 10, 10, 10, len(KINDS), len(COLOURS)), 2, 0.1
LOOKERS = 24  # patches of a stream that are told where to look
NAME_SCALE, NAME_WEIGHT = 12.0, 0.3


class _Look(NamedTuple):
    """One position of one sequence of the batch, the positions it should look at, and what it then says of each read."""

    row: int
    position: int
    places: list[int]
    says: tuple[int, ...] = ()


class MicroModel(nn.Module):
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
        self.reader = nn.Linear(LANGUAGE["hidden_size"], sum(READS))  # for training only
        self.cache: dict[str, Tensor] = {}

    def ids(self, text: str) -> Tensor:
        if text not in self.cache:
            self.cache[text] = torch.tensor(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self.cache[text]

    def visual(self, stream: Example) -> Tensor:
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

    def _positions(self, stream: Example, head: int) -> Tensor:
        """int64[K, M]: where the keyframes' patches stand in the sequence, whose visual tokens begin at `head`."""
        clock, count = len(CLOCK), stream.shown.shape[1]
        frame = torch.arange(len(stream.before))
        first = head + torch.from_numpy(stream.before) + frame * (clock + count) + clock
        return first.unsqueeze(1) + torch.arange(count)

    def _naming(self, streams: Sequence[Example]) -> Tensor:
        """Cross-entropy of reading kind, colour, place and count off a keyframe's token by the words' own embeddings.

        It puts what a patch shows and the words for it into the same directions, so that a question's words can find it.
        """
        embed = self.language.get_input_embeddings()
        tokens = self.connector.keyframe(torch.cat([s.key_patches for s in streams])).flatten(0, 1)
        named = torch.cat([s.named for s in streams]).flatten(0, 1)
        total: Tensor = tokens.new_zeros(())
        for column, names in enumerate((KINDS, COLOURS, PLACES, COUNTS)):
            known = named[:, column] >= 0
            words = functional.normalize(embed(torch.cat([self.ids(" " + name) for name in names])), dim=-1)
            logits = NAME_SCALE * functional.normalize(tokens[known], dim=-1) @ words.T
            total = total + functional.cross_entropy(logits.float(), named[known, column])
        return total

    def _looking(self, out: Any, number: int, heads: slice, looks: Sequence[_Look]) -> Tensor:
        """−log of the attention that some heads of one layer pay to the places they should look at, mean of `looks`."""
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        layer = self.language.model.layers[number]
        rows = torch.tensor([look.row for look in looks])
        positions = torch.tensor([look.position for look in looks])
        size = LANGUAGE["hidden_size"] // LANGUAGE["num_attention_heads"]
        entering = layer.input_layernorm(out.hidden_states[number][rows, positions])
        query = layer.self_attn.q_proj(entering).view(len(rows), 1, -1, size).transpose(1, 2)
        cos, sin = self.language.model.rotary_emb(entering, positions.unsqueeze(1))
        query, _ = apply_rotary_pos_emb(query, query, cos, sin)
        keys = out.past_key_values.layers[number].keys[:, heads]
        scores = (query[:, heads] @ keys[rows].transpose(-1, -2)).squeeze(2).float()
        ahead = torch.arange(keys.shape[2]).unsqueeze(0) > positions.unsqueeze(1)
        shares = (scores / math.sqrt(size)).masked_fill(ahead.unsqueeze(1), -torch.inf).log_softmax(-1)
        places = torch.zeros(len(looks), keys.shape[2], dtype=torch.bool)
        for i, look in enumerate(looks):
            places[i, look.places] = True
        wanted = shares.masked_fill(~places.unsqueeze(1), -torch.inf).logsumexp(-1)
        loss: Tensor = -wanted.clamp(min=-20).mean()
        return loss

    def _reading(self, out: Any, told: _Told, looks: Sequence[_Look]) -> Tensor:
        """Cross-entropy of reading what the places that look have seen, sum over `told.reads`."""
        rows = torch.tensor([look.row for look in looks])
        positions = torch.tensor([look.position for look in looks])
        read = self.reader(functional.rms_norm(out.hidden_states[READ_LAYER][rows, positions], [self.connector.width]))
        total: Tensor = read.new_zeros(())
        for i, group in enumerate(told.reads):
            wanted = torch.tensor([look.says[i] for look in looks])
            total = total + functional.cross_entropy(read.split(READS, dim=-1)[group].float(), wanted)
        return total

    def _looks(
        self, stream: Example, row: int, head: int, answer: range, rng: np.random.Generator
    ) -> list[list[_Look]]:
        """For each of TOLD: what the answer's places, patches that show an actor, and patches of later events look at."""
        at = self._positions(stream, head)
        shown = at[stream.shown].tolist()
        answers = [_Look(row, position, shown) for position in answer if shown]
        known = at[stream.named[..., 0] >= 0].tolist()
        digits: list[list[_Look]] = [[], [], [], []]
        for position in rng.choice(known, min(LOOKERS, len(known)), replace=False).tolist() if known else ():
            frame = int((at[:, 0] <= position).sum()) - 1
            first = int(at[frame, 0]) - len(CLOCK)
            for several, i in zip(digits, (0, 1, 3, 4), strict=True):
                several.append(_Look(row, position, [first + i], (int(stream.clocks[frame][i]),)))
        follows: list[_Look] = []
        for later, earlier, kind, colour in stream.follows:
            positions = at[later]
            chosen = positions[torch.from_numpy(rng.permutation(len(positions))[:4])].tolist()
            follows += [_Look(row, position, at[earlier].tolist(), (kind, colour)) for position in chosen]
        return [answers, *digits, [follows[i] for i in rng.permutation(len(follows))[:LOOKERS]]]

    def loss(self, streams: Sequence[Example], rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the answers' tokens (equation 12), and with it the attention that finds them.

        Equation 12 alone has to discover by chance that the answer stands at the patches which fit the question, that a
        patch was seen at the time written before it, and that what follows at a place follows something; telling a few
        heads of three layers so makes these the first things learned instead of the last.
        """
        from transformers import DynamicCache

        embed = self.language.get_input_embeddings()
        sequences: list[Tensor] = []
        targets: list[Tensor] = []
        looks: list[list[_Look]] = [[] for _ in TOLD]
        for number, stream in enumerate(streams):
            options = stream.question.options if rng.random() < 0.8 else ()
            prefix, suffix = build_prompt(self.tokenizer, stream.question.text, options)
            answer = self.tokenizer(f" {stream.question.answer}", add_special_tokens=False).input_ids
            said = [*answer, self.tokenizer.eos_token_id]
            visual = self.visual(stream)
            sequences.append(torch.cat([embed(torch.tensor(prefix)), visual, embed(torch.tensor([*suffix, *said]))]))
            target = torch.full((len(sequences[-1]),), -100)
            target[-len(said) - 1 : -1] = torch.tensor(said)  # each place predicts the token after it
            targets.append(target)
            telling = range(len(target) - len(said) - 1, len(target) - 2)
            for several, more in zip(looks, self._looks(stream, number, len(prefix), telling, rng), strict=True):
                several.extend(more)
        inputs = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        target = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        out = self.language.model(
            inputs_embeds=inputs, past_key_values=DynamicCache(), use_cache=True, output_hidden_states=True
        )
        row, position = (target != -100).nonzero(as_tuple=True)
        wanted = target[row, position]
        logits = self.language.lm_head(out.last_hidden_state[row, position])
        wrong = torch.zeros(len(streams)).index_add_(0, row, (logits.argmax(-1) != wanted).float())
        total = words = functional.cross_entropy(logits.float(), wanted)
        figures = {"loss": words.item()}
        for told, several in zip(TOLD, looks, strict=True):
            if several:
                look = self._looking(out, told.layer, told.heads, several)
                read = self._reading(out, told, several)
                figures[told.name] = look.item()
                if told.reads:
                    figures[f"read {told.name}"] = read.item()
                total = total + told.weight * look + READ_WEIGHT * read
        naming = self._naming(streams)
        figures |= {"name": naming.item(), "right": float((wrong == 0).float().mean())}
        for kind in QUESTION_KINDS:
            asked = [float(w == 0) for w, s in zip(wrong, streams, strict=True) if s.question.kind == kind]
            if asked:
                figures[kind] = sum(asked) / len(asked)
        return total + NAME_WEIGHT * naming, figures

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


@dataclass(frozen=True, slots=True)
class _Batches(Dataset[list[Example]]):
    """The examples of every step of a plan, each a pure function of seed and step."""

    seed: int
    plan: Sequence[Stage]
    maker: StreamMaker
    bank: Bank
    features: ClipFeatures

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[Example]:
        rng = np.random.default_rng([self.seed, 7, step])
        lengths = self.plan[step].lengths
        length = lengths[rng.integers(len(lengths))]
        return [draw_example(self.maker, self.bank, self.features, rng, length) for _ in range(length.batch)]


def train_language(
    bank: Bank,
    clips: int,
    features: ClipFeatures,
    work: Path,
    micro: Path,
    run: LanguageRun,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Train through all stages of `run` and save to `micro/llm` and `micro/connector.safetensors`; resumable."""
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    model = MicroModel(features.patches.shape[-1])
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
    batches = iter(
        DataLoader(
            _Batches(run.seed, plan, StreamMaker(bank, clips), bank, features),
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
            sampler=range(first, len(plan)),
        )
    )
    mean: dict[str, float] = dict(run.history[-1]) if run.history else {}
    for step in range(first, len(plan)):
        streams = next(batches)
        rate = (
            run.rate * min(1.0, (step + 1) / run.warm_up) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / len(plan))))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = model.loss(streams, np.random.default_rng([run.seed, 8, step]))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for key, value in figures.items():
            mean[key] = 0.95 * mean.get(key, value) + 0.05 * value
        if (step + 1) % 20 == 0:
            run.history.append({**mean, "step": step + 1})
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
