"""The common part of the CLIP and the SigLIP encoder: identity, batches of frames, texts to vectors.

Knows pretrained models as opaque modules with a tokenizer. Does not know which library they come from.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from index.records import EncoderIdentity
from model.checkpoints.files import resolve, weights_digest
from model.encoders.preprocessing import Preprocessing
from model.profiles.profile import EncoderSpec, Source

__all__ = ["PretrainedEncoder", "Tokenize", "half_patches", "identify", "resolve_tower", "unit_vectors"]

_FLOAT16_MAX = 65_504.0
_COMMIT = re.compile(r"[0-9a-f]{40}")  # a folder of the hub's cache has the name of its commit
Tokenize = Callable[[Sequence[str]], Tensor]


class PretrainedEncoder(ABC):
    """A pretrained image and text encoder on one device.

    Args:
        model: the library's module.
        tokenize: token ids of texts, int64[n, length].
        preprocessing: turns frames into the input of `model`.
        identity: stored beside the vectors.
        batch: most frames encoded at once.
    """

    def __init__(
        self, model: Any, tokenize: Tokenize, preprocessing: Preprocessing, identity: EncoderIdentity, batch: int
    ) -> None:
        self.model, self.tokenize, self.preprocessing = model, tokenize, preprocessing
        self.identity, self.batch = identity, batch
        self.device: torch.device = next(model.parameters()).device

    def batches(self, frames: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[slice, Tensor]]:
        """Rows of each batch of uint8[H, W, 3] frames, and its preprocessed pixels, float32[n, 3, height, width].

        Raises:
            UsageError: a frame has another shape or dtype.
        """
        for first in range(0, len(frames), self.batch):
            rows = slice(first, first + self.batch)
            yield rows, self.preprocessing(frames[rows], self.device)

    def half_precision(self) -> torch.autocast:
        """Autocast to bfloat16 on CUDA; no effect on a CPU."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, D] of unit norm; a text longer than the model reads is truncated."""
        return self._encoded(texts, normalize=True)

    def text_features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts as the text tower gives them, float32[n, D], not of unit norm."""
        return self._encoded(texts, normalize=False)

    @abstractmethod
    def forward_text(self, ids: Tensor) -> Tensor:
        """Features of token ids int64[n, length] on the model's device, [n, D]."""

    @torch.inference_mode()
    def _encoded(self, texts: Sequence[str], *, normalize: bool) -> NDArray[np.float32]:
        if not texts:
            return np.empty((0, self.identity.dimension), np.float32)
        features = self.forward_text(self.tokenize(texts).to(self.device)).float()
        return unit_vectors(features) if normalize else features.cpu().numpy()


def unit_vectors(features: Tensor) -> NDArray[np.float32]:
    """[n, D] features scaled to unit norm, float32[n, D] in host memory."""
    return functional.normalize(features.float(), dim=-1).cpu().numpy()


def half_patches(tokens: Tensor) -> NDArray[np.float16]:
    """Patches of any shape as float16 in host memory.

    A few channels of large towers exceed the range of half precision; clamping keeps them finite.
    """
    return tokens.float().clamp(-_FLOAT16_MAX, _FLOAT16_MAX).half().cpu().numpy()


def resolve_tower(spec: EncoderSpec, what: str) -> Path | None:
    """The local folder of the checkpoint whose weights replace those of `spec.source`; None if there is none.

    Args:
        spec: the encoder of a profile.
        what: the name of the encoder in error messages.

    Raises:
        WeightsNotFound: see `model.checkpoints.files.resolve`.
    """
    if spec.tower is None:
        return None
    return resolve(spec.tower, needs=("*.safetensors",), takes=("*.safetensors.index.json",), what=what)


def identify(
    spec: EncoderSpec, *, weights: Sequence[Path], preprocessing_digest: str, dimension: int
) -> EncoderIdentity:
    """The identity of an encoder: name, revisions of `source` and `tower`, digests, dimension of its vectors.

    Args:
        spec: the encoder of a profile.
        weights: files that hold the weights.
        preprocessing_digest: digest of everything else that changes the vectors.
        dimension: D.

    Raises:
        WeightsNotFound: a file cannot be read.
    """
    commits = {path.parent.name for path in weights if _COMMIT.fullmatch(path.parent.name)}

    def revision(source: Source) -> str:
        """The revision of a source; the commit of the hub's cache where the profile names a branch."""
        named = source.revision or "local"
        return named if source.hub is None or _COMMIT.fullmatch(named) or len(commits) != 1 else min(commits)

    return EncoderIdentity(
        name=spec.name,
        revision="+".join(revision(source) for source in (spec.source, spec.tower) if source is not None),
        weights_digest=weights_digest(weights),
        preprocessing_digest=preprocessing_digest,
        dimension=dimension,
    )
