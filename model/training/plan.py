"""The plan of a training run, as data: initial weights, trained components, learning rates, samples.

The three stages of ViLAMP (section A.3) differ in their data: captions, questions about short videos, questions about
longer videos. Rates, optimiser and schedule are the same in all three: 2e-6 for the vision encoder, 1e-5 for the rest,
AdamW, cosine with a warm-up of 0.03, four samples a step, one epoch. The paper does not state the frames of a video;
the bounds in STAGES are this project's, above the average length of each stage's data.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = ["COMPONENTS", "STAGES", "Component", "DatasetSpec", "TrainingPlan"]

Component = Literal["vision_encoder", "mlp_k", "mlp_n", "merger", "relevance", "newline", "language_model"]
COMPONENTS: tuple[Component, ...] = (
    "vision_encoder",
    "mlp_k",
    "mlp_n",
    "merger",
    "relevance",
    "newline",
    "language_model",
)
STAGES: dict[int, dict[str, Any]] = {
    1: {"max_frames": 64},
    2: {"max_frames": 256},
    3: {"max_frames": 1024},
}
_STRATEGY = re.compile(r"all|(?P<how>first|end|random):(?P<count>\d+)(?P<percent>%?)")


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DatasetSpec(_Data):
    """A JSON or JSONL file of conversations, and which of them are used."""

    json_path: Path
    """The file."""
    sampling_strategy: str = "all"
    """`all`, or `first`, `end` or `random`, a colon, and a number or a share: `random:10%`."""

    @field_validator("sampling_strategy")
    @classmethod
    def _known(cls, value: str) -> str:
        found = _STRATEGY.fullmatch(value)
        if found is None:
            raise ValueError(f"{value!r} is not a sampling strategy; give all, first:N, end:N or random:N (N or N%)")
        if found["count"] and int(found["count"]) == 0:
            raise ValueError(f"{value!r} takes nothing; leave the dataset out")
        if found["percent"] and int(found["count"]) > 100:
            raise ValueError(f"{value!r} is more than all; give at most 100%")
        return value

    def take(self, total: int) -> tuple[Literal["all", "first", "end", "random"], int]:
        """How many of `total` samples are used, and which. A share is rounded up; the caller rejects more than
        `total`."""
        found = _STRATEGY.fullmatch(self.sampling_strategy)
        if found is None or found["how"] is None:
            return "all", total
        count = int(found["count"])
        return found["how"], -(-total * count // 100) if found["percent"] else count  # type: ignore[return-value]


class TrainingPlan(_Data):
    """A training run. Only `data` is required; `stage` gives other defaults (see STAGES)."""

    profile: str = "micro"
    """Initial weights: a shipped profile, or the path of a profile, such as an earlier stage's."""
    stage: Literal[1, 2, 3] = 2
    """Stage of ViLAMP's training."""
    data: tuple[DatasetSpec, ...] = Field(min_length=1)
    """The datasets, in one list; a path in its place is a YAML file with that list (`datasets: […]`)."""
    footage: Path | None = None
    """Folder that relative paths of videos and images start from; None for the folder of each JSON file."""
    fps: float = Field(default=1.0, gt=0, le=1000)
    """Frames per second of stream time."""
    max_frames: int = Field(gt=0)
    """Most frames of a video; a longer one is thinned evenly."""
    keyframes: int | None = Field(default=None, gt=0)
    """K; None for the profile's. A sample's own `max_frame_num` has precedence."""
    learning_rates: dict[Component, float] = {}
    """Learning rate of each component; those not named have the paper's."""
    freeze: frozenset[Component] = frozenset()
    """Components that are not trained. CLIP and the text tower of the patch encoder never are."""
    accumulation: int = Field(default=4, gt=0)
    """Samples that each process adds up before one optimiser step."""
    warm_up: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps in which the rates rise from 0."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the data. Samples that do not fill a last step are omitted."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps; has precedence over `epochs`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of matrices; vectors have none."""
    max_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a larger one is scaled down."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of samples."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of encoder and language model; `auto` is bfloat16 on a GPU that supports it. Weights, DFM and connector
    are float32."""
    gradient_checkpointing: bool = True
    """Compute activations twice instead of keeping them."""
    workers: int = Field(default=2, ge=0, le=64)
    """Processes that decode samples ahead; 0 for none."""
    save_every: int = Field(default=500, gt=0)
    """Steps between two checkpoints."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints that are kept."""
    cache: Path | None = None
    """Folder for the outputs of the frozen encoders for each video; None to encode each time."""

    @model_validator(mode="before")
    @classmethod
    def _stage_first(cls, values: Any) -> Any:
        """Add the settings of the stage that the plan does not set."""
        if not isinstance(values, dict):
            return values
        stage = values.get("stage", 2)
        return {**(STAGES.get(stage, {}) if isinstance(stage, int) else {}), **values}

    @model_validator(mode="after")
    def _rates_are_used(self) -> Self:
        for name, rate in self.learning_rates.items():
            if not 0 < rate < 1:
                raise ValueError(
                    f"learning_rates.{name} must lie between 0 and 1, got {rate}; freeze the component to leave it "
                    "unchanged"
                )
            if name in self.freeze:
                raise ValueError(f"{name} has a learning rate and is frozen; leave one of the two out")
        return self

    def rate(self, component: Component) -> float:
        """Learning rate of a component that is not frozen."""
        return self.learning_rates.get(component, 2e-6 if component == "vision_encoder" else 1e-5)
