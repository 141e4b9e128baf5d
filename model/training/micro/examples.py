"""The training examples of `micro`'s language model: streams with one question each, their frames already encoded.

Streams are assembled from the bank; keyframes are selected by DKS and the other frames merged by DFM, as for an answer.
Kinds of question and counts are drawn uniformly, so that no answer is likely without the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import SiglipModel

from index.files import load_array
from model.profiles.profile import Profile, load_profile
from model.selection import select_rows
from model.training.micro.clip_bank import ClipBank
from model.training.micro.encoders import TEXT_LENGTH
from model.training.micro.virtual_streams import StreamMaker, VirtualStream, ask_about
from model.visual.dfm import merge
from model.world.questions import QUESTION_KINDS, Question
from model.world.scenes import COUNTS, Actor, Event
from model.world.vocabulary import build_tokenizer

__all__ = [
    "BankFeatures",
    "EventPair",
    "Example",
    "Stage",
    "StreamSize",
    "draw_example",
    "drawn_streams",
    "load_features",
    "patch_labels",
]


@dataclass(frozen=True, slots=True)
class StreamSize:
    """The size of the streams of one step."""

    frames: int
    """Frames of a stream, one a second."""
    clips: int
    """Most clips in it."""
    k: int
    """Keyframes."""
    others: int
    """Most other frames that are read, a random choice: finding the right patch needs no long prompt, and a short one
    costs less."""
    batch: int
    """Streams of one step."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the training."""

    steps: int
    """Optimiser steps."""
    sizes: tuple[StreamSize, ...]
    """The size of each step's streams is drawn uniformly from these."""


@dataclass(slots=True)
class BankFeatures:
    """The outputs of the frozen encoders for all N frames of the bank, and for texts."""

    patches: NDArray[np.float16]
    """SigLIP's patches, float16[N, M, d]."""
    vectors: NDArray[np.float32]
    """CLIP's vectors, float32[N, e] of unit norm."""
    patch_text: Callable[[Sequence[str]], Tensor]
    """SigLIP's vectors of texts, float32[n, d] of unit norm."""
    frame_text: Callable[[Sequence[str]], NDArray[np.float32]]
    """CLIP's vectors of texts, float32[n, e] of unit norm."""


def load_features(bank: ClipBank, micro: Path, work: Path, on_progress: Callable[[int, int], None]) -> BankFeatures:
    """Encode the bank with the encoders in folder `micro`; the arrays are kept in `work` and reused.

    `on_progress` gets frames done and frames in all.
    """
    siglip = SiglipModel.from_pretrained(micro / "siglip", use_safetensors=True).float().eval()
    clip = open_clip.create_model(f"local-dir:{micro / 'clip'}").float().eval()
    tokenizer = build_tokenizer(max_length=TEXT_LENGTH, close=True)

    def ids(texts: Sequence[str]) -> Tensor:
        """Token ids of texts."""
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
        """SigLIP's vectors of texts."""
        return functional.normalize(siglip.text_model(input_ids=ids(texts)).pooler_output, dim=-1)

    @torch.inference_mode()
    def frame_text(texts: Sequence[str]) -> NDArray[np.float32]:
        """CLIP's vectors of texts."""
        return functional.normalize(clip.encode_text(ids(texts)), dim=-1).numpy()

    return BankFeatures(load_array(patches_path, mapped=True), load_array(vectors_path), patch_text, frame_text)


class EventPair(NamedTuple):
    """Two successive events at one place, as the keyframes show them."""

    later: Tensor
    """Patches that show the later event, bool[K, M]."""
    earlier: Tensor
    """Patches of the last keyframe that shows the earlier event, bool[K, M]."""
    kind: int
    """Kind of the earlier actor (of the first one in a meeting)."""
    colour: int
    """Colour of the earlier actor."""


@dataclass(slots=True)
class Example:
    """One stream, encoded and merged for one question."""

    clocks: list[str]
    """Capture time of each keyframe, HH:MM."""
    key_patches: Tensor
    """Patches of the keyframes, float32[K, M, d]."""
    merged: Tensor
    """Tokens of the other frames, float32[n, d]."""
    before: NDArray[np.int64]
    """Number of other frames before each keyframe, int64[K]."""
    question: Question
    """The question and its answer."""
    query: Tensor
    """SigLIP's vector of the question, float32[d]."""
    shown: Tensor
    """Label: the patches that show the answer, bool[K, M]."""
    named: Tensor
    """Label: kind, colour, place and count of the actor that covers a patch, int64[K, M, 4]; -1 for none."""
    follows: list[EventPair]
    """Label: every event that came after another one at its place."""


@cache
def _profile() -> Profile:
    """The profile whose settings select keyframes."""
    return load_profile("micro")


