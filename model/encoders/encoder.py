"""The two encoders behind one small protocol: CLIP for keyframes and search, SigLIP for patches.

Both turn frames and texts into numpy arrays and carry the identity that is stored beside their vectors. Nothing here
knows of streams, stores or language models.
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
    """One vector a frame, comparable with the vector of a text."""

    @property
    def identity(self) -> EncoderIdentity: ...

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """uint8[H, W, 3] RGB frames of any sizes → float32[n, Df] of unit norm.

        Raises:
            UsageError: a frame of another shape or dtype.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → float32[n, Df] of unit norm; a text longer than the model reads is cut at its end."""

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `encode_text`, but as the text tower gives them, not of unit norm (the learned merger wants it so)."""


class PatchEncoder(Protocol):
    """M patch vectors and one pooled vector a frame; the pooled one is comparable with the vector of a text."""

    @property
    def identity(self) -> EncoderIdentity: ...

    @property
    def patches(self) -> int:
        """M, the patches of one frame."""

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """uint8[H, W, 3] RGB frames → pooled float32[n, Dp] of unit norm and patches float16[n, M, Dp].

        Raises:
            UsageError: a frame of another shape or dtype.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → float32[n, Dp] of unit norm; a text longer than the model reads is cut at its end."""


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoders of one profile and, as `pair`, what a store remembers of them."""

    frame: FrameEncoder
    patch: PatchEncoder
    pair: EncoderPair


def load_encoders(profile: Profile, device: str | None = None) -> Encoders:
    """Both encoders of `profile`, on `device` (`cpu`, `cuda`, `cuda:1`; the first CUDA device when there is one).

    Raises:
        WeightsNotFound: weights are neither in the folder the profile names, nor cached, nor can they be fetched.
        WeightsInvalid: a checkpoint that does not fit.
        ModelError: CUDA was asked for and is not there.
    """
    from model.encoders.clip import load_clip
    from model.encoders.siglip import load_siglip

    where = pick_device(device)
    frame = load_clip(profile.frame_encoder, where)
    patch = load_siglip(profile.patch_encoder, where)
    return Encoders(frame, patch, EncoderPair(frame=frame.identity, patch=patch.identity, patches=patch.patches))


def pick_device(device: str | None = None) -> torch.device:
    """The device asked for, else CUDA when there is one, else the CPU.

    Raises:
        ModelError: not a device, or CUDA without a GPU.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ModelError(f"{device!r} is not a device; give cpu, cuda or cuda:0") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"{device} was asked for, this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return where
