"""Counted cost of questions of several sizes: `sightline bench model --counted`.

    ingest    vision tower, merging of a clip's tokens           once, whatever is asked
    question  DFM and projector, or the connector; prefill       every time; prefill also with tokens dropped

Everything follows from the sizes in a profile, so no weights, no disk and no time are needed, and no limit of frames or
positions applies. Does not know devices or seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from model.profiles.profile import DroppingSpec, ModelShape, Profile, load_profile
from pipeline.bench.cost import (
    Cost,
    Counts,
    Tower,
    learned_dfm,
    linear_products,
    merge_tokens,
    paper_dfm,
    prefill,
    two_mlps,
    vision,
)
from pipeline.bench.counted.published import TABLE_5

__all__ = ["CountedBench", "CountedRow", "CountedStage", "Dropped", "count_questions"]

_TEXT_TOKENS = 90  # system turn, question and template, as in the published prompts
_PIECE = 2048  # tokens of a prefill's piece
_SIZE = 2  # bytes of a number in bfloat16 and in the store


class CountedStage(BaseModel):
    """One stage."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    flops: int
    """Its operations."""
    bytes: int
    """Least bytes it must move."""


class Dropped(BaseModel):
    """The same prompt with visual tokens dropped in deep layers."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    layers: tuple[int, ...]
    """Layers after which tokens are dropped."""
    ratios: tuple[float, ...]
    """Shares of the visual tokens that the groups of layers read."""
    visual_tokens_saved: float
    """Share of visual tokens that layers do not read, the mean over layers."""
    prefill: CountedStage
    """Prefill, the choice of tokens included."""
    cache_bytes: int
    """Bytes of keys and values."""


class CountedRow(BaseModel):
    """One window size."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames that are read."""
    visual_tokens: int
    """Tokens of all frames."""
    prompt_tokens: int
    """Tokens of the whole prompt."""
    stored_bytes: int
    """Bytes that a question reads from the store."""
    cache_bytes: int
    """Bytes of keys and values in bfloat16."""
    ingest: dict[str, CountedStage]
    """Stages of ingest by name."""
    question: dict[str, CountedStage]
    """Stages of the question by name."""
    question_flops: int
    """Operations of a question."""
    whole_flops: int
    """Operations of ingest and one question."""
    dropped: Dropped | None
    """With tokens dropped as the profile says, or else as published; None if the model has too few layers."""
    table5_count: float
    """Tera multiply-adds, counted as table 5 of the ViLAMP paper counts its own model."""
    table5: float | None
    """What that table prints; None where it has no such row."""


