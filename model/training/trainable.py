"""The whole model under training: patch encoder, connector or merger, and language model, over one sample at a time.

    pixels ─tower─▶ patches ─DFM, connector─▶ visual tokens ─┐
    CLIP vectors ─DKS─▶ keyframes ─────────────┘             ├─ language model ─▶ −log P(answer | frames, question)
    conversation ─▶ token ids, of which the answers count ───┘                    (equation 12)

Keyframe selection, merging and the order of tokens are the same code as for answers (`select_rows`, `build_visual`).
Selection has no gradient, merging has. Does not know videos, optimisers or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from index.errors import BudgetExceeded, UsageError, WeightsInvalid
from index.records import EncoderPair
from model.encoders.clip import ClipEncoder, load_clip
from model.encoders.encoder import Encoders
from model.encoders.norms import split_norms
from model.encoders.siglip import SiglipEncoder, load_siglip
from model.language.transformers_engine import TransformersLanguage, load_transformers
from model.profiles.profile import Profile
from model.selection import keyframe_mask, select_rows
from model.training.components import ComponentCount, Parts, connector_parts, freeze
from model.training.conversation import IGNORED, Script
from model.training.plan import TrainingPlan
from model.visual.connector import AnyConnector, ReleasedConnector, load_connector
from model.visual.interface import Frames
from model.visual.prompt import clock_ids
from model.visual.tokens import build_visual

__all__ = ["Sample", "SampleFeatures", "SampleLoss", "TrainableModel", "load_trainable"]

# Frames whose encoder activations are recomputed together in the backward pass.
_TOWER_FRAMES = 8


@dataclass(frozen=True, slots=True)
class SampleFeatures:
    """The N frames of one video as model input; row i of every array is the same frame."""

    vectors: NDArray[np.float32]
    """Vectors of the frame encoder, float32[N, Df], of unit norm."""
    norms: NDArray[np.float32]
    """Norms that they had, float32[N]."""
    captured_at: NDArray[np.int64]
    """Capture times, int64[N], UTC microseconds."""
    patches: NDArray[np.float16] | None = None
    """Patches, float16[N, M, Dp], if the patch encoder is frozen."""
    pixels: NDArray[np.uint8] | None = None
    """Resized frames, uint8[N, H, W, 3], if the patch encoder is trained."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about one video."""

    script: Script
    """The conversation as token ids."""
    query: str
    """The text that selects keyframes and weighs patches."""
    keyframes: int
    """K."""
    features: SampleFeatures
    """The video."""
    where: str
    """Name of the sample in errors."""


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """The loss of one sample."""

    loss: Tensor
    """Mean loss of the supervised tokens, a scalar."""
    frames: int
    """Frames of the sample."""
    tokens: int
    """Tokens of the whole sequence."""


