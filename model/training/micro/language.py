"""The training of `micro`'s connector and language model by equation 12: −log P(answer | frames, question).

The encoders are frozen. Each step takes a few streams of one size with one question each (see
`model.training.micro.examples`); only the tokens of the answer are supervised. The streams grow from a minute and a
half to twenty minutes. Auxiliary losses guide the attention of some heads (see `MicroModel.loss`).
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
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from model.training.micro.clip_bank import ClipBank
from model.training.micro.examples import BankFeatures, Example, Stage, StreamSize, draw_example
from model.training.micro.optimizer import load_checkpoint, make_optimizer, save_checkpoint, set_rate
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
    "tie_word_embeddings": True,
}
ROPE_THETA = 1_000_000.0
CONTEXT = 16_384
CLOCK = "HH:MM"  # one token for each character


SHORT = StreamSize(frames=100, clips=6, k=8, others=16, batch=12)
MEDIUM = StreamSize(frames=600, clips=16, k=24, others=100, batch=4)
LONG = StreamSize(frames=1200, clips=24, k=32, others=150, batch=3)
WHOLE = StreamSize(frames=1200, clips=24, k=32, others=1168, batch=2)


STAGES = (
    Stage(steps=1300, sizes=(SHORT,)),
    Stage(steps=1300, sizes=(SHORT, MEDIUM, LONG)),
    Stage(steps=800, sizes=(MEDIUM, LONG, LONG, WHOLE)),
)


class _AttentionLoss(NamedTuple):
    """An auxiliary loss on the attention of some heads."""

    name: str
    """Name among the figures."""
    layer: int
    """The layer of the heads."""
    heads: slice
    """The heads."""
    weight: float
    """Weight of the loss."""
    reads: tuple[int, ...]
    """Indices into PROBE_CLASSES: what must be readable afterwards at the position that attends."""


# The answer attends to the patches that show it; a patch attends to the four digits of its capture time, and to the
# patches of the event before at its place. A linear probe must then read from the patch: four digits, kind, colour.
ATTENTION_LOSSES = (
    _AttentionLoss("look", 2, slice(0, 4), 0.5, ()),
    *(_AttentionLoss(f"digit {i + 1}", 1, slice(2 + i, 3 + i), 0.1, (i,)) for i in range(4)),
    _AttentionLoss("follows", 1, slice(0, 2), 0.3, (4, 5)),
)
PROBE_CLASSES, PROBE_LAYER, PROBE_WEIGHT = (10, 10, 10, 10, len(KINDS), len(COLOURS)), 2, 0.1
MAX_LABELS = 24  # labelled patches of a stream for each attention loss
WORD_SCALE, WORD_WEIGHT = 12.0, 0.3


class _AttentionLabel(NamedTuple):
    """A label of an attention loss: one position of the batch and the positions it should attend to."""

    row: int
    """Row of the batch."""
    position: int
    """Position that attends."""
    targets: list[int]
    """Positions to attend to."""
    classes: tuple[int, ...] = ()
    """The class of each of the loss's `reads`."""


