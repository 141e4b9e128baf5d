"""Benchmark of the encoders, `sightline bench encoders`: frames a second, from decoded 1080p frames to vectors in
memory.

The encoders run as in ingest, preprocessing and copies included; preprocessing is also measured alone. With random
weights the speed is the same, because it does not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch.utils.flop_counter import FlopCounterMode
from transformers import SiglipConfig, SiglipModel

from index.errors import UsageError
from index.records import EncoderIdentity
from model.encoders.clip import ClipEncoder
from model.encoders.clip_tokens import ClipTokenEncoder, ClipTower, SiglipTower
from model.encoders.encoder import load_encoders, pick_device
from model.encoders.preprocessing import Preprocessing
from model.encoders.siglip import SiglipEncoder
from model.encoders.umt import Umt, UmtTower, umt_preprocessing
from model.profiles.profile import EncoderShape, PatchEncoderSpec, Profile, load_profile
from pipeline.bench.cost import peak_of
from pipeline.bench.model import device_name

__all__ = ["EncodersBench", "bench_encoders", "random_encoders"]

_HEIGHT, _WIDTH = 1080, 1920
_SEED = 7

Pixels = NDArray[np.uint8]


class EncoderRow(BaseModel):
    """One encoder; seconds are medians for all frames."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    encoder: Literal["frame", "patch"]
    """`frame` (CLIP) or `patch` (SigLIP, or an encoder of clips)."""
    name: str
    """Name of the encoder."""
    parameters: int
    """Number of parameters."""
    batch: int
    """Frames in a batch."""
    clip_frames: int = 1
    """Frames that are encoded together; 1 where each frame is encoded by itself."""
    seconds: float
    """Encoding, preprocessing included."""
    preprocessing_seconds: float
    """Preprocessing alone."""
    frames_per_second: float
    """Frames encoded a second."""
    flops_a_frame: float
    """Operations of the matrix products of one frame, counted while the model runs; merging of tokens included."""
    flops_fraction: float | None
    """Operations a second by the device's peak; None where that is not known."""


