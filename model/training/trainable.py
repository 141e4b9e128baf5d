"""The whole model as it is trained: patch encoder, connector or merger, and language model, over one sample at a time.

    pixels ─tower─▶ patches ─DFM, connector─▶ visual tokens ─┐
    CLIP vectors ─DKS─▶ keyframes ─────────────┘             ├─ language model ─▶ −log P(answer | frames, question)
    conversation ─▶ token ids, of which the answers count ───┘                    (equation 12)

Keyframes, merging and the order of tokens are those of answering: `select_rows` and `build_visual` are the same
code. What is chosen has no gradient, what is merged has. Does not know videos, optimisers or files.
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

from index.errors import BudgetExceeded, WeightsInvalid
from index.records import EncoderPair
from model.encoders.clip import ClipEncoder, load_clip
from model.encoders.encoder import Encoders
from model.encoders.siglip import SiglipEncoder, load_siglip
from model.language.transformers_engine import TransformersLanguage, load_transformers
from model.profiles.profile import Profile
from model.selection import keyframe_mask, select_rows
from model.training.components import ComponentCount, Parts, connector_parts, freeze
from model.training.conversation import IGNORED, Script
from model.training.plan import TrainingPlan
from model.visual.connector import AnyConnector, ReleasedConnector, load_connector
from model.visual.prompt import clock_ids
from model.visual.tokens import Frames, build_visual

__all__ = ["Sample", "SampleFeatures", "SampleLoss", "TrainableModel", "load_trainable"]

# Frames whose encoder activations are computed again together on the way back.
_TOWER_FRAMES = 8


@dataclass(frozen=True, slots=True)
class SampleFeatures:
    """The frames of one video as the model takes them, row i everywhere the same frame.

    vectors float32[N, Df] of CLIP; captured_at int64[N], UTC microseconds; and one of patches float16[N, M, Dp], where
    the patch encoder is frozen, and pixels uint8[N, H, W, 3] of its input size, where it learns.
    """

    vectors: NDArray[np.float32]
    captured_at: NDArray[np.int64]
    patches: NDArray[np.float16] | None = None
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about one video. `query` chooses keyframes and weighs patches; `where` names the sample in errors."""

    script: Script
    query: str
    keyframes: int
    features: SampleFeatures
    where: str


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """What one sample came to: the mean loss of its supervised tokens, and sizes."""

    loss: Tensor
    frames: int
    tokens: int