class MicroModel(nn.Module):
    """The connector and the language model, trained together, with the probe of the auxiliary losses.

    Args:
        patch_dim: width of a patch.
        context: largest number of positions.
    """

    def __init__(self, patch_dim: int, context: int = CONTEXT) -> None:
        super().__init__()
        self.context = context
        self.tokenizer = build_tokenizer(max_length=context, close=False)
        rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
        ids = {
            "bos_token_id": None,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        config = Qwen2Config(
            vocab_size=len(words()), max_position_embeddings=context, rope_parameters=rope, **ids, **LANGUAGE
        )
        self.language = Qwen2ForCausalLM(config)
        self.connector = Connector(patch_dim, LANGUAGE["hidden_size"], relevance=True)
        self.probe = nn.Linear(LANGUAGE["hidden_size"], sum(PROBE_CLASSES))
        self.cache: dict[str, Tensor] = {}

    def ids(self, text: str) -> Tensor:
        """Token ids of a text, int64[n]; cached."""
        if text not in self.cache:
            self.cache[text] = torch.tensor(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self.cache[text]

    def visual(self, stream: Example) -> Tensor:
        """The vision tokens in temporal order, [V, width]: capture time and M tokens of a keyframe, one token of
        another frame."""
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
        """Positions of the keyframes' patches in a sequence whose vision tokens begin at `head`, int64[K, M]."""
        clock, count = len(CLOCK), stream.shown.shape[1]
        frame = torch.arange(len(stream.before))
        first = head + torch.from_numpy(stream.before) + frame * (clock + count) + clock
        return first.unsqueeze(1) + torch.arange(count)

    def _word_loss(self, streams: Sequence[Example]) -> Tensor:
        """Cross-entropy of kind, colour, place and count of keyframe tokens, classified by the embeddings of the words.

        It aligns what a patch shows with the words for it, so that the words of a question find the patch.
        """
        embed = self.language.get_input_embeddings()
        tokens = self.connector.keyframe(torch.cat([s.key_patches for s in streams])).flatten(0, 1)
        named = torch.cat([s.named for s in streams]).flatten(0, 1)
        total: Tensor = tokens.new_zeros(())
        for column, names in enumerate((KINDS, COLOURS, PLACES, COUNTS)):
            known = named[:, column] >= 0
            words = functional.normalize(embed(torch.cat([self.ids(" " + name) for name in names])), dim=-1)
            logits = WORD_SCALE * functional.normalize(tokens[known], dim=-1) @ words.T
            total = total + functional.cross_entropy(logits.float(), named[known, column])
        return total

    def _attention_loss(self, out: Any, number: int, heads: slice, labels: Sequence[_AttentionLabel]) -> Tensor:
        """−log of the attention of some heads of layer `number` to the target positions, mean over `labels`."""
        layer = self.language.model.layers[number]
        rows = torch.tensor([label.row for label in labels])
        positions = torch.tensor([label.position for label in labels])
        size = LANGUAGE["hidden_size"] // LANGUAGE["num_attention_heads"]
        entering = layer.input_layernorm(out.hidden_states[number][rows, positions])
        query = layer.self_attn.q_proj(entering).view(len(rows), 1, -1, size).transpose(1, 2)
        cos, sin = self.language.model.rotary_emb(entering, positions.unsqueeze(1))
        query, _ = apply_rotary_pos_emb(query, query, cos, sin)
        keys = out.past_key_values.layers[number].keys[:, heads]
        scores = (query[:, heads] @ keys[rows].transpose(-1, -2)).squeeze(2).float()
        ahead = torch.arange(keys.shape[2]).unsqueeze(0) > positions.unsqueeze(1)
        shares = (scores / math.sqrt(size)).masked_fill(ahead.unsqueeze(1), -torch.inf).log_softmax(-1)
        places = torch.zeros(len(labels), keys.shape[2], dtype=torch.bool)
        for i, label in enumerate(labels):
            places[i, label.targets] = True
        wanted = shares.masked_fill(~places.unsqueeze(1), -torch.inf).logsumexp(-1)
        loss: Tensor = -wanted.clamp(min=-20).mean()
        return loss

    def _probe_loss(self, out: Any, auxiliary: _AttentionLoss, labels: Sequence[_AttentionLabel]) -> Tensor:
        """Cross-entropy of the probe at the positions that attend, sum over `auxiliary.reads`."""
        rows = torch.tensor([label.row for label in labels])
        positions = torch.tensor([label.position for label in labels])
        read = self.probe(functional.rms_norm(out.hidden_states[PROBE_LAYER][rows, positions], [self.connector.width]))
        total: Tensor = read.new_zeros(())
        for i, group in enumerate(auxiliary.reads):
            wanted = torch.tensor([label.classes[i] for label in labels])
            total = total + functional.cross_entropy(read.split(PROBE_CLASSES, dim=-1)[group].float(), wanted)
        return total

    def _labels(
        self, stream: Example, row: int, head: int, answer: range, rng: np.random.Generator
    ) -> list[list[_AttentionLabel]]:
        """The labels of one stream for each of ATTENTION_LOSSES.

        Args:
            stream: the example.
            row: its row of the batch.
            head: position of its first vision token.
            answer: positions of the answer's tokens.
            rng: draws which patches are labelled.
        """
        at = self._positions(stream, head)
        shown = at[stream.shown].tolist()
        answers = [_AttentionLabel(row, position, shown) for position in answer if shown]
        known = at[stream.named[..., 0] >= 0].tolist()
        digits: list[list[_AttentionLabel]] = [[], [], [], []]
        for position in rng.choice(known, min(MAX_LABELS, len(known)), replace=False).tolist() if known else ():
            frame = int((at[:, 0] <= position).sum()) - 1
            first = int(at[frame, 0]) - len(CLOCK)
            for several, i in zip(digits, (0, 1, 3, 4), strict=True):
                several.append(_AttentionLabel(row, position, [first + i], (int(stream.clocks[frame][i]),)))
        follows: list[_AttentionLabel] = []
        for later, earlier, kind, colour in stream.follows:
            positions = at[later]
            chosen = positions[torch.from_numpy(rng.permutation(len(positions))[:4])].tolist()
            follows += [_AttentionLabel(row, position, at[earlier].tolist(), (kind, colour)) for position in chosen]
        return [answers, *digits, [follows[i] for i in rng.permutation(len(follows))[:MAX_LABELS]]]

    def loss(self, streams: Sequence[Example], rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch: cross-entropy of the answers' tokens (equation 12) and the auxiliary losses.

        With equation 12 alone, the model discovers only by chance that the answer is at the patches that fit the
        question, that the text before a patch is its capture time, and that an event at a place follows another one.
        The auxiliary losses teach this to a few heads, so that it is learned first instead of last.

        Returns:
            The loss, and figures: `loss` (equation 12), the auxiliary losses by name, `right` (share of right answers)
            and the same for each kind of question in the batch.
        """
        embed = self.language.get_input_embeddings()
        sequences: list[Tensor] = []
        targets: list[Tensor] = []
        labels: list[list[_AttentionLabel]] = [[] for _ in ATTENTION_LOSSES]
        for number, stream in enumerate(streams):
            options = stream.question.options if rng.random() < 0.8 else ()
            prefix, suffix = build_prompt(self.tokenizer, stream.question.text, options)
            answer = self.tokenizer(f" {stream.question.answer}", add_special_tokens=False).input_ids
            answer = [*answer, self.tokenizer.eos_token_id]
            visual = self.visual(stream)
            sequences.append(torch.cat([embed(torch.tensor(prefix)), visual, embed(torch.tensor([*suffix, *answer]))]))
            target = torch.full((len(sequences[-1]),), -100)
            target[-len(answer) - 1 : -1] = torch.tensor(answer)  # each position predicts the token after it
            targets.append(target)
            spoken = range(len(target) - len(answer) - 1, len(target) - 2)
            for several, more in zip(labels, self._labels(stream, number, len(prefix), spoken, rng), strict=True):
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
        for auxiliary, several in zip(ATTENTION_LOSSES, labels, strict=True):
            if several:
                attention = self._attention_loss(out, auxiliary.layer, auxiliary.heads, several)
                probe = self._probe_loss(out, auxiliary, several)
                figures[auxiliary.name] = attention.item()
                if auxiliary.reads:
                    figures[f"read {auxiliary.name}"] = probe.item()
                total = total + auxiliary.weight * attention + PROBE_WEIGHT * probe
        word = self._word_loss(streams)
        figures |= {"name": word.item(), "right": float((wrong == 0).float().mean())}
        for kind in QUESTION_KINDS:
            asked = [float(w == 0) for w, s in zip(wrong, streams, strict=True) if s.question.kind == kind]
            if asked:
                figures[kind] = sum(asked) / len(asked)
        return total + WORD_WEIGHT * word, figures

    def save(self, micro: Path) -> None:
        """Write `llm` (float16) and `connector.safetensors` into folder `micro`."""
        deepcopy(self.language).half().save_pretrained(micro / "llm")
        save_tokenizer(micro / "llm", max_length=self.context, close=False)
        self.connector.save(micro / "connector.safetensors")

    def load(self, micro: Path) -> None:
        """Take the weights of `llm` and `connector.safetensors` in folder `micro`; the probe stays random."""
        saved = Qwen2ForCausalLM.from_pretrained(micro / "llm", dtype=torch.float32, use_safetensors=True)
        self.language.load_state_dict(saved.state_dict())
        self.connector.load_state_dict(Connector.load(micro / "connector.safetensors").state_dict())


DrawExample = Callable[[StreamMaker, ClipBank, BankFeatures, np.random.Generator, StreamSize], Example]
"""Draws a random stream with a question, ready for the model."""


@dataclass(slots=True)
class LanguageRun:
    """Settings of the language model's training, and its history."""

    seed: int = 0
    """Seed of weights and examples."""
    rate: float = 1.5e-3
    """Largest learning rate; it falls to a twentieth along a cosine."""
    warm_up: int = 150
    """Steps in which the rate rises from 0."""
    threads: int = 2
    """Threads of torch."""
    save_every: int = 50
    """Steps between two checkpoints."""
    stages: tuple[Stage, ...] = STAGES
    """The stages, one after another."""
    draw: DrawExample = draw_example
    """Draws an example of a size."""
    start: Path | None = None
    """Folder with the weights to start from; random weights if None."""
    context: int = CONTEXT
    """Largest number of positions."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Running means of the figures every 20 steps."""


@dataclass(frozen=True, slots=True)
class _Batches(Dataset[list[Example]]):
    """The examples of each step of `plan`; a pure function of seed and step."""

    seed: int
    plan: Sequence[Stage]
    maker: StreamMaker
    bank: ClipBank
    features: BankFeatures
    draw: DrawExample

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[Example]:
        rng = np.random.default_rng([self.seed, 7, step])
        sizes = self.plan[step].sizes
        size = sizes[rng.integers(len(sizes))]
        return [self.draw(self.maker, self.bank, self.features, rng, size) for _ in range(size.batch)]


def train_language(
    bank: ClipBank,
    clips: int,
    features: BankFeatures,
    work: Path,
    micro: Path,
    run: LanguageRun,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Train through all stages of `run` and save to `llm` and `connector.safetensors`.

    An interrupted training resumes from the checkpoint in `work`.

    Args:
        bank: the training data.
        clips: clips of each camera of the bank.
        features: the bank, encoded.
        work: folder of the checkpoint.
        micro: folder for the weights.
        run: settings; its history is filled.
        on_step: called every 20 steps with steps done and running means of the figures.
    """
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    model = MicroModel(features.patches.shape[-1], run.context)
    if run.start is not None:
        model.load(run.start)
    optimizer = make_optimizer(model, run.rate)
    checkpoint = work / "language.pt"
    first, run.history = load_checkpoint(checkpoint, model, optimizer)
    plan = [stage for stage in run.stages for _ in range(stage.steps)]
    batches = iter(
        DataLoader(
            _Batches(run.seed, plan, StreamMaker(bank, clips), bank, features, run.draw),
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
        set_rate(optimizer, rate)
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
            save_checkpoint(checkpoint, model, optimizer, step + 1, run.history)
    model.eval().save(micro)