class EncodersBench(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    weights: Literal["random", "profile"]
    """Whether the weights are random or those of the profile."""
    device: str
    """Name of the device."""
    frames: int
    """Frames that are encoded."""
    height: int = _HEIGHT
    """Height of a frame in pixels."""
    width: int = _WIDTH
    """Width of a frame in pixels."""
    repeats: int
    """Measured runs."""
    rows: list[EncoderRow]
    """One row for each encoder."""


def bench_encoders(
    profile: str = "micro",
    *,
    frames: int = 64,
    random_weights: bool = False,
    device: str | None = None,
    repeats: int = 3,
) -> EncodersBench:
    """Measure both encoders of a profile on the same random frames.

    Args:
        profile: name of the profile, or the path of its TOML file.
        frames: number of random frames.
        random_weights: build the encoders from the profile's `encoder_shape` instead of loading them.
        device: `cpu`, `cuda`, or None to choose.
        repeats: measured runs, after one that warms up.

    Raises:
        UsageError: `frames` or `repeats` is below 1, or the profile has no `encoder_shape`.
        ModelError: the device is not available, or the weights cannot be loaded.
    """
    if frames < 1 or repeats < 1:
        raise UsageError("--frames and --repeats must be at least 1")
    chosen, where = load_profile(profile), pick_device(device)
    if random_weights:
        frame, patch = random_encoders(chosen, where)
    else:
        pair = load_encoders(chosen, str(where))
        frame, patch = pair.frame, pair.patch
    pixels = list(np.random.default_rng(_SEED).integers(0, 256, (frames, _HEIGHT, _WIDTH, 3), np.uint8))
    rows = [
        _row("frame", frame, pixels, chosen.frame_encoder.batch, where, repeats),
        _row("patch", patch, pixels, chosen.patch_encoder.batch, where, repeats),
    ]
    return EncodersBench(
        profile=chosen.name,
        weights="random" if random_weights else "profile",
        device=device_name(where),
        frames=frames,
        repeats=repeats,
        rows=rows,
    )


def _row(
    which: Literal["frame", "patch"], encoder: Any, pixels: list[Pixels], batch: int, device: torch.device, repeats: int
) -> EncoderRow:
    clip_frames = encoder.spec.clip_frames if isinstance(encoder, ClipTokenEncoder) else 1
    batch = max(batch, clip_frames)

    def encode(frames: list[Pixels]) -> None:
        """Encode frames as ingest does."""
        if which == "frame":
            encoder.encode_frames(frames)
        else:
            encoder.encode_frames(frames, np.arange(len(frames)) // clip_frames)

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation is not counted
    try:
        with FlopCounterMode(display=False) as counter:
            encode(pixels[:batch])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    flops = counter.get_total_flops() / len(pixels[:batch])
    seconds = _median(lambda: encode(pixels), device, repeats)

    def prepare() -> None:
        """Preprocess all frames, without encoding them."""
        for i in range(0, len(pixels), batch):
            encoder.preprocessing(pixels[i : i + batch], device)

    peak = peak_of(device_name(device))
    return EncoderRow(
        encoder=which,
        name=encoder.identity.name,
        parameters=sum(p.numel() for p in encoder.model.parameters()),
        batch=batch,
        clip_frames=clip_frames,
        seconds=seconds,
        preprocessing_seconds=_median(prepare, device, repeats),
        frames_per_second=len(pixels) / seconds,
        flops_a_frame=flops,
        flops_fraction=None if peak is None else flops * len(pixels) / seconds / peak.flops,
    )


def _median(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    def timed() -> float:
        """Seconds of one run, with the work of the GPU finished."""
        since = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - since

    timed()
    return float(np.median([timed() for _ in range(repeats)]))


def random_encoders(profile: Profile, device: torch.device) -> tuple[Any, Any]:
    """Build both encoders of `encoder_shape` with random weights."""
    shape = profile.encoder_shape
    if shape is None:
        raise UsageError(f"the profile {profile.name} has no [encoder_shape] section; add one to measure it")
    torch.manual_seed(_SEED)
    clip: Any = open_clip.create_model(shape.frame, device=device)
    clip.eval().requires_grad_(False)
    frame = ClipEncoder(
        clip,
        lambda _: torch.empty(0),
        Preprocessing.from_open_clip(open_clip.get_model_preprocess_cfg(clip), source=shape.frame),
        _identity(profile.frame_encoder.name, int(clip.visual.output_dim)),
        profile.frame_encoder.batch,
    )
    patch = profile.patch_encoder
    tower: ClipTower
    if patch.kind == "umt":
        with torch.device(device):
            umt = Umt(shape).eval().requires_grad_(False)
        tower = UmtTower(umt, umt_preprocessing(shape.image_size), _identity(patch.name, shape.width), patch.batch)
    else:
        siglip = _random_siglip(patch, shape, device)
        if profile.hico is None:
            return frame, siglip
        tower = SiglipTower(siglip)
    assert profile.hico is not None  # for the type checker: a profile of kind umt has it
    return frame, ClipTokenEncoder(tower, profile.hico)


def _random_siglip(spec: PatchEncoderSpec, shape: EncoderShape, device: torch.device) -> SiglipEncoder:
    """A SigLIP with random weights; its text tower is minimal, because only frames are encoded."""
    vision = {
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
    }
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device(device):
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval().requires_grad_(False)
    half = (0.5, 0.5, 0.5)
    squash = Preprocessing(
        height=shape.image_size,
        width=shape.image_size,
        resize_mode="squash",
        interpolation="bicubic",
        mean=half,
        std=half,
    )
    return SiglipEncoder(model, lambda _: torch.empty(0), squash, _identity(spec.name, shape.width), spec)


def _identity(name: str, dimension: int) -> EncoderIdentity:
    """The identity of an encoder with random weights."""
    return EncoderIdentity(
        name=name, revision="random", weights_digest="", preprocessing_digest="", dimension=dimension
    )
