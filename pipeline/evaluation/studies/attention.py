"""The study of attention, `sightline eval study attention` (ViLAMP, section 3): figures 3 and 4 for any profile.

    as it is        the question's own tokens attend to frames in their order
    with options    the tokens of question and options together
    shuffled        the same frames in a random order, at the same capture times: does attention follow what a frame
                    shows, or where it is in the prompt?
    random weights  the same language model before any training, frames in their order

The last two are null tests. Rendered footage also says which frames show the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from index.store import Store
from model.answerer import Answerer, load_answerer
from model.encoders.encoder import Encoders
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import Profile
from pipeline.evaluation.studies.curves import bootstrap, rank_correlation
from pipeline.evaluation.studies.figures import Figures, average, figures_of
from pipeline.evaluation.studies.looking import Subject, evidence_frames, look, video_frames

__all__ = ["CONDITIONS", "AttentionStudy", "Condition", "study_answerer", "study_attention"]

Condition = Literal["as it is", "with options", "shuffled", "random weights"]
"""What is compared."""
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

_HEADLINES = (
    "top_five",
    "top_five_without_first",
    "frames_for_90",
    "first_frame",
    "patches_for_80",
    "similar_half",
    "patch_slope",
    "evidence",
)


class AttentionStudy(BaseModel):
    """Result of the study."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    command: str = ""
    """The command that made it."""
    machine: str = ""
    """The machine, and what else it did."""
    profile: str
    """Name of the profile."""
    source: str
    """What the videos are."""
    seed: int
    """Seed of shuffled orders, random weights and random pairs."""
    videos: int
    """Videos."""
    questions: int
    """Questions."""
    frames: int
    """Most frames of a video."""
    tokens_per_frame: int
    """Tokens of a frame."""
    prompt_tokens: float
    """Mean tokens of a prompt without the question."""
    right: dict[str, float]
    """Share of right answers from all tokens of all frames, `as it is` and `shuffled`; empty if these are not known."""
    conditions: dict[Condition, Figures]
    """Figures of each condition: means over the questions of a video, then over videos."""
    intervals: dict[Condition, dict[str, tuple[float, float]]]
    """95 % intervals of some figures, by resampling videos."""
    follows_content: float
    """Rank correlation of a frame's attention in its own order and in the shuffled one, mean over videos."""
    follows_place: float
    """Rank correlation of the attention to a place of the prompt in the two orders, mean over videos."""
    load: float
    """Mean number of processes that wanted a core in the minute before the end."""


def study_answerer(profile: Profile, encoders: Encoders, device: str | None = None) -> Answerer:
    """The models of a profile as the study needs them: in this process, and without dropping of visual tokens.

    Raises:
        WeightsNotFound, WeightsInvalid, ModelError: see `model.answerer.load_answerer`.
    """
    language = profile.language_model.model_copy(update={"engine": "transformers", "dropping": None})
    return load_answerer(profile.model_copy(update={"language_model": language}), encoders, device)


def study_attention(
    answerer: Answerer,
    store: Store,
    subjects: Sequence[Subject],
    *,
    source: str,
    frames: int = 128,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AttentionStudy:
    """Run the study.

    Args:
        answerer: see `study_answerer`.
        store: has the videos.
        subjects: the questions, those of a video together.
        source: what the videos are, for the report.
        frames: most frames of a video; a shorter one has fewer.
        seed: seed of shuffled orders, random weights and random pairs.
        on_progress: called with the questions done and the questions in all.

    Raises:
        UsageError: there are no questions, or fewer than 20 frames.
        BudgetExceeded: the frames do not fit the context.
    """
    if not subjects:
        raise UsageError("there are no questions to study")
    if frames < 20:
        raise UsageError(f"the study needs at least 20 frames of a video, got {frames}")
    untrained = _untrained(answerer, seed)
    patches = answerer.profile.hico is None
    by_video: dict[Condition, list[Figures]] = {condition: [] for condition in CONDITIONS}
    content, place, right = list[float](), list[float](), dict[str, list[bool]]()
    done, tokens, lengths = 0, 0, list[int]()
    for stream, group in groupby(subjects, key=lambda subject: subject.stream):
        video = video_frames(store, stream, frames)
        straight = np.arange(len(video.window))
        here: dict[Condition, list[Figures]] = {condition: [] for condition in CONDITIONS}
        both, where = list[float](), list[float]()
        for subject in group:
            order = np.random.default_rng([seed, done]).permutation(len(straight))
            plain, asked = look(answerer, subject, video)
            mixed, _ = look(answerer, subject, video, order)
            raw, _ = look(untrained, subject, video)
            evidence = evidence_frames(subject, video.seconds)
            for condition, seen, shown in zip(
                CONDITIONS, (plain, asked, mixed, raw), (straight, straight, order, straight), strict=True
            ):
                here[condition].append(figures_of(seen, video, evidence, shown, patches=patches, seed=seed))
            own, other = plain.attention.sum(axis=1), mixed.attention.sum(axis=1)
            both.append(rank_correlation(own[order], other))
            where.append(rank_correlation(own, other))
            if subject.answer is not None and subject.options:
                for name, seen in (("as it is", plain), ("shuffled", mixed)):
                    right.setdefault(name, []).append(seen.option == subject.answer)
            tokens = plain.attention.shape[1]
            lengths.append(tokens * len(straight))
            done += 1
            on_progress(done, len(subjects))
        for condition, found in here.items():
            by_video[condition].append(average(found))
        content.append(float(np.mean(both)))
        place.append(float(np.mean(where)))
    return AttentionStudy(
        profile=answerer.profile.name,
        source=source,
        seed=seed,
        videos=len(content),
        questions=done,
        frames=frames,
        tokens_per_frame=tokens,
        prompt_tokens=float(np.mean(lengths)),
        right={name: float(np.mean(values)) for name, values in right.items()},
        conditions={condition: average(found) for condition, found in by_video.items()},
        intervals={condition: _intervals(found) for condition, found in by_video.items()},
        follows_content=float(np.mean(content)),
        follows_place=float(np.mean(place)),
        load=round(os.getloadavg()[0], 1),
    )


def _untrained(answerer: Answerer, seed: int) -> Answerer:
    """The same models, with a language model of random weights."""
    language: Any = answerer.language
    torch.manual_seed(seed)
    model = build_qwen2(language.model.config, language.device, language.dtype).requires_grad_(False)
    fresh = TransformersLanguage(model, language.tokenizer, max_context=language.max_context)
    return Answerer(answerer.profile, answerer.encoders, answerer.connector, fresh)


def _intervals(figures: Sequence[Figures]) -> dict[str, tuple[float, float]]:
    found = {}
    for name in _HEADLINES:
        values = [value for each in figures if (value := getattr(each, name)) is not None]
        if values:
            found[name] = bootstrap(values)
    return found
