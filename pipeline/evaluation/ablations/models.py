"""The models of each row of an ablation, and the training of the mergings that the profile has no weights for.

Encoders, language model and MLP_k are loaded once and shared by all rows. `dfm tuned` and `mean tuned` continue the
profile's own MLP_n, so that a trained Q-former or single token is compared with something trained as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from index.errors import UsageError
from model.answerer import Answerer
from model.encoders.encoder import Encoders, pick_device
from model.language.loader import load_language
from model.language.transformers_engine import TransformersLanguage
from model.profiles.profile import Profile
from model.selection import keyframe_mask, select_rows
from model.training.mergers import MergerExample, MergerTraining, train_merger
from model.visual.connector import ReleasedConnector, load_connector
from model.visual.dfm import Merge, merge, merge_mean
from model.visual.dfm_learned import projector_mlp
from model.visual.interface import Frames, Visual
from model.visual.prompt import build_prompt
from model.visual.qformer import QFormer
from model.visual.tokens import FeatureVisual, build_visual
from model.world.questions import Question
from pipeline.evaluation.ablations.plan import TRAINED, AblationRow, Merging, Trained
from pipeline.evaluation.camera import Camera

__all__ = ["AskedCamera", "RowModels"]

_KS, _OTHERS = (4, 8, 16), 150
_MERGES: dict[Merging, Merge] = {
    "dfm": merge,
    "none": merge,
    "dfm tuned": merge,
    "mean": merge_mean,
    "mean tuned": merge_mean,
}


class AskedCamera(NamedTuple):
    """A stream in memory with questions about it."""

    camera: Camera
    """The stream."""
    questions: Sequence[Question]
    """The questions."""


class RowModels:
    """The models of all rows.

    Args:
        profile: the profile.
        encoders: its encoders.
        folder: trained mergers are kept here.
        device: see `model.encoders.encoder.pick_device`.

    Raises:
        UsageError: the language model's engine is not `transformers`.
    """

    def __init__(self, profile: Profile, encoders: Encoders, folder: Path, device: str | None = None) -> None:
        chosen = pick_device(device)
        self.profile, self.encoders, self.folder = profile, encoders, folder
        language = load_language(profile.language_model, chosen)
        if not isinstance(language, TransformersLanguage):
            raise UsageError("ablations need language_model.engine transformers")
        self.language = language
        connector = load_connector(profile.connector, chosen)
        two = connector.two_stream() if isinstance(connector, ReleasedConnector) else connector
        self.connector = two.to(language.dtype).requires_grad_(False)
        self._trained: dict[Trained, nn.ModuleDict] = {}

    def answerer(self, row: AblationRow) -> Answerer:
        """The answerer of a row.

        Raises:
            UsageError: its merging needs training and has not been trained.
        """
        profile = row.apply(self.profile)
        if row.merging not in TRAINED:
            return Answerer(profile, self.encoders, self.connector, self.language, merge=_MERGES[row.merging])
        if row.merging not in self._trained:
            raise UsageError(f"{row.merging} has not been trained")
        answerer = Answerer(profile, self.encoders, self.connector, self.language)
        answerer.visual = self._visual(profile, row.merging, self._trained[row.merging])
        return answerer

    def prepare(
        self,
        merging: Trained,
        footage: Callable[[], Sequence[AskedCamera]],
        *,
        seed: int,
        steps: int,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        """Load a trained merging, or train and keep it.

        Args:
            merging: which one.
            footage: gives streams and questions; called only if it is to be trained.
            seed: seed of weights and examples; every merging gets the same examples.
            steps: optimiser steps.
            on_step: called with the steps done and the loss.
        """
        path = self.folder / f"{merging.replace(' ', '-')}.safetensors"
        torch.manual_seed(seed)
        weights = self._weights(merging)
        if path.exists():
            weights.load_state_dict(load_file(path))
        else:
            examples = _Examples(self, footage(), seed)
            train_merger(
                self._visual(self.profile, merging, weights),
                self.language,
                weights,
                examples,
                MergerTraining(steps=steps),
                timestamps=self.profile.timestamps,
                autocast=self._autocast,
                on_step=on_step,
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({name: tensor.contiguous() for name, tensor in weights.state_dict().items()}, part)
            part.replace(path)
        self._trained[merging] = weights.to(self.language.device, self.language.dtype).requires_grad_(False).eval()

    def _autocast(self) -> Any:
        device = self.language.device
        return nullcontext() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16)

    def _weights(self, merging: Trained) -> nn.ModuleDict:
        """What is trained, float32, before training."""
        parts: dict[str, nn.Module] = {}
        if merging == "single token":
            parts["feature"] = projector_mlp(self.encoders.frame.identity.dimension, self.connector.width)
        else:
            parts["frame"] = deepcopy(self.connector.frame).float()
        if merging == "q-former":
            parts["merge"] = QFormer(self.connector.patch_dim)
        return nn.ModuleDict(parts).to(self.language.device)

    def _visual(self, profile: Profile, merging: Trained, weights: nn.ModuleDict) -> Visual:
        """Tokens by these weights."""
        if merging == "single token":
            return FeatureVisual(profile.dfm, self.encoders, self.connector, weights["feature"])
        connector = deepcopy(self.connector)
        connector.frame = weights["frame"]  # type: ignore[assignment]
        merger: Any = weights["merge"] if merging == "q-former" else _MERGES[merging]
        return build_visual(profile, self.encoders, connector, merger)


class _Examples:
    """Examples by their number: a question, few keyframes so that other frames matter, and some other frames."""

    def __init__(self, models: RowModels, footage: Sequence[AskedCamera], seed: int) -> None:
        self.models, self.seed = models, seed
        self.asked = [(camera, question) for camera, questions in footage for question in questions]

    def __call__(self, number: int) -> MergerExample:
        rng = np.random.default_rng([self.seed, number])
        camera, question = self.asked[rng.integers(len(self.asked))]
        models, window = self.models, camera.window
        query = models.encoders.frame.encode_text([question.text])[0]
        keyframes = select_rows(window.frame_vectors, query, models.profile, k=int(rng.choice(_KS))).rows
        others = np.setdiff1d(np.arange(len(window)), keyframes)
        others = rng.choice(others, min(_OTHERS, len(others)), replace=False)
        rows = np.sort(np.concatenate([keyframes, others]))
        device = models.language.device
        tokenizer = models.language.tokenizer
        prefix, suffix = build_prompt(tokenizer, question.text, question.options)
        answer = tokenizer(question.answer, add_special_tokens=False).input_ids
        return MergerExample(
            frames=Frames(
                keyframe=keyframe_mask(keyframes, len(window))[rows],
                stream_index=window.stream_index[rows],
                captured_at=window.captured_at[rows],
                read=lambda part: torch.from_numpy(np.array(camera.patches[rows[part]])).to(device).float(),
                read_features=lambda part: camera.store.frame_features(window.take(rows[part])),
            ),
            question=question.text,
            prefix=prefix,
            suffix=suffix,
            answer=[*answer, models.language.end_id],
        )
