"""Vision tokens of a window: from patches to the language model's input, in the form that a profile names.

    PaperVisual          DFM in the space of the patches, then MLP_k and MLP_n    (`model.visual.dfm`, `.connector`)
    ReleasedVisual       the learned merger after one projector                   (`model.visual.dfm_learned`)
    SingleTokenVisual    one projector; other frames by their CLIP embedding      (the `single_token` weights)
    FeatureVisual        MLP_k; other frames by their CLIP embedding              (ablations)
    HicoVisual           clips instead of keyframes, for a profile with `hico`    (`model.visual.hico`)

Does not know the text of prompts or language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from index.errors import BudgetExceeded, UsageError, WeightsInvalid
from model.encoders.encoder import Encoders
from model.profiles.profile import DfmSpec, Profile
from model.visual.connector import AnyConnector, Connector, ReleasedConnector
from model.visual.dfm import FrameTokens, Merge, iterate_runs, merge, merge_frames, merge_mean, pool_grid
from model.visual.dfm_learned import Composer, LearnedMerger
from model.visual.hico import HicoVisual
from model.visual.interface import Frames, PromptPart, StageTimer, Visual, no_timer
from model.visual.prompt import visual_embeddings

__all__ = ["FeatureVisual", "build_visual"]


class _DfmCounts:
    """Counts of tokens where K keyframes have several tokens each, and any other frame has one."""

    keyframe_tokens: int
    """Tokens of one keyframe without its capture time."""
    closing_tokens: int
    """Tokens after the last frame."""

    def count(self, keyframes: int, frames: int) -> int:
        """M·K + (N − K), and the closing token if there are frames."""
        return self.keyframe_tokens * keyframes + (frames - keyframes) + (self.closing_tokens if frames else 0)

    def count_times(self, keyframes: int, frames: int) -> int:
        """K: each keyframe has its capture time."""
        return keyframes

    def most_frames(self, room: int, keyframes: int, time_tokens: int) -> int:
        """See `Visual.most_frames`."""
        room -= self.closing_tokens
        need = keyframes * (self.keyframe_tokens + time_tokens)
        if need > room:
            raise BudgetExceeded(
                f"{keyframes} keyframes need {need} tokens and there is room for {room}; ask for fewer keyframes (--k)"
            )
        return keyframes + room - need

    def preface(self, seconds: float, frames: int) -> str:
        """No text."""
        return ""


class PaperVisual(_DfmCounts):
    """Equations 5-11: `merge` in the space of the patches; q comes from the patch encoder's text tower."""

    def __init__(self, spec: DfmSpec, encoders: Encoders, connector: Connector, merge: Merge) -> None:
        if spec.image_newline and connector.newline is None:
            raise WeightsInvalid("dfm.image_newline: these connector weights have no newline; set it to false")
        self.connector, self.merge, self._spec, self._encoders = connector, merge, spec, encoders
        self._newline = connector.newline if spec.image_newline else None
        self.keyframe_tokens = spec.keyframe_tokens or encoders.patch.patches
        self.closing_tokens = int(spec.image_newline)
        _check_pooling(encoders.patch.patches, self.keyframe_tokens)

    def query(self, question: str) -> Tensor:
        """See `Visual.query`."""
        weight = next(self.connector.frame.parameters())
        return torch.from_numpy(self._encoders.patch.encode_text([question])[0]).to(weight.device)

    def embeddings(
        self, frames: Frames, query: Tensor, embed_time: Callable[[int], Tensor] | None, stage: StageTimer = no_timer
    ) -> Iterator[PromptPart]:
        """See `Visual.embeddings`."""

        def timed(
            patches: Tensor, reference: Tensor | None, query: Tensor, *, alpha: float = 0.01, lam: float = 1.0
        ) -> Tensor:
            """`self.merge`, measured."""
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
            merged, self.connector, frames.captured_at, embed_time, query, self._spec.keyframe_tokens, stage
        )
        if self._newline is not None and len(frames.keyframe):
            yield PromptPart(self._newline.unsqueeze(0))


class FeatureVisual(PaperVisual):
    """Keyframes as in `PaperVisual`; the token of any other frame is its CLIP embedding, not of unit norm, mapped.

    The counterpart of the released `single_token` weights for a two-stream connector.

    Args:
        spec: settings.
        encoders: the encoders.
        connector: its MLP_k serves keyframes; MLP_n is not used.
        feature: maps CLIP embeddings [n, Df] to tokens [n, width].
    """

    def __init__(self, spec: DfmSpec, encoders: Encoders, connector: Connector, feature: nn.Module) -> None:
        super().__init__(spec, encoders, connector, merge)
        self.feature = feature

    def embeddings(
        self, frames: Frames, query: Tensor, embed_time: Callable[[int], Tensor] | None, stage: StageTimer = no_timer
    ) -> Iterator[PromptPart]:
        """See `Visual.embeddings`."""
        if frames.read_features is None:
            raise UsageError("single tokens are made of the CLIP embedding of each frame; give read_features")
        weight = next(self.connector.keyframe.parameters())
        for run in iterate_runs(frames.read, frames.keyframe, frames.stream_index, chunk=frames.chunk):
            with stage("projector"):
                if run.is_keyframe:
                    patches = run.patches[0].to(weight.device, weight.dtype)
                    tokens = self.connector.tokens(patches, query, keyframe=True)
                    features = pool_grid(tokens.float(), self.keyframe_tokens).to(weight.dtype)
                else:
                    vectors = torch.from_numpy(frames.read_features(slice(run.start, run.stop)))
                    features = self.feature(vectors.to(weight.device, weight.dtype))
            yield from _with_time(FrameTokens(run.start, run.stop, run.is_keyframe, features), frames, embed_time)
        if self._newline is not None and len(frames.keyframe):
            yield PromptPart(self._newline.unsqueeze(0))


