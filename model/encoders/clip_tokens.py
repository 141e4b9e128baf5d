"""The encoder of clips: the frames of a clip become C tokens, of which each frame keeps its share.

    frames ─tower─▶ F·M' tokens a clip ─ToMe─▶ C tokens, spread over the clip's F frames in order: M = C/F rows each

The towers are UMT (`model.encoders.umt`), which reads the frames of a clip together, and SigLIP, which reads each by
itself. The tokens do not depend on a question, so ingest computes them and a store keeps them as a frame's patches. To
which frame of its clip a token belongs is bookkeeping: merging mixes the frames. Knows frames and clip numbers, no
capture times and no stores.

Source: VideoChat-Flash (2501.00574), clip-level compression; with SigLIP, an ablation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.errors import UsageError, WeightsInvalid
from index.records import EncoderIdentity
from model.encoders.clips import clip_batches
from model.encoders.preprocessing import Preprocessing
from model.encoders.pretrained import half_patches, unit_vectors
from model.encoders.siglip import SiglipEncoder, load_siglip
from model.encoders.tome import merge_tokens
from model.encoders.umt import load_umt
from model.profiles.profile import HicoSpec, Profile

__all__ = ["ClipTokenEncoder", "ClipTower", "SiglipTower", "load_patch_encoder"]


class ClipTower(Protocol):
    """What a clip's tokens come from, before they are merged."""

    @property
    def model(self) -> torch.nn.Module:
        """The module with the weights."""

    @property
    def identity(self) -> EncoderIdentity:
        """The identity of the tower, without what merging adds to it."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Turns frames into pixels."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def batch(self) -> int:
        """Most frames encoded at once."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame before merging, M'."""

    def clip_features(self, pixels: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Features of clips.

        Args:
            pixels: preprocessed frames, float32[n, 3, height, width].
            clips: the rows of `pixels` that make each clip, int64[c, F].

        Returns:
            A pooled feature of each frame [n, Dp], not of unit norm, and the clips' tokens [c, F·M', Dp], both float32.
        """

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Dp] of unit norm, comparable with pooled features.

        Raises:
            UsageError: the tower has no text tower beside it.
        """