class TrainableModel(nn.Module):
    """A profile's models as one module. CLIP and the text towers are not registered and never trained.

    Args:
        profile: settings of selection and DFM.
        frame: the frame encoder.
        patch: the patch encoder.
        connector: the connector or the released merger.
        language: the language model.
        plan: which components are frozen.

    Raises:
        WeightsInvalid: the weights do not fit the profile's DFM.
        UsageError: see `model.training.components.freeze`.
    """

    def __init__(
        self,
        profile: Profile,
        frame: ClipEncoder,
        patch: SiglipEncoder,
        connector: AnyConnector,
        language: TransformersLanguage,
        plan: TrainingPlan,
    ) -> None:
        super().__init__()
        self.profile, self.frame_encoder, self.patch_encoder = profile, frame, patch
        pair = EncoderPair(frame=frame.identity, patch=patch.identity, patches=patch.patches)
        self.encoders = Encoders(frame, patch, pair)
        self.tokenizer, self.max_context = language.tokenizer, language.max_context
        # Paper mode with the authors' checkpoint: its one projector becomes MLP_k and MLP_n.
        paper = isinstance(connector, ReleasedConnector) and profile.dfm.mode == "paper"
        self.connector: AnyConnector = connector.two_stream() if paper else connector  # type: ignore[operator]
        self.tower = patch.tower()
        self.language = language.model
        self.recompute = plan.gradient_checkpointing
        build_visual(profile, self.encoders, self.connector)  # raises if the parts do not fit
        if self.recompute:
            # Later releases of transformers deprecate the older name.
            older = self.language.gradient_checkpointing_enable
            getattr(self.language, "activation_checkpointing_enable", older)({"use_reentrant": False})
        self.parts: Parts = {
            "vision_encoder": list(self.tower.parameters()),
            **connector_parts(self.connector, newline=profile.dfm.image_newline),
            "language_model": list(self.language.parameters()),
        }
        self.requires_grad_(False)
        self.counts: list[ComponentCount] = freeze(self.parts, plan)
        self.trains_encoder = "vision_encoder" not in plan.freeze

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def frozen_outside(self) -> list[ComponentCount]:
        """Sizes of the modules that are never trained, in the form of `counts`."""
        clip = sum(p.numel() for p in self.frame_encoder.model.parameters())
        own = {id(p) for p in self.tower.parameters()}
        rest = sum(p.numel() for p in self.patch_encoder.model.parameters() if id(p) not in own)
        return [ComponentCount("CLIP", clip, None), ComponentCount("patch encoder's other parts", rest, None)]

    def encode(
        self, frame_pixels: NDArray[np.uint8], patch_pixels: NDArray[np.uint8], captured_at: NDArray[np.int64]
    ) -> SampleFeatures:
        """Encode the frames of one video.

        Args:
            frame_pixels: frames in the input size of the frame encoder, uint8[N, H, W, 3].
            patch_pixels: the same frames in the input size of the patch encoder, uint8[N, H, W, 3].
            captured_at: int64[N], UTC microseconds.
        """
        vectors, norms = split_norms(self.frame_encoder.frame_features(list(frame_pixels)))
        if self.trains_encoder:
            return SampleFeatures(vectors, norms, captured_at, pixels=patch_pixels)
        patches = self.patch_encoder.encode_frames(list(patch_pixels))[1]
        return SampleFeatures(vectors, norms, captured_at, patches=patches)

    def select(self, vectors: NDArray[np.float32], query: str, k: int) -> NDArray[np.bool_]:
        """Keyframes by DKS, as for an answer: bool[N] of `vectors` float32[N, Df]."""
        rows = select_rows(vectors, self.frame_encoder.encode_text([query])[0], self.profile, k=k).rows
        return keyframe_mask(rows, len(vectors))

    def forward(self, sample: Sample) -> SampleLoss:
        """−log P(answer | frames, question), mean over the supervised tokens.

        Raises:
            BudgetExceeded: the sample has more tokens than the language model's context; it is never truncated.
        """
        script = sample.script
        embed: Any = self.language.get_input_embeddings()
        parts = [embed(self._ids(script.head)), *self._visual(sample), embed(self._ids(script.tail))]
        total = sum(map(len, parts))
        if total > self.max_context:
            raise BudgetExceeded(
                f"{sample.where}: {len(sample.features.vectors)} frames and their text need {total} tokens, the "
                f"language model has room for {self.max_context}; lower max_frames or keyframes"
            )
        inputs = torch.cat([part.to(self.language.dtype) for part in parts])
        hidden = self.language.model(inputs_embeds=inputs.unsqueeze(0), use_cache=False).last_hidden_state[0]
        # Each position predicts the token after it; only positions before a supervised token pass through the head.
        supervised = [i for i, target in enumerate(script.targets) if target != IGNORED]
        places = torch.tensor([total - len(script.tail) + i - 1 for i in supervised], device=hidden.device)
        wanted = self._ids([script.targets[i] for i in supervised])
        loss = functional.cross_entropy(self.language.lm_head(hidden[places]).float(), wanted)
        return SampleLoss(loss, len(sample.features.vectors), total)

    def _visual(self, sample: Sample) -> list[Tensor]:
        """The vision tokens, in pieces of [n, width]. DFM divides cosines by α = 0.01, so autocast is off for all of
        it."""
        features, embed = sample.features, self.language.get_input_embeddings()
        mask = self.select(features.vectors, sample.query, sample.keyframes)
        frames = Frames(
            keyframe=mask,
            stream_index=np.zeros(len(mask), np.int64),
            captured_at=features.captured_at,
            read=self._reader(features),
            chunk=_TOWER_FRAMES if self.trains_encoder else 64,
            read_features=lambda rows: features.vectors[rows] * features.norms[rows, None],
        )

        def embed_time(at: int) -> Tensor:
            """Embeddings of a capture time, [n, width]."""
            rows: Tensor = embed(self._ids(clock_ids(self.tokenizer, at)))
            return rows

        with torch.autocast(self.device.type, enabled=False):
            visual = build_visual(self.profile, self.encoders, self.connector, trainable=True)
            query = visual.query(sample.query).to(self.device)
            parts = visual.embeddings(frames, query, embed_time if self.profile.timestamps else None)
            return [part.embeddings for part in parts]

    def _reader(self, features: SampleFeatures) -> Callable[[slice], Tensor]:
        """A function from a slice of rows to their patches, float32[n, M, Dp]; with gradients if the encoder is
        trained."""
        if features.patches is not None:
            given = features.patches
            return lambda rows: torch.from_numpy(np.array(given[rows])).to(self.device).float()
        assert features.pixels is not None
        pixels, kind = features.pixels, self.device.type
        # Autocast is off where `read` is called; the encoder uses the autocast of now.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

        def encode(batch: Tensor) -> Tensor:
            """Patches of preprocessed pixels."""
            with torch.autocast(kind, dtype, enabled=dtype is not None):
                patches: Tensor = self.tower(batch)
            return patches.float()

        def read(rows: slice) -> Tensor:
            """Patches of a slice of rows."""
            batch = self.patch_encoder.preprocessing(list(pixels[rows]), self.device)
            if self.recompute:
                patches: Tensor = checkpoint(encode, batch, use_reentrant=False)
                return patches
            return encode(batch)

        return read

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)


def load_trainable(profile: Profile, plan: TrainingPlan, device: torch.device) -> TrainableModel:
    """Load the models of `profile`, in float32 on `device`, for training.

    Raises:
        WeightsNotFound: the weights are not in the profile's folder, nor in the cache, and cannot be downloaded.
        WeightsInvalid: a checkpoint does not fit.
        UsageError: the profile has a `hico` section, whose clips are not trained here; see also
            `model.training.components.freeze`.
    """
    if profile.hico is not None:
        raise UsageError(
            f"the {profile.name} profile reads clips (hico), which are not trained here; train a profile of keyframes"
        )
    spec = profile.language_model.model_copy(update={"dtype": "float32"})
    frame, patch = load_clip(profile.frame_encoder, device), load_siglip(profile.patch_encoder, device)
    connector, language = load_connector(profile.connector, device), load_transformers(spec, device)
    if (connector.patch_dim, connector.width) != (patch.identity.dimension, language.width):
        raise WeightsInvalid(
            f"connector: {profile.connector.source} goes from {connector.patch_dim} to {connector.width} dimensions, "
            f"patch encoder and language model need {patch.identity.dimension} to {language.width}"
        )
    return TrainableModel(profile, frame, patch, connector.float(), language, plan).train()