def _fill_up(k: int, chosen: NDArray[np.int64], frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`chosen` and random other frames up to `k` in all, ascending; all streams of a batch then have equal length."""
    spare = np.setdiff1d(np.arange(frames), chosen)
    return np.sort(np.concatenate([chosen, rng.choice(spare, k - len(chosen), replace=False)]))


def _during(keyframes: NDArray[np.int64], event: Event) -> NDArray[np.bool_]:
    """bool[K]: the keyframes in which the event is visible."""
    seen: NDArray[np.bool_] = (keyframes >= event.seen_from) & (keyframes <= event.seen_until)
    return seen


def _showing(named: NDArray[np.int64], keyframes: NDArray[np.int64], event: Event) -> NDArray[np.bool_]:
    """bool[K, M]: the patches that show one of the event's actors."""
    result = np.zeros(named.shape[:2], bool)
    for actor in event.actors:
        result |= (named[..., 0] == actor.kind) & (named[..., 1] == actor.colour)
    return result & _during(keyframes, event)[:, None]


def _follows(stream: VirtualStream, named: NDArray[np.int64], keyframes: NDArray[np.int64]) -> list[EventPair]:
    """Every event that came after another one at its place; both shown by keyframes."""
    result: list[EventPair] = []
    last: dict[int, tuple[Tensor, Actor]] = {}
    for event in sorted((e for clip in stream.clips for e in clip.events), key=lambda e: e.start):
        shown = _showing(named, keyframes, event)
        if not shown.any():
            continue
        if event.place in last:
            earlier, actor = last[event.place]
            result.append(EventPair(torch.from_numpy(shown), earlier, actor.kind, actor.colour))
        latest = np.zeros_like(shown)
        frame = np.flatnonzero(shown.any(1))[-1]
        latest[frame] = shown[frame]
        last[event.place] = torch.from_numpy(latest), event.actors[0]
    return result


def patch_labels(bank: ClipBank, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Kind, colour, place and count of the actor that covers each patch of N frames, int64[N, M, 4]; -1 for none."""
    owner = bank.patch_seen[rows]
    participant = np.maximum(owner, 0)[..., None].astype(np.int64)
    labels = np.take_along_axis(bank.seen[rows], participant, axis=1)[..., [0, 1, 2, 4]]
    labels[..., 3] -= 1  # an index into COUNTS
    return np.where(owner[..., None] >= 0, labels, -1).astype(np.int64)


def _prepare(
    stream: VirtualStream,
    question: Question,
    bank: ClipBank,
    features: BankFeatures,
    rng: np.random.Generator,
    size: StreamSize,
) -> Example | None:
    """Keyframes and merged tokens for one question about the stream; None if DKS missed the evidence."""
    frames = len(stream.rows)
    vectors = features.vectors[stream.rows]
    chosen = select_rows(vectors, features.frame_text([question.text])[0], _profile(), k=size.k).rows
    keyframes = _fill_up(size.k, chosen, frames, rng)
    if not all(_during(keyframes, event).any() for event in question.evidence):
        return None
    others = np.setdiff1d(np.arange(frames), keyframes)
    others = np.sort(rng.choice(others, min(size.others, len(others)), replace=False))
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
    named = patch_labels(bank, rows)
    event, actor = question.shown
    shown = (named[..., 0] == actor.kind) & (named[..., 1] == actor.colour) & _during(keyframes, event)[:, None]
    follows = _follows(stream, named, keyframes)
    return Example(
        clocks,
        key_patches,
        tokens,
        before,
        question,
        query,
        torch.from_numpy(shown),
        torch.from_numpy(named),
        follows,
    )


def drawn_streams(
    maker: StreamMaker, rng: np.random.Generator, size: StreamSize
) -> Iterator[tuple[VirtualStream, Question]]:
    """Random streams with a question each, without end.

    The kind of question, and for "how many" the count, are drawn uniformly beforehand, for up to sixty streams.
    """
    while True:
        kind = QUESTION_KINDS[rng.integers(len(QUESTION_KINDS))]
        count = int(rng.integers(len(COUNTS))) + 1
        for _ in range(60):
            stream = maker.make(rng, frames=size.frames, clips=size.clips)
            question = ask_about(stream, rng, kind, count)
            if question:
                yield stream, question


def draw_example(
    maker: StreamMaker, bank: ClipBank, features: BankFeatures, rng: np.random.Generator, size: StreamSize
) -> Example:
    """A random stream with a question, whose evidence DKS finds."""
    examples = (_prepare(*drawn, bank, features, rng, size) for drawn in drawn_streams(maker, rng, size))
    return next(example for example in examples if example)
