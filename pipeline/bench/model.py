"""Benchmark of the model, `sightline bench model`: seconds, memory, FLOPs and bytes of a question by stage and window
size.

With random weights no checkpoint is needed: the sizes are in the profile, the model is built on the device, and speed
does not depend on the weights. Patches are random too; they come from a file whose pages are dropped from the system's
cache where the system allows it.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from transformers import Qwen2Config

from index.errors import BudgetExceeded, UsageError
from index.records import EncoderIdentity
from model.answerer import load_answerer
from model.checkpoints.vilamp import VilampConfig
from model.encoders.encoder import load_encoders, pick_device
from model.language.kv_cache import cache_bytes
from model.language.qwen2 import build_qwen2
from model.language.transformers_engine import PREFILL_TOKENS, TransformersLanguage
from model.profiles.profile import DroppingSpec, load_profile
from model.read_ahead import ReadAhead, chunk_rows
from model.stage_clock import StageClock
from model.visual.connector import AnyConnector, Connector, ReleasedConnector
from model.visual.interface import Frames, PromptPart
from model.visual.tokens import build_visual
from pipeline.bench.cost import Cost, Counts, learned_dfm, paper_dfm, peak_of, prefill, two_mlps

if TYPE_CHECKING:
    from model.encoders.encoder import Encoders
    from model.profiles.profile import ModelShape, Profile
    from model.visual.interface import Visual

__all__ = ["ModelBench", "ModelRow", "Stage", "bench_model"]

_REPEATS = 3
_TEXT_TOKENS = 90  # system turn, question and template, as in the published prompts
_BLOCK_FRAMES = 16  # written repeatedly
_SEED = 7


class Stage(BaseModel):
    """One stage; seconds are medians."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seconds: float
    """Seconds of the stage."""
    flops: int
    """Its operations."""
    bytes: int
    """Least bytes it must move."""
    flops_fraction: float | None
    """Operations a second by the device's peak; None where that is not known."""
    bandwidth_fraction: float | None
    """Bytes a second by the device's memory bandwidth; None where that is not known."""


class ModelRow(BaseModel):
    """One window size."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames of the question."""
    keyframes: int
    """Keyframes among them."""
    visual_tokens: int
    """Tokens of all frames."""
    prompt_tokens: int
    """Tokens of the whole prompt."""
    patch_bytes: int
    """Bytes of patches that are read."""
    cache_bytes: int
    """Bytes of the language model's keys and values."""
    stages: dict[str, Stage] = {}
    """Stages by name. Patches are read ahead of their use: `patch_load` is the time spent waiting for them."""
    first_token_seconds: float | None = None
    """Seconds from the first byte read to the first token."""
    resident_seconds: float | None = None
    """The same without waiting for patches: the time if they come fast enough."""
    flops: int = 0
    """Operations of all stages."""
    flops_fraction: float | None = None
    """Operations a second by the device's peak; None where that is not known."""
    peak_memory_bytes: int | None = None
    """Peak memory, as `memory_is` of the result describes."""
    refused: str | None = None
    """Why the size was not measured; None if it was."""


