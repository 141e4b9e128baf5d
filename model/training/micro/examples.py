"""What the language model of `micro` is trained on: streams with one question each, their frames already encoded.

Streams are put together from the bank, keyframes chosen by DKS, the rest folded by DFM, exactly as at answering. Kinds
of question and counts are drawn evenly, so that no answer is likely before looking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.profiles.profile import Profile, load_profile
from model.selection import select_rows
from model.training.micro.clip_bank import Bank
from model.training.micro.encoders import TEXT_LENGTH
from model.training.micro.virtual_streams import StreamMaker, VirtualStream, ask_about
from model.visual.dfm import merge
from model.world.questions import QUESTION_KINDS, Question
from model.world.scenes import COUNTS, Actor, Event
from model.world.vocabulary import build_tokenizer

__all__ = ["ClipFeatures", "Example", "Length", "draw_example", "load_features"]


@dataclass(frozen=True, slots=True)
class Length:
    """Streams of `frames` seconds with up to `clips` clips and `k` keyframes, `batch` of them a step.

    At most `others` of the frames that are no keyframes are read, a random choice of them: to find the right patch
    among many needs no long prefix, and a short one costs less.
    """

    frames: int
    clips: int
    k: int
    others: int
    batch: int


@dataclass(slots=True)
class ClipFeatures:
    """What the frozen encoders say of every bank frame, and of texts.

    patches float16[N, M, d]; vectors float32[N, e] of unit norm; the two functions embed texts: SigLIP [n, d], CLIP [n, e].
    """

    patches: NDArray[np.float16]
    vectors: NDArray[np.float32]
    patch_text: Callable[[Sequence[str]], Tensor]
    frame_text: Callable[[Sequence[str]], NDArray[np.float32]]


def load_features(bank: Bank, micro: Path, work: Path, on_progress: Callable[[int, int], None]) -> ClipFeatures:
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

    return ClipFeatures(np.load(patches_path, mmap_mode="r"), np.load(vectors_path), patch_text, frame_text)


class Follows(NamedTuple):
    """`later` and `earlier` bool[K, M]; `kind` and `colour` of the earlier actor (one of them in a meeting)."""

    later: Tensor
    earlier: Tensor
    kind: int
    colour: int


@dataclass(slots=True)
class Example:
    """One stream ready to be read for one question.

    Patches of the keyframes [K, M, d], merged tokens of the others [n, d], how many others stand before each keyframe
    int64[K], the question and its embedding [d]. For training only: `shown` bool[K, M], the patches that show its
    answer; `named` int64[K, M, 4], kind, colour, place and count of the actor that covers a patch, −1 where there is none;
    `follows`, for every event that came after another at its place: the patches that show it, bool[K, M], those of the
    last keyframe that shows the other, bool[K, M], and the kind and colour seen there.
    """

    clocks: list[str]
    key_patches: Tensor
    merged: Tensor
    before: NDArray[np.int64]
    question: Question
    query: Tensor
    shown: Tensor
    named: Tensor
    follows: list[Follows]


@cache
def _profile() -> Profile:
    return load_profile("micro")


def _exactly(k: int, chosen: NDArray[np.int64], frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`chosen` and as many random other frames as make it `k`, ascending, so that streams of a batch are as long."""
    spare = np.setdiff1d(np.arange(frames), chosen)
    return np.sort(np.concatenate([chosen, rng.choice(spare, k - len(chosen), replace=False)]))


def _during(keyframes: NDArray[np.int64], event: Event) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = (keyframes >= event.seen_from) & (keyframes <= event.seen_until)
    return seen


def _showing(named: NDArray[np.int64], keyframes: NDArray[np.int64], event: Event) -> NDArray[np.bool_]:
    """bool[K, M]: the patches that show one of the event's actors."""
    result = np.zeros(named.shape[:2], bool)
    for actor in event.actors:
        result |= (named[..., 0] == actor.kind) & (named[..., 1] == actor.colour)
    return result & _during(keyframes, event)[:, None]


def _follows(stream: VirtualStream, named: NDArray[np.int64], keyframes: NDArray[np.int64]) -> list[Follows]:
    result: list[Follows] = []
    last: dict[int, tuple[Tensor, Actor]] = {}
    for event in sorted((e for clip in stream.clips for e in clip.events), key=lambda e: e.start):
        shown = _showing(named, keyframes, event)
        if not shown.any():
            continue
        if event.place in last:
            earlier, actor = last[event.place]
            result.append(Follows(torch.from_numpy(shown), earlier, actor.kind, actor.colour))
        latest = np.zeros_like(shown)
        frame = np.flatnonzero(shown.any(1))[-1]
        latest[frame] = shown[frame]
        last[event.place] = torch.from_numpy(latest), event.actors[0]
    return result


def _prepare(
    stream: VirtualStream,
    question: Question,
    bank: Bank,
    features: ClipFeatures,
    rng: np.random.Generator,
    length: Length,
) -> Example | None:
    """Keyframes and merged tokens for one question about the stream; None when its evidence was not chosen."""
    frames = len(stream.rows)
    vectors = features.vectors[stream.rows]
    chosen = select_rows(vectors, features.frame_text([question.text])[0], _profile(), k=length.k)
    keyframes = _exactly(length.k, chosen, frames, rng)
    if not all(_during(keyframes, event).any() for event in question.evidence):
        return None
    others = np.setdiff1d(np.arange(frames), keyframes)
    others = np.sort(rng.choice(others, min(length.others, len(others)), replace=False))
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
    of_patch = np.take_along_axis(bank.seen[rows], participant, axis=1)[..., [0, 1, 2, 4]]
    of_patch[..., 3] -= 1  # an index into COUNTS
    named = np.where(owner[..., None] >= 0, of_patch, -1).astype(np.int64)
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


def draw_example(
    maker: StreamMaker, bank: Bank, features: ClipFeatures, rng: np.random.Generator, length: Length
) -> Example:
    """A random stream with a question whose kind, and for "how many" whose count, was drawn evenly beforehand."""
    while True:
        kind = QUESTION_KINDS[rng.integers(len(QUESTION_KINDS))]
        count = int(rng.integers(len(COUNTS))) + 1
        for _ in range(60):
            stream = maker.make(rng, frames=length.frames, clips=length.clips)
            question = ask_about(stream, rng, kind, count)
            example = question and _prepare(stream, question, bank, features, rng, length)
            if example:
                return example
