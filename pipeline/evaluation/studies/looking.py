"""What a language model attends to when one question is asked about the frames of one video.

Every frame has all of its tokens in the prompt, as in the paper's study: nothing is selected or merged. The attention
of frame n and patch m is a_n^m, the mean over the question's tokens, all layers and all heads of the softmax over the
whole prompt, and a_n = Σ_m a_n^m. It is then divided by the sum over all frames, because most of it may go elsewhere;
`Mass` says where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.store import Store
from index.window import Window
from model.answerer import Answerer, AnswerRequest
from model.language.query_attention import read_attention
from model.selection import even_rows
from model.stage_clock import StageClock
from model.visual.prompt import build_prompt, question_tokens
from pipeline.evaluation.studies.curves import Floats

__all__ = ["Look", "Subject", "VideoFrames", "look", "video_frames"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A question about a video of the store."""

    stream: str
    """Its stream."""
    question: str
    """The question."""
    options: tuple[str, ...]
    """Its options; may be empty."""
    answer: int | None
    """Index of the right option, if known."""
    evidence: tuple[tuple[float, float], ...] = ()
    """Seconds since the first frame of the video in which the answer is visible; empty if not known."""


@dataclass(frozen=True, slots=True)
class VideoFrames:
    """The frames of a video that are shown."""

    window: Window
    """The frames."""
    patches: NDArray[np.float16]
    """Their patches, float16[N, M, Dp]."""
    seconds: Floats
    """Seconds since the first frame of the video, float64[N]."""
    tower: Floats
    """Mean of each frame's patches, of unit norm, float64[N, Dp]."""
    clip: Floats
    """Vectors of the frame encoder, of unit norm, float64[N, Df]."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the tokens of one question attend to."""

    attention: Floats
    """a_n^m, float64[N, M]; sums to the share of the frames."""
    by_layer: Floats
    """a_n of each layer, float64[layers, N]."""
    mass: dict[str, Floats]
    """Share of all attention by place in the prompt and layer, float64[layers]: `frames`, `between the
    frames` (capture times and the closing token), `first token`, `text before the frames` (without the first token) and
    `question and template`."""
    tokens: Floats
    """What the language model reads of the frames, float64[N, M, width]."""
    option: int | None
    """The option with the largest likelihood; None without options."""


def video_frames(store: Store, stream: str, frames: int) -> VideoFrames:
    """At most `frames` evenly spaced frames of a stream.

    Raises:
        UnknownStream, EmptyWindow: there are none.
    """
    whole = store.window([stream])
    window = whole.take(even_rows(len(whole), frames))
    patches = store.patches(window)
    tower = patches.astype(np.float32).mean(axis=1).astype(np.float64)
    return VideoFrames(
        window=window,
        patches=patches,
        seconds=(window.captured_at - whole.captured_at[0]) / 1e6,
        tower=_unit(tower),
        clip=_unit(window.frame_vectors.astype(np.float64)),
    )


def look(
    answerer: Answerer, subject: Subject, video: VideoFrames, order: NDArray[np.int64] | None = None
) -> tuple[Look, Look]:
    """Ask a question about all frames of a video, and read what it attends to.

    Args:
        answerer: the models, of the engine `transformers`, without dropping of visual tokens.
        subject: the question.
        video: the frames.
        order: the frame that is shown at each place, int64[N]; the frames' own order if None. Capture times stay.

    Returns:
        The attention of the question's own tokens, and that of question and options together. Rows are frames in the
        order in which they are shown.

    Raises:
        BudgetExceeded: the frames do not fit the context.
    """
    window, count = video.window, len(video.window)
    shown = np.arange(count) if order is None else order
    request = AnswerRequest(
        question=subject.question,
        options=subject.options,
        stream_index=window.stream_index,
        captured_at=window.captured_at,
        keyframe=np.ones(count, np.bool_),
        read_patches=lambda part, out: np.copyto(out, video.patches[shown[part]]),
    )
    answerer.check_budget(keyframes=count, frames=count, question=subject.question, options=subject.options)
    language = answerer.language
    embeddings, visual = answerer.embed_prompt(request, StageClock(language.device))
    preface = answerer.visual.preface(request.seconds, count)
    text = (language.tokenizer, subject.question, subject.options)
    prefix, suffix = build_prompt(*text, preface=preface)
    places = question_tokens(*text, preface=preface)
    first = len(embeddings) - len(suffix)
    groups = [[first + place for place in group] for group in (places.question, places.asked)]
    option_ids = [answerer.option_ids(option) for option in subject.options]
    attention, prompt = read_attention(language, embeddings, groups, room=max(1, sum(map(len, option_ids))))
    option = None
    if option_ids:
        totals = language.score(prompt, option_ids)
        option = int(np.argmax([total / len(ids) for total, ids in zip(totals, option_ids, strict=True)]))
    seen = torch.nonzero(visual)[:, 0]
    per_frame = (len(seen) - answerer.visual.closing_tokens) // count
    seen = seen[: count * per_frame]
    tokens = embeddings[seen].double().cpu().numpy().reshape(count, per_frame, -1)
    return (
        _look(attention[0], seen, len(prefix), first, count, tokens, option),
        _look(attention[1], seen, len(prefix), first, count, tokens, option),
    )


def _look(
    attention: Tensor,
    seen: Tensor,
    head: int,
    tail: int,
    count: int,
    tokens: Floats,
    option: int | None,
) -> Look:
    """One group's attention [layers, T], split by place."""
    shares: Floats = attention.double().cpu().numpy()
    of_frames = shares[:, seen.cpu().numpy()].reshape(len(shares), count, -1)
    places = np.arange(shares.shape[1])
    between = (places >= head) & (places < tail) & ~np.isin(places, seen.cpu().numpy())
    frames = of_frames.sum(axis=(1, 2))
    mass = {
        "frames": frames,
        "between the frames": shares[:, between].sum(axis=1),
        "first token": shares[:, 0],
        "text before the frames": shares[:, 1:head].sum(axis=1),
        "question and template": shares[:, tail:].sum(axis=1),
    }
    return Look(of_frames.mean(axis=0), of_frames.sum(axis=2), mass, tokens, option)


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms == 0, 1.0, norms)


def evidence_frames(subject: Subject, seconds: Sequence[float] | Floats) -> NDArray[np.bool_]:
    """Which frames show the evidence, bool[N]."""
    at = np.asarray(seconds)
    found = np.zeros(len(at), np.bool_)
    for begin, end in subject.evidence:
        found |= (at >= begin) & (at <= end)
    return found


__all__ += ["evidence_frames"]