class ModelBench(BaseModel):
    """Result of the benchmark: all sizes of one profile on one device."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    dfm: str
    """Mode of DFM; `clips` for a profile that reads clips."""
    dropping: DroppingSpec | None = None
    """Dropping of visual tokens in deep layers."""
    stored_lengths: bool
    """Whether lengths of patches count as stored at ingest."""
    weights: Literal["random", "profile"]
    """Whether the weights are random or those of the profile."""
    parameters: int
    """Parameters of the language model."""
    dtype: str
    """Data type of the weights."""
    device: str
    """Name of the device."""
    device_kind: str
    """`CPU` or `CUDA`."""
    peak_flops: float | None
    """Peak operations a second of the device, if known."""
    peak_bandwidth: float | None
    """Memory bandwidth of the device in bytes a second, if known."""
    memory_is: str
    """What `peak_memory_bytes` measures, in words."""
    patches_from: str
    """Where patches are read from, in words."""
    repeats: int
    """Measured runs of each size."""
    rows: list[ModelRow]
    """One row for each size."""


@dataclass(frozen=True, slots=True)
class _Bench:
    profile: Profile
    shape: ModelShape
    visual: Visual
    language: TransformersLanguage
    stored: bool

    def row(self, folder: Path, frames: int, repeats: int) -> ModelRow:
        """Measure one window size, with the patches in `folder`."""

        shape, language, device = self.shape, self.language, self.language.device
        keyframe = np.zeros(frames, bool)
        keyframe[np.linspace(0, frames, min(self.profile.k, frames), endpoint=False).astype(int)] = True
        keyframe = np.roll(keyframe, frames // (2 * self.profile.k + 1))  # a few frames come before the first keyframe
        keyframes = int(keyframe.sum())
        visual = self.visual.count(keyframes, frames)
        stamps = 4 * keyframes if self.profile.timestamps else 0
        prompt = _TEXT_TOKENS + visual + stamps
        lengths = (
            [prompt] * shape.layers if self._dropping is None else self._dropping.lengths(shape.layers, prompt, visual)
        )
        row = ModelRow(
            frames=frames,
            keyframes=keyframes,
            visual_tokens=visual,
            prompt_tokens=prompt,
            patch_bytes=2 * frames * shape.patches * shape.patch_dim,
            cache_bytes=cache_bytes(language.model.config, [length + 1 for length in lengths], language.dtype),
        )
        if prompt >= language.max_context:
            row.refused = f"{prompt} tokens and the answer do not fit into {language.max_context}"
            return row
        runs: list[tuple[dict[str, float], float]] = []
        try:
            for repeat in range(repeats + 1):  # the first warms up
                _drop_pages(folder / "patches.f16")
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(device)
                timed = self._question(folder, keyframe)
                if repeat:
                    runs.append(timed)
        except BudgetExceeded as error:
            row.refused = str(error)
            return row
        counts = Counts(
            merged=frames - keyframes,
            before=int(np.argmax(keyframe)),
            keyframes=keyframes,
            keyframe_tokens=self.visual.keyframe_tokens,
        )
        peak = peak_of(device_name(device))
        for name, cost in self._costs(counts, lengths).items():
            seconds = float(np.median([stages.get(name, 0.0) for stages, _ in runs]))
            flops, moved = (None, None) if peak is None or seconds == 0 else (peak.flops, peak.bandwidth)
            row.stages[name] = Stage(
                seconds=seconds,
                flops=cost.flops,
                bytes=cost.bytes,
                flops_fraction=None if flops is None else cost.flops / seconds / flops,
                bandwidth_fraction=None if moved is None or name == "patch_load" else cost.bytes / seconds / moved,
            )
        row.first_token_seconds = float(np.median([whole for _, whole in runs]))
        row.resident_seconds = float(np.median([whole - stages["patch_load"] for stages, whole in runs]))
        row.flops = sum(stage.flops for stage in row.stages.values())
        row.flops_fraction = None if peak is None else row.flops / row.first_token_seconds / peak.flops
        row.peak_memory_bytes = _peak_memory(device)
        return row

    @property
    def _dropping(self) -> DroppingSpec | None:
        return self.profile.language_model.dropping

    def _costs(self, counts: Counts, lengths: list[int]) -> dict[str, Cost]:
        size = self.language.dtype.itemsize
        loaded = 2 * (counts.merged + counts.keyframes) * self.shape.patches * self.shape.patch_dim
        if self.profile.hico is not None:
            rows = (counts.merged + counts.keyframes) * self.shape.patches
            tokens = Counts(merged=rows, before=0, keyframes=0, keyframe_tokens=0)
            read = {"projector": two_mlps(self.shape, tokens, size)}
        elif self.profile.dfm.mode == "released":
            dfm, projector = learned_dfm(self.shape, counts, size, stored=self.stored)
            read = {"dfm": dfm, "projector": projector}
        else:
            read = {"dfm": paper_dfm(self.shape, counts), "projector": two_mlps(self.shape, counts, size)}
        stages = [] if self._dropping is None else list(enumerate(self._dropping.layers))
        attended = [end for stage, end in stages if self._dropping and not self._dropping.spaces_evenly(stage)]
        return {
            "patch_load": Cost(0, 0, loaded),
            **read,
            "prefill": prefill(self.shape, lengths, PREFILL_TOKENS, size, attended=attended),
        }

    def _question(self, folder: Path, keyframe: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[dict[str, float], float]:
        """Seconds by stage, and from the first byte to the first token."""

        language = self.language
        clock = StageClock(language.device)
        text = torch.randint(0, self.shape.vocabulary, (_TEXT_TOKENS,), generator=torch.Generator().manual_seed(1))
        words: list[int] = text.tolist()
        shape, device = (self.shape.patches, self.shape.patch_dim), language.device
        chunk = chunk_rows(device, *shape)
        began = clock.now()
        with torch.inference_mode(), (folder / "patches.f16").open("rb", buffering=0) as file:
            with ReadAhead(_reader(file), total=len(keyframe), chunk=chunk, shape=shape, device=device) as ahead:

                def read(rows: slice) -> torch.Tensor:
                    with clock.stage("patch_load"):
                        return ahead(rows)

                frames = Frames(
                    keyframe=keyframe,
                    stream_index=np.zeros(len(keyframe), np.int32),
                    captured_at=np.arange(len(keyframe), dtype=np.int64),
                    read=read,
                    chunk=chunk,
                    read_norms=self._norms if self.stored else None,
                )
                parts = [PromptPart(language.embed(words[:30]), visual=False), *self._pieces(frames, clock)]
                parts.append(PromptPart(language.embed(words[30:]), visual=False))
            embeddings = torch.cat([part.embeddings for part in parts])
            mask = torch.cat([torch.full((len(part.embeddings),), part.visual) for part in parts])
            del parts
            with clock.stage("prefill"):
                prompt = language.prefill(embeddings, room=1, visual=mask)
                int(prompt.logits.argmax())
        return clock.seconds, clock.now() - began

    def _pieces(self, frames: Frames, clock: StageClock) -> Iterator[PromptPart]:
        language = self.language
        stamp = (lambda _: language.embed([1, 2, 3, 4])) if self.profile.timestamps else None
        query = self.visual.query("What happened?")
        for piece in self.visual.embeddings(frames, query, stamp, clock.stage):
            yield replace(piece, embeddings=piece.embeddings.to(language.device, language.dtype))

    def _norms(self, rows: slice) -> torch.Tensor:
        """Stand-in for the lengths that a store would give: any numbers above 0."""
        return torch.ones(rows.stop - rows.start, self.shape.patches, 2, device=self.language.device)


def _reader(file: Any) -> Callable[[slice, np.ndarray[Any, np.dtype[np.float16]]], None]:
    """Return a function that reads patches from the file, one chunk after the other."""

    def read(_: slice, out: np.ndarray[Any, np.dtype[np.float16]]) -> None:
        left = memoryview(cast("bytes", out)).cast("B")
        while len(left):
            got = file.readinto(left)
            if not got:
                raise UsageError("the file of patches ended early; is the disk full?")
            left = left[got:]

    return read


class _NoEncoder:
    """Stand-in for an encoder: the widths that `build_visual` needs, without weights."""

    def __init__(self, patches: int, dimension: int) -> None:
        self.patches = patches
        self.identity = EncoderIdentity(
            name="random", revision="none", weights_digest="none", preprocessing_digest="none", dimension=dimension
        )

    def encode_text(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return random vectors."""
        rows = np.random.default_rng(_SEED).standard_normal((len(texts), self.identity.dimension))
        unit: np.ndarray[Any, np.dtype[np.float32]] = rows.astype(np.float32)
        return unit

    text_features = encode_text