class CountedBench(BaseModel):
    """Result: all sizes of one profile."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    reads: str
    """`frames` (DFM) or `clips` (HiCo)."""
    rows: list[CountedRow]
    """One row for each size."""


def count_questions(
    profile: str | Path = "micro", frames: Sequence[int] = (64, 256, 1024, 8192, 10_000)
) -> CountedBench:
    """Count questions of several sizes.

    Args:
        profile: name of the profile, or the path of its TOML file.
        frames: window sizes; all frames are read, and with DFM the profile's K of them are keyframes.

    Raises:
        UsageError: `frames` is empty or has a number below 1, or the profile has no `shape` or no `encoder_shape`.
    """
    chosen = load_profile(profile)
    if not frames or min(frames) < 1:
        raise UsageError("give at least one number of frames, each above 0")
    if chosen.shape is None or chosen.encoder_shape is None:
        raise UsageError(
            f"the profile {chosen.name} has no [shape] or no [encoder_shape] section; add both to count it"
        )
    rows = [_row(chosen, chosen.shape, count) for count in frames]
    return CountedBench(profile=chosen.name, reads="frames" if chosen.hico is None else "clips", rows=rows)


def _row(profile: Profile, shape: ModelShape, frames: int) -> CountedRow:
    tower, passes = _tower(profile, frames)
    one = vision(tower, _SIZE)
    ingest = {"vision": Cost(one.products * passes, 0, one.bytes * passes)}
    projected = frames * shape.patches  # tokens that table 5 counts in the projector
    if profile.hico is not None:
        merged = merge_tokens(tower.tokens, profile.hico.clip_tokens, tower.width, profile.hico.head_width)
        ingest["merging"] = Cost(merged.products * passes, merged.other * passes, merged.bytes * passes)
        visual = frames * profile.hico.frame_tokens
        counts = Counts(merged=visual, before=0, keyframes=0, keyframe_tokens=0)
        question = {"projector": two_mlps(shape, counts, _SIZE)}
    else:
        keyframes, kept = min(profile.k, frames), profile.dfm.keyframe_tokens or _keyframe_tokens(profile, shape)
        visual = keyframes * kept + (frames - keyframes) + int(profile.dfm.image_newline)
        counts = Counts(merged=frames - keyframes, before=0, keyframes=keyframes, keyframe_tokens=kept)
        if profile.dfm.mode == "released":
            dfm, projector = learned_dfm(shape, counts, _SIZE)
        else:
            dfm, projector = paper_dfm(shape, counts), two_mlps(shape, counts, _SIZE)
        question = {"dfm": dfm, "projector": projector}
    prompt = visual + _TEXT_TOKENS
    question["prefill"] = prefill(shape, prompt, _PIECE, _SIZE)
    asked = sum(cost.flops for cost in question.values())
    macs = passes * linear_products(tower) + projected * (shape.patch_dim * shape.width + shape.width**2)
    macs += prompt * _layer_weights(shape) * shape.layers
    return CountedRow(
        frames=frames,
        visual_tokens=visual,
        prompt_tokens=prompt,
        stored_bytes=_SIZE * frames * shape.patches * shape.patch_dim,
        cache_bytes=_cache_bytes(shape, [prompt] * shape.layers),
        ingest={name: _stage(cost) for name, cost in ingest.items()},
        question={name: _stage(cost) for name, cost in question.items()},
        question_flops=asked,
        whole_flops=asked + sum(cost.flops for cost in ingest.values()),
        dropped=_dropped(profile, shape, prompt, visual),
        table5_count=round(macs / 1e12, 1),
        table5=TABLE_5.get(profile.name, {}).get(frames),
    )


def _tower(profile: Profile, frames: int) -> tuple[Tower, int]:
    """The vision tower as one pass sees it, a frame or a clip, and the number of passes."""
    sizes = profile.encoder_shape
    assert sizes is not None
    together = 1 if profile.hico is None else profile.hico.clip_frames
    tower = Tower(
        tokens=together * (sizes.image_size // sizes.patch_size) ** 2,
        patch_values=3 * sizes.patch_size**2,
        width=sizes.width,
        layers=profile.patch_encoder.layer if profile.patch_encoder.layer > 0 else sizes.layers,
        feed_forward=sizes.feed_forward,
    )
    if profile.patch_encoder.kind == "siglip":  # encodes each frame of a clip by itself
        return Tower(tower.tokens // together, *_rest(tower)), frames
    return tower, -(-frames // together)


def _rest(tower: Tower) -> tuple[int, int, int, int]:
    return tower.patch_values, tower.width, tower.layers, tower.feed_forward


def _keyframe_tokens(profile: Profile, shape: ModelShape) -> int:
    """Tokens of a keyframe: all patches, or for published weights a grid of half the side, rounded up."""
    if profile.connector.layout == "two_stream":
        return shape.patches
    half = (isqrt(shape.patches) + 1) // 2
    return half * half


def _dropped(profile: Profile, shape: ModelShape, prompt: int, visual: int) -> Dropped | None:
    spec = profile.language_model.dropping or DroppingSpec()
    if spec.layers[-1] >= shape.layers or visual == 0:
        return None
    lengths = spec.lengths(shape.layers, prompt, visual)
    attended = [end for stage, end in enumerate(spec.layers) if not spec.spaces_evenly(stage)]
    return Dropped(
        layers=spec.layers,
        ratios=spec.ratios,
        visual_tokens_saved=sum(prompt - length for length in lengths) / (visual * shape.layers),
        prefill=_stage(prefill(shape, lengths, _PIECE, _SIZE, attended=attended)),
        cache_bytes=_cache_bytes(shape, lengths),
    )


def _stage(cost: Cost) -> CountedStage:
    return CountedStage(flops=cost.flops, bytes=cost.bytes)


def _layer_weights(shape: ModelShape) -> int:
    """Weights of the linear layers of one layer of the language model."""
    narrow = shape.width // shape.heads * shape.kv_heads
    return 2 * shape.width**2 + 2 * shape.width * narrow + 3 * shape.width * shape.feed_forward


def _cache_bytes(shape: ModelShape, lengths: list[int]) -> int:
    return 2 * _SIZE * shape.width // shape.heads * shape.kv_heads * sum(lengths)
