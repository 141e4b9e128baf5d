"""What stands between patches and the language model's input: one object a profile, whatever its DFM.

    PaperVisual       DFM in the encoder's space, then MLP_k and MLP_n        (`model.visual.dfm`, `model.visual.connector`)
    ReleasedVisual    the learned merger behind one projector                 (`model.visual.dfm_learned`)
    SingleVisual      one projector; every other frame by its CLIP embedding  (the `single_token` weights)

Does not know prompts, questions' wording or language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.errors import UsageError, WeightsInvalid
from model.encoders.encoder import Encoders
from model.profiles.profile import DfmSpec
from model.visual.connector import AnyConnector, Connector, ReleasedConnector
from model.visual.dfm import Merge, Merged, merge, merge_frames, merge_mean, pool_grid, walk
from model.visual.dfm_learned import Composer, LearnedMerger
from model.visual.prompt import visual_embeddings

__all__ = ["Frames", "Stage", "Visual", "build_visual", "unstaged"]

Stage = Callable[[str], AbstractContextManager[None]]


class unstaged(AbstractContextManager[None]):  # noqa: N801 (used like a function)
    """The `Stage` that measures nothing."""

    def __init__(self, name: str) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """A window: row i of every array is the same frame; rows of a stream stand together, ascending in time.

    `read` gives patches [n, M, Dp] of a slice of at most `chunk` rows, `read_vectors` the frame encoder's float32
    [n, Df], where it is at hand, and `read_norms` what `LearnedMerger.norms` gave for the rows, [n, M, 2], where that was
    stored; without it the learned merger computes it anew, which is nine tenths of its work.
    """

    keyframe: NDArray[np.bool_]
    stream_index: NDArray[np.integer]
    captured_at: NDArray[np.int64]
    read: Callable[[slice], Tensor]
    chunk: int = 64
    read_vectors: Callable[[slice], NDArray[np.float32]] | None = None
    read_norms: Callable[[slice], Tensor] | None = None


class Visual(Protocol):
    """Frames and a question → embeddings of the language model's width."""

    @property
    def keyframe_tokens(self) -> int:
        """Tokens of one keyframe, its capture time aside."""

    @property
    def closing_tokens(self) -> int:
        """Tokens after the last frame."""

    def query(self, question: str) -> Tensor:
        """The question in the space where this form compares it with patches, [d]."""

    def embeddings(
        self, frames: Frames, query: Tensor, clock: Callable[[int], Tensor] | None, stage: Stage = unstaged
    ) -> Iterator[Tensor]:
        """[n, width] pieces in row order, then the closing token where there are frames.

        `clock` gives the embeddings of a capture time (UTC microseconds) that stand before each keyframe. The work is
        told to `stage` as `dfm` and `projector`.
        """


class PaperVisual:
    """Equations 5–11: `merge` in the space of the patches, whose text tower gives q."""

    def __init__(self, spec: DfmSpec, encoders: Encoders, connector: Connector, merge: Merge) -> None:
        if spec.image_newline and connector.newline is None:
            raise WeightsInvalid("dfm.image_newline: these connector weights have no newline; set it to false")
        self.connector, self.merge, self._spec, self._encoders = connector, merge, spec, encoders
        self._newline = connector.newline if spec.image_newline else None
        self.keyframe_tokens = spec.keyframe_tokens or encoders.patch.patches
        self.closing_tokens = int(spec.image_newline)
        _check_pooling(encoders.patch.patches, self.keyframe_tokens)

    def query(self, question: str) -> Tensor:
        weight = next(self.connector.frame.parameters())
        return torch.from_numpy(self._encoders.patch.encode_text([question])[0]).to(weight.device)

    def embeddings(
        self, frames: Frames, query: Tensor, clock: Callable[[int], Tensor] | None, stage: Stage = unstaged
    ) -> Iterator[Tensor]:
        def timed(
            patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
        ) -> Tensor:
            with stage("dfm"):
                return self.merge(patches, reference, query, alpha=alpha, lam=lam)

        merged = merge_frames(
            frames.read,
            frames.keyframe,
            frames.stream_index,
            query,
            alpha=self._spec.alpha,
            lam=self._spec.lam,
            merge=timed,
            chunk=frames.chunk,
        )
        yield from visual_embeddings(
            merged, self.connector, frames.captured_at, clock, query, self._spec.keyframe_tokens, stage
        )
        if self._newline is not None and len(frames.keyframe):
            yield self._newline.unsqueeze(0)


