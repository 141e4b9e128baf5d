"""Loading of a profile's language model in the engine that the profile names."""

from __future__ import annotations

import torch

from model.language.engine import LanguageModel
from model.language.transformers_engine import load_transformers
from model.language.vllm_engine import load_vllm
from model.profiles.profile import LanguageModelSpec

__all__ = ["load_language"]


def load_language(spec: LanguageModelSpec, device: torch.device) -> LanguageModel:
    """Load the language model of a profile on `device`.

    Raises:
        WeightsNotFound, WeightsInvalid: see `model.language.qwen2.load_qwen2`.
        EngineMissing, ModelError: see `model.language.vllm_engine.load_vllm`.
    """
    return load_vllm(spec, device) if spec.engine == "vllm" else load_transformers(spec, device)
