"""The interfaces of the two encoders, and their loading: CLIP for keyframes and search, SigLIP for patches.

Both turn frames and texts into numpy arrays and have the identity that is stored beside their vectors. Imports torch
only when encoders are loaded. Does not know streams, stores or language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import ModelError
from index.records import EncoderIdentity, EncoderPair
from model.profiles.profile import Profile

if TYPE_CHECKING:
    import torch

__all__ = ["Encoders", "FrameEncoder", "PatchEncoder", "load_encoders", "pick_device"]


class FrameEncoder(Protocol):
    """An encoder with one vector for each frame, comparable with the vector of a text."""

    @property
    def identity(self) -> EncoderIdentity:
        """The identity that is stored beside the vectors."""

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Vectors of uint8[H, W, 3] RGB frames of any sizes, float32[n, Df] of unit norm.

        Raises:
            UsageError: a frame has another shape or dtype.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Df] of unit norm; a text longer than the model reads is truncated."""

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts as the text tower gives them, float32[n, Df], not of unit norm; the learned merger needs
        them."""

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the encoder does not know, in their order, each once."""


class PatchEncoder(Protocol):
    """An encoder with M patch vectors and one pooled vector for each frame, all comparable with the vector of a
    text."""

    @property
    def identity(self) -> EncoderIdentity:
        """The identity that is stored beside the vectors."""

    @property
    def patches(self) -> int:
        """Number of patches of one frame, M."""

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Pooled vectors float32[n, Dp] of unit norm, and patches float16[n, M, Dp], of uint8[H, W, 3] RGB frames.

        Raises:
            UsageError: a frame has another shape or dtype.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Dp] of unit norm; a text longer than the model reads is truncated."""


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoders of one profile."""

    frame: FrameEncoder
    """The encoder of keyframe selection and search."""
    patch: PatchEncoder
    """The encoder of DFM and of the prompt."""
    pair: EncoderPair
    """The identities of both and M, as a store keeps them."""


def load_encoders(profile: Profile, device: str | None = None) -> Encoders:
    """Load both encoders of `profile` on `device` (see `pick_device`).

    Raises:
        WeightsNotFound: the weights are not in the profile's folder, nor in the cache, and cannot be downloaded.
        WeightsInvalid: a checkpoint does not fit.
        ModelError: `device` is invalid or not available.
    """
    from model.encoders.clip import load_clip
    from model.encoders.siglip import load_siglip

    chosen = pick_device(device)
    frame = load_clip(profile.frame_encoder, chosen)
    patch = load_siglip(profile.patch_encoder, chosen)
    return Encoders(frame, patch, EncoderPair(frame=frame.identity, patch=patch.identity, patches=patch.patches))


def pick_device(device: str | None = None) -> torch.device:
    """A torch device: `device` (`cpu`, `cuda`, `cuda:1`), or if None the first CUDA device, or the CPU without one.

    Raises:
        ModelError: `device` is invalid, or this machine has no such CUDA device.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f"{device!r} is not a device; give cpu, cuda or cuda:0") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"{device} was asked for, this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return chosen