class ReleasedVisual:
    """The learned merger; q is the question's CLIP embedding as the text tower gives it."""

    def __init__(
        self, spec: DfmSpec, encoders: Encoders, connector: ReleasedConnector, mean: bool, trainable: bool
    ) -> None:
        patches = encoders.patch.patches
        self.keyframe_tokens = spec.keyframe_tokens or connector.config.keyframe_tokens(patches)
        self.closing_tokens = int(spec.image_newline)
        _check_pooling(patches, self.keyframe_tokens)
        _check_query(connector, encoders)
        self._encoders = encoders
        self._newline = connector.image_newline if spec.image_newline else None
        assert isinstance(connector.composer_projector, Composer)
        self.merger = LearnedMerger(
            connector.mm_projector,
            connector.composer_projector,
            lam=spec.lam,
            reference_frame=spec.reference_frame,
            keyframe_tokens=self.keyframe_tokens,
            mean=mean,
            trainable=trainable,
        )

    def query(self, question: str) -> Tensor:
        return torch.from_numpy(self._encoders.frame.text_features([question])[0]).to(self.merger.device)

    def embeddings(
        self, frames: Frames, query: Tensor, clock: Callable[[int], Tensor] | None, stage: Stage = unstaged
    ) -> Iterator[Tensor]:
        merged = self.merger.tokens(
            frames.read,
            frames.keyframe,
            frames.stream_index,
            query,
            read_norms=frames.read_norms,
            chunk=frames.chunk,
            stage=stage,
        )
        for piece in merged:
            yield from _stamped(piece, frames, clock)
        if self._newline is not None and len(frames.keyframe):
            yield self._newline.unsqueeze(0)


class SingleVisual:
    """The `single_token` weights: keyframes through the projector, any other frame is its CLIP embedding, mapped.

    The embedding is the one that selection uses, of unit length.
    """

    def __init__(self, spec: DfmSpec, encoders: Encoders, connector: ReleasedConnector) -> None:
        patches = encoders.patch.patches
        self.keyframe_tokens = spec.keyframe_tokens or connector.config.keyframe_tokens(patches)
        self.closing_tokens = int(spec.image_newline)
        _check_pooling(patches, self.keyframe_tokens)
        _check_query(connector, encoders)
        self._projector, self._encoders = connector.mm_projector, encoders
        self._newline = connector.image_newline if spec.image_newline else None
        assert isinstance(connector.composer_projector, nn.Sequential)
        self._single = connector.composer_projector

    def query(self, question: str) -> Tensor:
        return torch.zeros(0)  # no part of this form compares anything with the question

    def embeddings(
        self, frames: Frames, query: Tensor, clock: Callable[[int], Tensor] | None, stage: Stage = unstaged
    ) -> Iterator[Tensor]:
        if frames.read_vectors is None:
            raise UsageError("single_token weights make a frame's token of its CLIP embedding; give read_vectors")
        weight = next(self._projector.parameters())
        for run in walk(frames.read, frames.keyframe, frames.stream_index, chunk=frames.chunk):
            with stage("projector"):
                if run.is_keyframe:
                    patches = run.patches[0].to(weight.device, weight.dtype)
                    features = pool_grid(self._projector(patches).float(), self.keyframe_tokens).to(weight.dtype)
                else:
                    vectors = torch.from_numpy(frames.read_vectors(slice(run.start, run.stop)))
                    features = self._single(vectors.to(weight.device, weight.dtype))
            yield from _stamped(Merged(run.start, run.stop, run.is_keyframe, features), frames, clock)
        if self._newline is not None and len(frames.keyframe):
            yield self._newline.unsqueeze(0)


def build_visual(
    spec: DfmSpec, encoders: Encoders, connector: AnyConnector, merge: Merge = merge, *, trainable: bool = False
) -> Visual:
    """The form that a profile's `dfm` section and the kind of its connector ask for.

    With `trainable` gradients pass; the form is then good for one step, as it may hold products of weights.

    Raises:
        WeightsInvalid: weights that do not fit the encoders or lack what `spec` asks for.
        UsageError: a `merge` that the form has no place for.
    """
    if isinstance(connector, Connector):
        return PaperVisual(spec, encoders, connector, merge)
    if spec.mode == "paper":
        return PaperVisual(spec, encoders, connector.two_stream(), merge)
    if connector.config.composer_type == "single_token":
        return SingleVisual(spec, encoders, connector)
    if merge not in (_default_merge, merge_mean):
        raise UsageError("in released mode a frame is merged by the learned merger or by merge_mean")
    return ReleasedVisual(spec, encoders, connector, mean=merge is merge_mean, trainable=trainable)


_default_merge = merge


def _stamped(piece: Merged, frames: Frames, clock: Callable[[int], Tensor] | None) -> Iterator[Tensor]:
    if piece.is_keyframe and clock is not None:
        yield clock(int(frames.captured_at[piece.start])).to(piece.features.device, piece.features.dtype)
    yield piece.features


def _check_pooling(patches: int, tokens: int) -> None:
    """Say before any work what cannot be pooled."""
    pool_grid(torch.zeros(patches, 1), tokens)


def _check_query(connector: ReleasedConnector, encoders: Encoders) -> None:
    width = encoders.frame.identity.dimension
    if connector.query_dim != width:
        raise WeightsInvalid(
            f"connector: the merger takes CLIP embeddings of {connector.query_dim} dimensions, the frame encoder gives "
            f"{width}; the two do not belong together"
        )