class SiglipTower:
    """A `ClipTower` of a SigLIP: the tokens of a clip are the patches of its frames, one frame after another."""

    def __init__(self, siglip: SiglipEncoder) -> None:
        self._siglip = siglip
        self.model: torch.nn.Module = siglip.model
        self.identity, self.preprocessing = siglip.identity, siglip.preprocessing
        self.device, self.batch, self.frame_tokens = siglip.device, siglip.batch, siglip.patches

    def clip_features(self, pixels: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        """See `ClipTower.clip_features`; the pooled feature is SigLIP's own."""
        pooled, patches = self._siglip.features(pixels)
        return pooled, patches[clips].flatten(1, 2)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Dp] of unit norm; a text longer than the model reads is truncated."""
        return self._siglip.encode_text(texts)


class ClipTokenEncoder:
    """A `model.encoders.encoder.PatchEncoder` of clips.

    A clip of n < F frames, where footage has a gap or ends, is filled up with copies of its last frame, and merged to
    n·C/F tokens, so that every frame has as many rows.

    Args:
        tower: gives a clip's tokens before they are merged.
        spec: the profile's numbers.

    Raises:
        WeightsInvalid: the tower has fewer tokens than the profile asks for, or its width is not a multiple of
            `head_width`.
    """

    def __init__(self, tower: ClipTower, spec: HicoSpec) -> None:
        width, name = tower.identity.dimension, tower.identity.name
        if tower.frame_tokens < spec.frame_tokens:
            raise WeightsInvalid(
                f"patch encoder {name}: has {tower.frame_tokens} tokens a frame, the profile merges to "
                f"{spec.frame_tokens}; lower hico.clip_tokens"
            )
        if width % spec.head_width:
            raise WeightsInvalid(
                f"patch encoder {name}: hico.head_width {spec.head_width} does not divide its width {width}; change it"
            )
        self.tower, self.spec = tower, spec
        self.identity = tower.identity.model_copy(
            update={"preprocessing_digest": _digest(tower.identity.preprocessing_digest, spec)}
        )
        self.patches = spec.frame_tokens

    @property
    def model(self) -> torch.nn.Module:
        """The module with the weights."""
        return self.tower.model

    @property
    def preprocessing(self) -> Preprocessing:
        """Turns frames into pixels."""
        return self.tower.preprocessing

    @torch.inference_mode()
    def encode_frames(
        self, frames: Sequence[NDArray[np.uint8]], clips: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Pooled vectors float32[n, Dp] of unit norm, and clip tokens float16[n, M, Dp], of uint8[H, W, 3] RGB frames.

        Args:
            frames: the frames, those of a clip one after another.
            clips: the clip of each frame, int64[n]: a new clip begins where the number changes. None if each frame is a
                clip of its own.

        Raises:
            UsageError: a frame has another shape or dtype, `clips` is not [n], or a clip has more frames than the
                profile says.
        """
        numbers = np.arange(len(frames)) if clips is None else np.asarray(clips)
        if numbers.shape != (len(frames),):
            raise UsageError(f"clips is int64 [{len(frames)}], one number for each frame, got {list(numbers.shape)}")
        numbers = np.cumsum(np.diff(numbers, prepend=numbers[:1]) != 0)
        if len(frames) and np.bincount(numbers).max() > self.spec.clip_frames:
            raise UsageError(f"a clip has at most {self.spec.clip_frames} frames, got {np.bincount(numbers).max()}")
        width = self.identity.dimension
        pooled = np.empty((len(frames), width), np.float32)
        patches = np.empty((len(frames), self.patches, width), np.float16)
        for rows in clip_batches(numbers, self.tower.batch):
            pixels = self.preprocessing(frames[rows], self.tower.device)
            pooled[rows], patches[rows] = self._encoded(pixels, numbers[rows])
        return pooled, patches

    def _encoded(self, pixels: Tensor, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Pooled vectors [n, Dp] and clip tokens [n, M, Dp] of the frames of whole clips."""
        _, first, lengths = np.unique(numbers, return_index=True, return_counts=True)
        places = np.minimum(np.arange(self.spec.clip_frames), lengths[:, None] - 1)
        features, tokens = self.tower.clip_features(pixels, torch.from_numpy(first[:, None] + places).to(pixels.device))
        patches = np.empty((len(numbers), self.patches, tokens.shape[-1]), np.float16)
        for length in np.unique(lengths):
            same = lengths == length
            chosen = tokens[torch.from_numpy(same).to(tokens.device)]
            merged = merge_tokens(chosen, int(length) * self.patches, head_width=self.spec.head_width)
            patches[np.repeat(same, lengths)] = half_patches(merged.reshape(-1, self.patches, merged.shape[-1]))
        return unit_vectors(features), patches

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, Dp] of unit norm; a text longer than the model reads is truncated.

        Raises:
            UsageError: the encoder has no text tower.
        """
        return self.tower.encode_text(texts)


def load_patch_encoder(profile: Profile, device: torch.device) -> SiglipEncoder | ClipTokenEncoder:
    """Load the patch encoder of a profile: a SigLIP of single frames, or an encoder of clips.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
        WeightsInvalid: a checkpoint does not fit.
    """
    if profile.hico is None:
        return load_siglip(profile.patch_encoder, device)
    tower: ClipTower
    if profile.patch_encoder.kind == "siglip":
        tower = SiglipTower(load_siglip(profile.patch_encoder, device))
    else:
        assert profile.encoder_shape is not None  # for the type checker: the profile was checked
        tower = load_umt(profile.patch_encoder, profile.encoder_shape, profile.hico.clip_frames, device)
    return ClipTokenEncoder(tower, profile.hico)


def _digest(preprocessing: str, spec: HicoSpec) -> str:
    """SHA-256 of what changes the tokens: the preprocessing's digest and the numbers of merging; hex."""
    merging = f"{preprocessing} tome frames={spec.clip_frames} tokens={spec.clip_tokens} heads={spec.head_width}"
    return hashlib.sha256(merging.encode()).hexdigest()