class ReleasedVisual(_DfmCounts):
    """The learned merger of released weights; q is the question's CLIP embedding as the text tower gives it."""

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
        """See `Visual.query`."""
        return torch.from_numpy(self._encoders.frame.text_features([question])[0]).to(self.merger.device)

    def embeddings(
        self, frames: Frames, query: Tensor, embed_time: Callable[[int], Tensor] | None, stage: StageTimer = no_timer
    ) -> Iterator[PromptPart]:
        """See `Visual.embeddings`."""
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
            yield from _with_time(piece, frames, embed_time)
        if self._newline is not None and len(frames.keyframe):
            yield PromptPart(self._newline.unsqueeze(0))


class SingleTokenVisual(_DfmCounts):
    """The `single_token` weights: keyframes pass the projector; the token of any other frame is its CLIP embedding,
    mapped.

    The embedding is the one of keyframe selection before it is scaled to unit norm, as in the authors' code.
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
        """See `Visual.query`."""
        return torch.zeros(0)  # nothing is compared with the question

    def embeddings(
        self, frames: Frames, query: Tensor, embed_time: Callable[[int], Tensor] | None, stage: StageTimer = no_timer
    ) -> Iterator[PromptPart]:
        """See `Visual.embeddings`."""
        if frames.read_features is None:
            raise UsageError("single_token weights need the CLIP embedding of each frame; give read_features")
        weight = next(self._projector.parameters())
        for run in iterate_runs(frames.read, frames.keyframe, frames.stream_index, chunk=frames.chunk):
            with stage("projector"):
                if run.is_keyframe:
                    patches = run.patches[0].to(weight.device, weight.dtype)
                    features = pool_grid(self._projector(patches).float(), self.keyframe_tokens).to(weight.dtype)
                else:
                    vectors = torch.from_numpy(frames.read_features(slice(run.start, run.stop)))
                    features = self._single(vectors.to(weight.device, weight.dtype))
            yield from _with_time(FrameTokens(run.start, run.stop, run.is_keyframe, features), frames, embed_time)
        if self._newline is not None and len(frames.keyframe):
            yield PromptPart(self._newline.unsqueeze(0))


def build_visual(
    profile: Profile, encoders: Encoders, connector: AnyConnector, merge: Merge = merge, *, trainable: bool = False
) -> Visual:
    """The `Visual` for a profile's `hico` or `dfm` section and its connector.

    Args:
        profile: the settings.
        encoders: their text towers encode questions.
        connector: the connector or the released merger.
        merge: how a frame becomes a token.
        trainable: let gradients pass. The result then serves one step, as it may contain products of weights.

    Raises:
        WeightsInvalid: the weights do not fit the encoders, or lack a tensor that the profile needs.
        UsageError: `merge` is not possible with this connector, or with a `hico` section.
    """
    spec = profile.dfm
    if profile.hico is not None:
        if not isinstance(connector, Connector):
            raise WeightsInvalid("connector: a profile with a hico section needs the layout hico or two_stream")
        if merge is not _default_merge:
            raise UsageError(f"the {profile.name} profile reads clips and merges no frames, so there is no other merge")
        return HicoVisual(profile.hico, encoders, connector)
    if isinstance(connector, Connector):
        return PaperVisual(spec, encoders, connector, merge)
    if spec.mode == "paper":
        return PaperVisual(spec, encoders, connector.two_stream(), merge)
    if connector.config.composer_type == "single_token":
        return SingleTokenVisual(spec, encoders, connector)
    if merge not in (_default_merge, merge_mean):
        raise UsageError("in released mode a frame is merged by the learned merger or by merge_mean")
    return ReleasedVisual(spec, encoders, connector, mean=merge is merge_mean, trainable=trainable)


_default_merge = merge


def _with_time(piece: FrameTokens, frames: Frames, embed_time: Callable[[int], Tensor] | None) -> Iterator[PromptPart]:
    if piece.is_keyframe and embed_time is not None:
        time = embed_time(int(frames.captured_at[piece.start]))
        yield PromptPart(time.to(piece.features.device, piece.features.dtype), visual=False)
    yield PromptPart(piece.features)


def _check_pooling(patches: int, tokens: int) -> None:
    """Raise UsageError if `patches` cannot be pooled to `tokens`."""
    pool_grid(torch.zeros(patches, 1), tokens)


def _check_query(connector: ReleasedConnector, encoders: Encoders) -> None:
    """Raise WeightsInvalid if the frame encoder's dimension is not that of the merger."""
    width = encoders.frame.identity.dimension
    if connector.query_dim != width:
        raise WeightsInvalid(
            f"connector: the merger takes CLIP embeddings of {connector.query_dim} dimensions, the frame encoder gives "
            f"{width}; the two do not belong together"
        )
