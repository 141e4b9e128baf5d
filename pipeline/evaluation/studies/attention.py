"""The study of attention, `sightline eval study attention` (ViLAMP, section 3): figures 3 and 4 for any profile.

    as it is        the question's own tokens attend to frames in their order
    with options    the tokens of question and options together
    shuffled        the same frames in a random order, at the same capture times: does attention follow what a frame
                    shows, or where it is in the prompt?
    random weights  the same language model before any training, frames in their order

The last two are null tests. Rendered footage also says which frames show the answer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from index.errors import UsageError
from index.store import Store
from model.answerer import Answerer, load_answerer
from model.encoders.encoder import Encoders
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import Profile
from pipeline.evaluation.studies.curves import bootstrap, rank_correlation
from pipeline.evaluation.studies.figures import Figures, average, figures_of
from pipeline.evaluation.studies.looking import Subject, VideoFrames, evidence_frames, look, video_frames

__all__ = ["CONDITIONS", "AttentionStudy", "Condition", "VideoLine", "study_answerer", "study_attention"]

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


class VideoLine(BaseModel):
    """The figures of one video, which a study that was stopped goes on from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    key: str
    """Digest of the settings, of the models and of the questions."""
    questions: int
    """Questions about the video."""
    tokens_per_frame: int
    """Tokens of a frame."""
    vision_tokens: int
    """Tokens of all its frames."""
    right: dict[str, list[bool]]
    """Whether each answer is right, `as it is` and `shuffled`; empty if that is not known."""
    conditions: dict[Condition, Figures]
    """Means over its questions."""
    follows_content: float
    """See `AttentionStudy`."""
    follows_place: float
    """See `AttentionStudy`."""


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
    lines: Path | None = None,
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
        lines: file of JSON Lines that the figures of a video are appended to once they are known; a study that was
            stopped goes on from it.
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
    kept = {} if lines is None else _kept(lines)
    found, count = list[VideoLine](), 0
    for stream, group in groupby(subjects, key=lambda subject: subject.stream):
        here = list(group)
        key = _key(answerer, here, frames=frames, seed=seed, first=count)
        if key in kept:
            line = kept[key]
        else:
            line = _look_at(
                (answerer, untrained),
                here,
                video_frames(store, stream, frames),
                key=key,
                seed=seed,
                first=count,
                on_question=lambda number: on_progress(number, len(subjects)),
            )
            if lines is not None:
                _append(lines, line)
        found.append(line)
        count += len(here)
        on_progress(count, len(subjects))
    right = {name: [each for line in found for each in line.right.get(name, [])] for name in ("as it is", "shuffled")}
    by_video = {condition: [line.conditions[condition] for line in found] for condition in CONDITIONS}
    return AttentionStudy(
        profile=answerer.profile.name,
        source=source,
        seed=seed,
        videos=len(found),
        questions=count,
        frames=frames,
        tokens_per_frame=found[-1].tokens_per_frame,
        prompt_tokens=float(np.mean([line.vision_tokens for line in found for _ in range(line.questions)])),
        right={name: float(np.mean(values)) for name, values in right.items() if values},
        conditions={condition: average(each) for condition, each in by_video.items()},
        intervals={condition: _intervals(each) for condition, each in by_video.items()},
        follows_content=float(np.mean([line.follows_content for line in found])),
        follows_place=float(np.mean([line.follows_place for line in found])),
        load=round(os.getloadavg()[0], 1),
    )


def _look_at(
    models: tuple[Answerer, Answerer],
    subjects: Sequence[Subject],
    video: VideoFrames,
    *,
    key: str,
    seed: int,
    first: int,
    on_question: Callable[[int], None],
) -> VideoLine:
    """All questions about one video, asked of the models as they are and untrained; `first` is the number of the first
    question in the study."""
    answerer, untrained = models
    patches, straight = answerer.profile.hico is None, np.arange(len(video.window))
    here: dict[Condition, list[Figures]] = {condition: [] for condition in CONDITIONS}
    content, place, right = list[float](), list[float](), dict[str, list[bool]]()
    tokens = 0
    for number, subject in enumerate(subjects, first):
        order = np.random.default_rng([seed, number]).permutation(len(straight))
        plain, asked = look(answerer, subject, video)
        mixed, _ = look(answerer, subject, video, order)
        raw, _ = look(untrained, subject, video)
        evidence = evidence_frames(subject, video.seconds)
        for condition, seen, shown in zip(
            CONDITIONS, (plain, asked, mixed, raw), (straight, straight, order, straight), strict=True
        ):
            here[condition].append(figures_of(seen, video, evidence, shown, patches=patches, seed=seed))
        own, other = plain.attention.sum(axis=1), mixed.attention.sum(axis=1)
        content.append(rank_correlation(own[order], other))
        place.append(rank_correlation(own, other))
        if subject.answer is not None and subject.options:
            for name, seen in (("as it is", plain), ("shuffled", mixed)):
                right.setdefault(name, []).append(seen.option == subject.answer)
        tokens = plain.attention.shape[1]
        on_question(number + 1)
    return VideoLine(
        key=key,
        questions=len(subjects),
        tokens_per_frame=tokens,
        vision_tokens=tokens * len(straight),
        right=right,
        conditions={condition: average(found) for condition, found in here.items()},
        follows_content=float(np.mean(content)),
        follows_place=float(np.mean(place)),
    )


def _key(answerer: Answerer, subjects: Sequence[Subject], **settings: int) -> str:
    """Digest of everything that the figures of a video depend on."""
    profile = answerer.profile.model_dump_json()
    weights = answerer.encoders.pair.model_dump_json()
    asked = [(s.stream, s.question, s.options, s.answer, s.evidence) for s in subjects]
    return hashlib.sha256(repr((profile, weights, asked, sorted(settings.items()))).encode()).hexdigest()


def _append(path: Path, line: VideoLine) -> None:
    """Append a line; it survives a power cut once this returns, and is apart from what a killed study left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b"\n" * (file.tell() > 0) + line.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _kept(path: Path) -> dict[str, VideoLine]:
    """The lines of a study that was stopped, by key; a line that was not written to its end is passed over."""
    found = {}
    for text in path.read_text().split("\n") if path.exists() else []:
        try:
            line = VideoLine.model_validate_json(text)
        except ValidationError:
            continue
        found[line.key] = line
    return found


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
