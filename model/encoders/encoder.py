"""The interfaces of the two encoders, and their loading: CLIP for keyframes and search, SigLIP or UMT for patches.

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

    def frame_features(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embeddings of frames as the image tower gives them, float32[n, Df], not of unit norm. Raises as
        `encode_frames`."""

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Df] of unit norm; a text longer than the model reads is truncated."""

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts as the text tower gives them, float32[n, Df], not of unit norm; the learned merger needs
        them."""

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the encoder does not know, in their order, each once."""


class PatchEncoder(Protocol):
    """An encoder with M patch vectors and one pooled vector for each frame, all comparable with the vector of a text
    where the encoder has a text tower.

    An encoder of clips reads the frames of a clip together and gives each M of the clip's tokens (see
    `model.encoders.clip_tokens`).
    """

    @property
    def identity(self) -> EncoderIdentity:
        """The identity that is stored beside the vectors."""

    @property
    def patches(self) -> int:
        """Number of patches of one frame, M."""

    def encode_frames(
        self, frames: Sequence[NDArray[np.uint8]], clips: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Pooled vectors float32[n, Dp] of unit norm, and patches float16[n, M, Dp], of uint8[H, W, 3] RGB frames.

        Args:
            frames: the frames.
            clips: the clip of each frame, int64[n] (see `model.encoders.clips`); None if each is a clip of its own. An
                encoder of single frames ignores it.

        Raises:
            UsageError: a frame has another shape or dtype, or a clip has more frames than the encoder reads.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Dp] of unit norm; a text longer than the model reads is truncated.

        Raises:
            UsageError: the encoder has no text tower.
        """


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoders of one profile."""

    frame: FrameEncoder
    """The encoder of keyframe selection and search."""
    patch: PatchEncoder
    """The encoder of DFM and of the prompt."""
    pair: EncoderPair
    """The identities of both, M, and the frames of a clip, as a store keeps them."""


def load_encoders(profile: Profile, device: str | None = None) -> Encoders:
    """Load both encoders of `profile` on `device` (see `pick_device`).

    Raises:
        WeightsNotFound: the weights are not in the profile's folder, nor in the cache, and cannot be downloaded.
        WeightsInvalid: a checkpoint does not fit.
        ModelError: `device` is invalid or not available.
    """
    from model.encoders.clip import load_clip
    from model.encoders.clip_tokens import load_patch_encoder

    chosen = pick_device(device)
    frame = load_clip(profile.frame_encoder, chosen)
    patch = load_patch_encoder(profile, chosen)
    clip_frames = 1 if profile.hico is None else profile.hico.clip_frames
    pair = EncoderPair(frame=frame.identity, patch=patch.identity, patches=patch.patches, clip_frames=clip_frames)
    return Encoders(frame, patch, pair)


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
