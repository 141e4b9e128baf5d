"""Preprocessing: frames of any size to a model's input, in one batched path.

open_clip and transformers process one PIL image at a time. Here all frames of one shape pass through one antialiased
resize in torch and are rounded to whole grey levels at the same point, so that the result equals theirs within one or
two grey levels. Does not know models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torch.nn import functional

from index.errors import UsageError, WeightsInvalid, validation_message

__all__ = ["Preprocessing"]

Triple = tuple[float, float, float]
_STACKED_BYTES = 64 * 2**20  # most bytes of frames copied at once
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}


class Preprocessing(BaseModel):
    """Resize, crop, scale to 0…1 and normalise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    height: int = Field(gt=0)
    """Height of the model's input, pixels."""
    width: int = Field(gt=0)
    """Width of the model's input, pixels."""
    resize_mode: Literal["squash", "shortest"]
    """`squash` resizes to height × width; `shortest` resizes the shorter side and crops the centre."""
    interpolation: Literal["bicubic", "bilinear"]
    """Interpolation of the resize, antialiased."""
    mean: Triple
    """Mean of each channel, subtracted after scaling to 0…1."""
    std: Triple
    """Standard deviation of each channel, divided by."""

    @model_validator(mode="after")
    def _square_crop(self) -> Self:
        if self.resize_mode == "shortest" and self.height != self.width:
            raise ValueError("resize_mode shortest needs a square input")
        return self

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any], *, source: str) -> Preprocessing:
        """Read `preprocess_cfg` of a loaded open_clip model; `source` names it in errors.

        Raises:
            WeightsInvalid: a setting is not supported, such as `resize_mode = longest`.
        """
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size[-2:]
        return cls._checked(
            source,
            height=height,
            width=width,
            resize_mode=config.get("resize_mode") or "shortest",
            interpolation=config.get("interpolation") or "bicubic",
            mean=config["mean"],
            std=config["std"],
        )

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any], *, source: str) -> Preprocessing:
        """Read the `preprocessor_config.json` of a SigLIP; `source` names it in errors.

        Raises:
            WeightsInvalid: a setting is not supported.
        """
        size = config.get("size", {})
        if not {"height", "width"} <= size.keys() or not config.get("do_resize", True):
            raise WeightsInvalid(f"{source}: preprocessor_config.json must resize to a height and a width, got {size}")
        if config.get("do_center_crop") or abs(config.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise WeightsInvalid(f"{source}: preprocessor_config.json crops or rescales in a way that is not supported")
        return cls._checked(
            source,
            height=size["height"],
            width=size["width"],
            resize_mode="squash",
            interpolation=_PIL_FILTERS.get(config.get("resample", 3), str(config.get("resample"))),
            mean=config.get("image_mean", (0.5, 0.5, 0.5)),
            std=config.get("image_std", (0.5, 0.5, 0.5)),
        )

    @classmethod
    def _checked(cls, source: str, **values: Any) -> Preprocessing:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise WeightsInvalid(f"{source}: preprocessing: {validation_message(error)}") from None

    def digest(self, **extra: object) -> str:
        """SHA-256 of the settings, and of `extra` (whatever else changes the vectors), as canonical JSON; hex."""
        text = json.dumps({**self.model_dump(mode="json"), **extra}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(self, frames: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
        """Preprocess uint8[H, W, 3] RGB frames of any sizes; float32[n, 3, height, width] on `device`, in their order.

        Raises:
            UsageError: a frame has another shape or dtype.
        """
        result = self._levels(frames, device)
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return result.div_(255).sub_(mean).div_(std)

    def resized(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Frames resized and cropped to the model's input, uint8[n, height, width, 3].

        Preprocessing them again gives the same result as preprocessing the originals.

        Raises:
            UsageError: a frame has another shape or dtype.
        """
        levels = self._levels(frames, torch.device("cpu"))
        return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def _levels(self, frames: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
        """Resized frames, float32[n, 3, height, width] of whole grey levels, 0…255."""
        result = torch.empty(len(frames), 3, self.height, self.width, device=device)
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, frame in enumerate(frames):
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
                raise UsageError(f"frame {i}: expected uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
            shapes.setdefault(frame.shape, []).append(i)
        for shape, same in shapes.items():
            step = max(1, _STACKED_BYTES // math.prod(shape))
            for rows in (same[i : i + step] for i in range(0, len(same), step)):
                stacked = torch.from_numpy(np.stack([frames[i] for i in rows])).to(device)
                result[torch.tensor(rows, device=device)] = self._resize(stacked.permute(0, 3, 1, 2))
        return result

    def _resize(self, pixels: Tensor) -> Tensor:
        """Resize uint8[n, 3, H, W]; float32[n, 3, height, width] of whole grey levels, 0…255."""
        height, width = self.height, self.width
        if self.resize_mode == "shortest":
            height, width = _shortest(pixels.shape[-2], pixels.shape[-1], self.height)
        if pixels.shape[-2:] != (height, width):
            # The CPU has an exact uint8 kernel; CUDA resizes floats, rounded here as the CPU and PIL do.
            wide = pixels if pixels.device.type == "cpu" else pixels.float()
            wide = functional.interpolate(wide, (height, width), mode=self.interpolation, antialias=True)
            pixels = wide if wide.dtype == torch.uint8 else wide.round_().clamp_(0, 255)
        # Rounded down, as the image processors of transformers do it.
        top, left = (height - self.height) // 2, (width - self.width) // 2
        return pixels[..., top : top + self.height, left : left + self.width].float()


def _shortest(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width with the shorter side at `size`, the longer rounded down, as torchvision's Resize does."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size
