"""The training examples of `micro-hico`'s language model: streams read by clips, with one question each.

    four frames ─ SigLIP ─▶ 144 patches ─ ToMe ─▶ 16 tokens a clip ─ connector ─▶ language model

An example has the form of `model.training.micro.examples`: its clips stand where keyframes do, and no frame is left out
or merged for the question. So the model of `model.training.micro.language` is trained by the same losses. Starting from
the weights of `micro`, which reads the same patches one keyframe at a time, it has to learn merged patches and longer
prompts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.encoders.tome import merge_carrying
from model.training.micro.clip_bank import ClipBank
from model.training.micro.examples import (
    BankFeatures,
    EventPair,
    Example,
    Stage,
    StreamSize,
    drawn_streams,
    patch_labels,
)
from model.training.micro.virtual_streams import StreamMaker, VirtualStream
from model.world.questions import Question
from model.world.scenes import COLOURS, COUNTS, KINDS, PLACES, Actor, Event

__all__ = ["CLIP_FRAMES", "CLIP_TOKENS", "HICO_CONTEXT", "HICO_RATE", "HICO_STAGES", "draw_clip_example"]

CLIP_FRAMES, CLIP_TOKENS = 4, 16
HICO_RATE, HICO_CONTEXT = 4e-4, 65_536
_SHORT = StreamSize(frames=100, clips=6, k=0, others=0, batch=8)
_MEDIUM = StreamSize(frames=600, clips=16, k=0, others=0, batch=2)
_LONG = StreamSize(frames=1200, clips=24, k=0, others=0, batch=1)
_LONGEST = StreamSize(frames=2400, clips=30, k=0, others=0, batch=1)
HICO_STAGES = (
    Stage(steps=260, sizes=(_SHORT, _MEDIUM)),
    Stage(steps=200, sizes=(_MEDIUM, _MEDIUM, _LONG)),
    Stage(steps=60, sizes=(_MEDIUM, _LONG, _LONGEST)),
)
"""The stages of the training, one after another; every clip is read, so sizes have no keyframes."""
_NAMES: tuple[Sequence[str], ...] = (KINDS, COLOURS, PLACES, COUNTS)
_ENOUGH = 0.5  # share of a token's patches that must show the same


def draw_clip_example(
    maker: StreamMaker, bank: ClipBank, features: BankFeatures, rng: np.random.Generator, size: StreamSize
) -> Example:
    """A random stream with a question, read by clips; of `size`, only `frames` and `clips` count."""
    return _prepare(*next(drawn_streams(maker, rng, size)), bank, features)


class _Clips(NamedTuple):
    """A stream, read by clips."""

    tokens: Tensor
    """Merged patches, float32[C, T, d]."""
    named: NDArray[np.int64]
    """Kind, colour, place and count that most patches of a token show, int64[C, T, 4]; -1 for none."""

    def during(self, event: Event) -> NDArray[np.bool_]:
        """bool[C]: the clips in which the event is visible."""
        first = np.arange(len(self.tokens)) * CLIP_FRAMES
        seen: NDArray[np.bool_] = (first + CLIP_FRAMES - 1 >= event.seen_from) & (first <= event.seen_until)
        return seen

    def showing(self, event: Event, actors: Sequence[Actor]) -> NDArray[np.bool_]:
        """bool[C, T]: the tokens that show one of `actors` in the event."""
        result = np.zeros(self.named.shape[:2], np.bool_)
        for actor in actors:
            result |= (self.named[..., 0] == actor.kind) & (self.named[..., 1] == actor.colour)
        return result & self.during(event)[:, None]


def _read(stream: VirtualStream, bank: ClipBank, features: BankFeatures) -> _Clips:
    """The clips of a stream; frames after the last whole clip are left out."""
    rows = stream.rows[: len(stream.rows) // CLIP_FRAMES * CLIP_FRAMES]
    patches = torch.from_numpy(np.asarray(features.patches[rows], np.float32))
    labels = torch.from_numpy(patch_labels(bank, rows))
    shape = (len(rows) // CLIP_FRAMES, CLIP_FRAMES * patches.shape[1], -1)
    shown = [functional.one_hot(labels[..., i] + 1, len(names) + 1)[..., 1:] for i, names in enumerate(_NAMES)]
    tokens, shares = merge_carrying(patches.reshape(shape), torch.cat(shown, -1).float().reshape(shape), CLIP_TOKENS)
    named = []
    for part in torch.split(shares, [len(names) for names in _NAMES], dim=-1):
        share, best = part.max(dim=-1)
        named.append(torch.where(share >= _ENOUGH, best, -1))
    # The store keeps tokens as float16.
    return _Clips(tokens.half().float(), torch.stack(named, dim=-1).numpy())


def _follows(stream: VirtualStream, clips: _Clips) -> list[EventPair]:
    """Every event that came after another one at its place, in a later clip."""
    result: list[EventPair] = []
    last: dict[int, tuple[int, Actor]] = {}
    for event in sorted((e for clip in stream.clips for e in clip.events), key=lambda e: e.start):
        shown = clips.showing(event, event.actors)
        if not clips.showing(event, event.actors[:1]).any():
            continue
        if event.place in last:
            number, before = last[event.place]
            earlier, later = np.zeros_like(shown), shown.copy()
            earlier[number] = (clips.named[number, :, 0] == before.kind) & (clips.named[number, :, 1] == before.colour)
            later[: number + 1] = False  # a token attends to earlier ones only
            if later.any():
                pair = EventPair(torch.from_numpy(later), torch.from_numpy(earlier), before.kind, before.colour)
                result.append(pair)
        last[event.place] = int(np.flatnonzero(clips.showing(event, event.actors[:1]).any(1))[-1]), event.actors[0]
    return result


def _prepare(stream: VirtualStream, question: Question, bank: ClipBank, features: BankFeatures) -> Example:
    """All clips of the stream, for one question about it."""
    clips = _read(stream, bank, features)
    count, width = len(clips.tokens), clips.tokens.shape[-1]
    event, actor = question.shown
    return Example(
        [stream.clock(number * CLIP_FRAMES) for number in range(count)],
        clips.tokens,
        clips.tokens.new_zeros(0, width),
        np.zeros(count, np.int64),
        question,
        features.patch_text([question.text])[0].clone(),
        torch.from_numpy(clips.showing(event, [actor])),
        torch.from_numpy(clips.named),
        _follows(stream, clips),
    )