def bench_model(
    profile: str = "micro",
    frames: Sequence[int] = (64, 256, 1024, 8192, 10_000),
    *,
    random_weights: bool = False,
    stored_lengths: bool = False,
    device: str | None = None,
    repeats: int = _REPEATS,
    dropping: bool | None = None,
) -> ModelBench:
    """Measure a profile's model over windows of several sizes.

    Args:
        profile: name of the profile, or the path of its TOML file.
        frames: window sizes; each has the profile's K keyframes, evenly spaced.
        random_weights: build the model from the profile's `shape` instead of loading it.
        stored_lengths: measure as if ingest had stored the lengths that the learned merger needs of every patch.
        device: `cpu`, `cuda`, …; CUDA if available when None.
        repeats: measured runs of each size, after one that warms up; medians are reported.
        dropping: drop visual tokens in deep layers, as published unless the profile says how, or never; None for what
            the profile does.

    Raises:
        UsageError: `frames` is empty or has a number below 1, the profile has no `shape`, or the disk is too small for
            the patches.
        ModelError: the device is not available, or the weights cannot be loaded.
    """
    chosen = load_profile(profile)
    if dropping is not None:
        stages = (chosen.language_model.dropping or DroppingSpec()) if dropping else None
        language_model = chosen.language_model.model_copy(update={"dropping": stages})
        chosen = chosen.model_copy(update={"language_model": language_model})
    if not frames or min(frames) < 1:
        raise UsageError("give at least one number of frames, each above 0")
    if chosen.shape is None:
        raise UsageError(f"the profile {chosen.name} has no [shape] section; add one to measure it")
    where = pick_device(device)
    if stored_lengths and chosen.dfm.mode != "released":
        raise UsageError(f"--stored-lengths needs the learned merger; {chosen.name} merges in paper mode")
    visual, language = random_model(chosen, where) if random_weights else _real_model(chosen, where)
    bench = _Bench(chosen, chosen.shape, visual, language, stored_lengths)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        dropped = _write_patches(Path(name), max(frames), chosen.shape)
        rows = [bench.row(Path(name), count, repeats) for count in frames]
    peak = peak_of(device_name(where))
    return ModelBench(
        profile=chosen.name,
        dfm=chosen.dfm.mode if chosen.hico is None else "clips",
        dropping=chosen.language_model.dropping,
        stored_lengths=stored_lengths,
        weights="random" if random_weights else "profile",
        parameters=sum(p.numel() for p in language.model.parameters()),
        dtype=str(language.dtype).removeprefix("torch."),
        device=device_name(where),
        device_kind="CUDA" if where.type == "cuda" else "CPU",
        peak_flops=None if peak is None else peak.flops,
        peak_bandwidth=None if peak is None else peak.bandwidth,
        memory_is="most bytes torch allocated on the device"
        if where.type == "cuda"
        else "largest resident set of the process so far",
        patches_from="a plain file, its pages dropped from the cache before every run"
        if dropped
        else "a plain file, perhaps from the system's cache",
        repeats=repeats,
        rows=rows,
    )


