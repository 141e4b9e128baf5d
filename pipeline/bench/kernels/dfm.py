"""Benchmark of DFM, `sightline bench dfm`: the kernel and plain torch on the same patches of one device.

    error     of both against float64, on the first frames
    seconds   of both, alternating, so that what else runs on the machine meets both
    limit     memory: the patches must be read once; `bandwidth_fraction` is how near that is

Random patches of a profile's sizes serve, because the work does not depend on their values. Without a GPU only plain
torch is measured. Does not know where patches come from: they are in the device's memory before the time starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from index.errors import UsageError
from model.encoders.encoder import pick_device
from model.profiles.profile import load_profile
from model.stage_clock import StageClock
from model.visual.dfm import Merge, checked_kernel, merge, merge_plain
from pipeline.bench.cost import Counts, paper_dfm, peak_of
from pipeline.bench.model import device_name

__all__ = ["DfmBench", "DfmRow", "bench_dfm"]

_REPEATS = 15
_COMPARED = 64  # frames that are computed in float64 too
_SEED = 7


class DfmRow(BaseModel):
    """Frames that share one keyframe, merged at once; seconds are medians."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    frames: int
    """Frames merged."""
    bytes: int
    """Least bytes to move: patches, keyframe and tokens once."""
    plain_seconds: float
    """Seconds in plain torch."""
    kernel_seconds: float | None = None
    """Seconds of the kernel; None where it does not run."""
    ratio: float | None = None
    """Seconds of plain torch by those of the kernel."""
    plain_bandwidth_fraction: float | None = None
    """`bytes` a second of plain torch by the device's memory bandwidth; None where that is not known."""
    kernel_bandwidth_fraction: float | None = None
    """The same of the kernel."""
    plain_error: float
    """Largest difference of plain torch from float64."""
    kernel_error: float | None = None
    """Largest difference of the kernel from float64."""


class DfmBench(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile that gave the sizes."""
    patches: int
    """Patches of a frame, M."""
    dimension: int
    """Dimensions of a patch, d."""
    dtype: str
    """Data type of the patches."""
    device: str
    """Name of the device."""
    kernel: bool
    """Whether the kernel runs on it."""
    peak_bandwidth: float | None
    """Memory bandwidth of the device in bytes a second, if known."""
    rows: list[DfmRow]
    """One row for each number of frames."""


def bench_dfm(
    profile: str = "vilamp", frames: Sequence[int] = (1, 32, 312, 1024, 10_000), *, device: str | None = None
) -> DfmBench:
    """Measure DFM with the kernel and in plain torch.

    Args:
        profile: name of the profile, or the path of its TOML file; only its `shape` is used.
        frames: numbers of frames that share a keyframe; 312 follow each of 32 keyframes among 10,000 frames.
        device: `cpu`, `cuda`, …; CUDA if available when None.

    Raises:
        UsageError: `frames` is empty or has a number below 1, or the profile has no `shape`.
        ModelError: the device is not available.
    """
    chosen = load_profile(profile)
    if not frames or min(frames) < 1:
        raise UsageError("give at least one number of frames, each above 0")
    if chosen.shape is None:
        raise UsageError(f"the profile {chosen.name} has no [shape] section; add one to measure it")
    where, shape = pick_device(device), chosen.shape
    dtype = torch.float16  # as stored
    has_kernel = where.type == "cuda" and checked_kernel(where) is not None
    peak = peak_of(device_name(where))
    generator = torch.Generator(where).manual_seed(_SEED)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=where, dtype=dtype, generator=generator)

    reference, query = random(shape.patches, shape.patch_dim), random(shape.patch_dim)
    ways: dict[str, Merge] = {"plain": merge_plain, **({"kernel": merge} if has_kernel else {})}
    rows = list[DfmRow]()
    for count in frames:
        patches = random(count, shape.patches, shape.patch_dim)
        exact = merge_plain(patches[:_COMPARED].double(), reference, query)
        with torch.inference_mode():
            merged = {name: way(patches, reference, query)[:_COMPARED] for name, way in ways.items()}
            errors = {name: float((tokens.double() - exact).abs().max()) for name, tokens in merged.items()}
            seconds = _alternating(ways, (patches, reference, query))
        moved = paper_dfm(shape, Counts(merged=count, before=0, keyframes=1, keyframe_tokens=0)).bytes
        shares = {name: None if peak is None else moved / took / peak.bandwidth for name, took in seconds.items()}
        kernel = seconds.get("kernel")
        rows.append(
            DfmRow(
                frames=count,
                bytes=moved,
                plain_seconds=seconds["plain"],
                kernel_seconds=kernel,
                ratio=None if kernel is None else seconds["plain"] / kernel,
                plain_bandwidth_fraction=shares["plain"],
                kernel_bandwidth_fraction=shares.get("kernel"),
                plain_error=errors["plain"],
                kernel_error=errors.get("kernel"),
            )
        )
        del patches
    return DfmBench(
        profile=chosen.name,
        patches=shape.patches,
        dimension=shape.patch_dim,
        dtype=str(dtype).removeprefix("torch."),
        device=device_name(where),
        kernel=has_kernel,
        peak_bandwidth=None if peak is None else peak.bandwidth,
        rows=rows,
    )


def _alternating(ways: dict[str, Merge], arguments: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Median seconds of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_REPEATS):
        for name, way in ways.items():
            clock = StageClock(arguments[0].device)
            with clock.stage(name):
                way(*arguments)
            seconds[name].append(clock.seconds[name])
    return {name: float(np.median(taken)) for name, taken in seconds.items()}