class TrainableModel(nn.Module):
    """Modules that learn are registered; CLIP and the text towers are not, and never change."""

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
        # Paper mode over an authors' checkpoint: its projector becomes MLP_k and MLP_n, once and for good.
        paper = isinstance(connector, ReleasedConnector) and profile.dfm.mode == "paper"
        self.connector: AnyConnector = connector.two_stream() if paper else connector  # type: ignore[operator]
        self.tower = patch.tower()
        self.language = language.model
        self.recompute = plan.gradient_checkpointing
        build_visual(profile.dfm, self.encoders, self.connector)  # what cannot go together says so now
        if self.recompute:
            # Later releases of transformers warn of the older name.
            older = self.language.gradient_checkpointing_enable
            getattr(self.language, "activation_checkpointing_enable", older)({"use_reentrant": False})
        self.parts: Parts = {
            "vision_encoder": list(self.tower.parameters()),
            **connector_parts(self.connector, newline=profile.dfm.image_newline),
            "language_model": list(self.language.parameters()),
        }
        self.requires_grad_(False)
        self.counts: list[ComponentCount] = freeze(self.parts, plan)
        self.sees = "vision_encoder" not in plan.freeze

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def frozen_outside(self) -> list[ComponentCount]:
        """What is never trained, for the same table as `counts`."""
        clip = sum(p.numel() for p in self.frame_encoder.model.parameters())
        own = {id(p) for p in self.tower.parameters()}
        rest = sum(p.numel() for p in self.patch_encoder.model.parameters() if id(p) not in own)
        return [ComponentCount("CLIP", clip, None), ComponentCount("patch encoder's other parts", rest, None)]

    def encode(
        self, frame_pixels: NDArray[np.uint8], patch_pixels: NDArray[np.uint8], captured_at: NDArray[np.int64]
    ) -> SampleFeatures:
        """Resized frames of both encoders, uint8[N, H, W, 3] each, to what `forward` takes."""
        vectors = self.frame_encoder.encode_frames(list(frame_pixels))
        if self.sees:
            return SampleFeatures(vectors, captured_at, pixels=patch_pixels)
        return SampleFeatures(vectors, captured_at, patches=self.patch_encoder.encode_frames(list(patch_pixels))[1])

    def select(self, vectors: NDArray[np.float32], query: str, k: int) -> NDArray[np.bool_]:
        """Keyframes by DKS, as for an answer: bool[N] of `vectors` float32[N, Df]."""
        rows = select_rows(vectors, self.frame_encoder.encode_text([query])[0], self.profile, k=k)
        return keyframe_mask(rows, len(vectors))

    def forward(self, sample: Sample) -> SampleLoss:
        """−log P(answer | frames, question), mean over the supervised tokens.

        Raises:
            BudgetExceeded: more tokens than the language model can hold; nothing is ever cut off.
        """
        script = sample.script
        embed: Any = self.language.get_input_embeddings()
        parts = [embed(self._ids(script.head)), *self._visual(sample), embed(self._ids(script.tail))]
        total = sum(map(len, parts))
        if total > self.max_context:
            raise BudgetExceeded(
                f"{sample.where}: {len(sample.features.vectors)} frames and their text need {total} tokens, the language "
                f"model has room for {self.max_context}; lower max_frames or keyframes"
            )
        inputs = torch.cat([part.to(self.language.dtype) for part in parts])
        hidden = self.language.model(inputs_embeds=inputs.unsqueeze(0), use_cache=False).last_hidden_state[0]
        # Each place predicts the token after it; only those before a supervised one go through the head.
        spoken = [i for i, target in enumerate(script.targets) if target != IGNORED]
        places = torch.tensor([total - len(script.tail) + i - 1 for i in spoken], device=hidden.device)
        wanted = self._ids([script.targets[i] for i in spoken])
        loss = functional.cross_entropy(self.language.lm_head(hidden[places]).float(), wanted)
        return SampleLoss(loss, len(sample.features.vectors), total)

    def _visual(self, sample: Sample) -> list[Tensor]:
        """The visual tokens, in pieces. DFM divides cosines by α = 0.01, so all of it is done in full precision."""
        features, embed = sample.features, self.language.get_input_embeddings()
        mask = self.select(features.vectors, sample.query, sample.keyframes)
        frames = Frames(
            keyframe=mask,
            stream_index=np.zeros(len(mask), np.int64),
            captured_at=features.captured_at,
            read=self._reader(features),
            chunk=_TOWER_FRAMES if self.sees else 64,
            read_vectors=lambda rows: features.vectors[rows],
        )

        def stamp(at: int) -> Tensor:
            rows: Tensor = embed(self._ids(clock_ids(self.tokenizer, at)))
            return rows

        with torch.autocast(self.device.type, enabled=False):
            visual = build_visual(self.profile.dfm, self.encoders, self.connector, trainable=True)
            query = visual.query(sample.query).to(self.device)
            return list(visual.embeddings(frames, query, stamp if self.profile.timestamps else None))

    def _reader(self, features: SampleFeatures) -> Callable[[slice], Tensor]:
        if features.patches is not None:
            given = features.patches
            return lambda rows: torch.from_numpy(np.array(given[rows])).to(self.device).float()
        assert features.pixels is not None
        pixels, kind = features.pixels, self.device.type
        # Autocast is off where this is called; the encoder has its own, as it had outside.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

        def encode(batch: Tensor) -> Tensor:
            with torch.autocast(kind, dtype, enabled=dtype is not None):
                patches: Tensor = self.tower(batch)
            return patches.float()

        def read(rows: slice) -> Tensor:
            batch = self.patch_encoder.preprocessing(list(pixels[rows]), self.device)
            if self.recompute:
                patches: Tensor = checkpoint(encode, batch, use_reentrant=False)
                return patches
            return encode(batch)

        return read

    def _ids(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self.device)


def load_trainable(profile: Profile, plan: TrainingPlan, device: torch.device) -> TrainableModel:
    """Everything that `profile` names, in float32 on `device`, ready to train.

    Raises:
        WeightsNotFound: weights are neither in the folder the profile names, nor cached, nor can they be fetched.
        WeightsInvalid: a checkpoint that does not fit.
        UsageError: see `freeze`.
    """
    spec = profile.language_model.model_copy(update={"dtype": "float32"})
    frame, patch = load_clip(profile.frame_encoder, device), load_siglip(profile.patch_encoder, device)
    connector, language = load_connector(profile.connector, device), load_transformers(spec, device)
    if (connector.patch_dim, connector.width) != (patch.identity.dimension, language.width):
        raise WeightsInvalid(
            f"connector: {profile.connector.source} goes from {connector.patch_dim} to {connector.width} dimensions, "
            f"patch encoder and language model need {patch.identity.dimension} to {language.width}"
        )
    return TrainableModel(profile, frame, patch, connector.float(), language, plan).train()