def random_model(profile: Profile, device: torch.device) -> tuple[Visual, TransformersLanguage]:
    """Build connector and language model of the profile's `shape` on `device` (which may be `meta`).

    On CUDA they have the profile's dtype, elsewhere float32.
    """
    shape = profile.shape
    assert shape is not None
    dtype = getattr(torch, profile.language_model.dtype) if device.type == "cuda" else torch.float32
    sizes: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": shape.tied,
    }
    torch.manual_seed(_SEED)
    model = build_qwen2(Qwen2Config(**sizes), device, dtype).requires_grad_(False)
    connector: AnyConnector
    with torch.device(device):
        if profile.dfm.mode == "released":
            config = VilampConfig(
                model_type="llava_qwen",
                rms_norm_eps=1e-6,
                mm_hidden_size=shape.patch_dim,
                mm_projector_type="mlp2x_gelu",
                mm_spatial_pool_mode="bilinear",
                composer_type="sig_pooling",
                **sizes,
            )
            connector = ReleasedConnector(config, shape.query_dim)
        else:
            connector = Connector(shape.patch_dim, shape.width, newline=profile.dfm.image_newline)
    connector.to(dtype).requires_grad_(False)
    patch, frame = _NoEncoder(shape.patches, shape.patch_dim), _NoEncoder(0, shape.query_dim)
    visual = build_visual(profile, cast("Encoders", _Pair(frame, patch)), connector)
    spec = profile.language_model
    return visual, TransformersLanguage(model, None, max_context=spec.max_context, dropping=spec.dropping)


@dataclass(frozen=True, slots=True)
class _Pair:
    frame: _NoEncoder
    patch: _NoEncoder


def _real_model(profile: Profile, device: torch.device) -> tuple[Visual, TransformersLanguage]:
    answerer = load_answerer(profile, load_encoders(profile, str(device)), str(device))
    if not isinstance(answerer.language, TransformersLanguage):
        raise UsageError("the benchmark measures the transformers engine; set engine to transformers in the profile")
    return answerer.visual, answerer.language


def _write_patches(folder: Path, frames: int, shape: ModelShape) -> bool:
    """Write a file of random float16 patches. Returns whether its pages can be dropped from the cache."""
    path, frame_bytes = folder / "patches.f16", 2 * shape.patches * shape.patch_dim
    free = shutil.disk_usage(folder).free
    if frames * frame_bytes > free - 2**30:
        raise UsageError(
            f"{frames} frames of patches need {frames * frame_bytes / 2**30:.1f} GiB in {folder.parent}, "
            f"{free / 2**30:.1f} GiB are free there; set TMPDIR to a larger disk"
        )
    rng = np.random.default_rng(_SEED)
    block = rng.standard_normal((_BLOCK_FRAMES, shape.patches, shape.patch_dim), np.float32).astype(np.float16)
    with path.open("wb") as file:
        for first in range(0, frames, _BLOCK_FRAMES):
            file.write(block[: frames - first].tobytes())
        file.flush()
        os.fsync(file.fileno())
    return _drop_pages(path)


def _drop_pages(path: Path) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def device_name(device: torch.device) -> str:
    """Return the name of a device: that of its driver, or `CPU` with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
