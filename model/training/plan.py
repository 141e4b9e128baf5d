"""What one training run does, as data: where it begins, what it trains and how fast, on which samples.

The three stages of ViLAMP (section A.3) differ in their data: captions, questions about short videos, questions about
longer ones. The rates, the optimiser and the schedule are the same in all three: 2e-6 for the vision encoder, 1e-5 for
the rest, AdamW, cosine with a warm-up of 0.03, one sample at a time and four of them a step, one epoch. How many frames
a video gives is not printed there; the bounds in STAGES are ours, above the average length of each stage's data.
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
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSpec(_Data):
    """A JSON or JSONL file of conversations and which of them to take.

    `sampling_strategy` is `all`, or `first`, `end` or `random`, a colon, and a count or a share: `random:10%`.
    """

    json_path: Path
    sampling_strategy: str = "all"

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
        """How to take how many of `total` samples. A share is rounded up. More than `total` is the caller's to refuse."""
        found = _STRATEGY.fullmatch(self.sampling_strategy)
        if found is None or found["how"] is None:
            return "all", total
        count = int(found["count"])
        return found["how"], -(-total * count // 100) if found["percent"] else count  # type: ignore[return-value]


class TrainingPlan(_Data):
    """One run. Only `data` has to be given; `stage` sets what is not given (see STAGES).

    Attributes:
        profile: what to start from: a shipped profile, or the path of one, such as an earlier stage's.
        stage: 1, 2 or 3.
        data: the datasets, in one list; a path in its place is a YAML file with that list (`datasets: […]`).
        footage: the folder that relative paths of videos and images start from; None for the folder of each JSON file.
        fps: frames a second of stream time.
        max_frames: most frames of a video; a longer one is thinned evenly.
        keyframes: K; None for the profile's. A sample's own `max_frame_num` comes first.
        learning_rates: of each component; what is not named has the paper's.
        freeze: components that stay as they are. CLIP and the text tower of the patch encoder always do.
        accumulation: samples that each process adds up before one step of the optimiser.
        warm_up: share of the steps in which the rates rise from 0.
        epochs, steps: how long; `steps` of the optimiser comes first. Samples that do not fill a last step are left out.
        weight_decay: of matrices; vectors have none.
        max_norm: the length that a longer gradient is cut to.
        precision: of the encoder and the language model in training; `auto` is bf16 on a GPU that has it. Weights, DFM
            and connector are float32.
        gradient_checkpointing: compute activations twice rather than keep them.
        workers: processes that decode samples ahead; 0 for none.
        save_every, keep: steps between two checkpoints, and how many of them are kept.
        cache: a folder for what the frozen encoders gave for each video; None to encode anew each time.
    """

    profile: str = "micro"
    stage: Literal[1, 2, 3] = 2
    data: tuple[DatasetSpec, ...] = Field(min_length=1)
    footage: Path | None = None
    fps: float = Field(default=1.0, gt=0, le=1000)
    max_frames: int = Field(gt=0)
    keyframes: int | None = Field(default=None, gt=0)
    learning_rates: dict[Component, float] = {}
    freeze: frozenset[Component] = frozenset()
    accumulation: int = Field(default=4, gt=0)
    warm_up: float = Field(default=0.03, ge=0, le=1)
    epochs: int = Field(default=1, gt=0)
    steps: int | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_norm: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = True
    workers: int = Field(default=2, ge=0, le=64)
    save_every: int = Field(default=500, gt=0)
    keep: int = Field(default=2, gt=0)
    cache: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _stage_first(cls, values: Any) -> Any:
        """What the stage sets and the plan does not."""
        if not isinstance(values, dict):
            return values
        stage = values.get("stage", 2)
        return {**(STAGES.get(stage, {}) if isinstance(stage, int) else {}), **values}

    @model_validator(mode="after")
    def _rates_are_used(self) -> Self:
        for name, rate in self.learning_rates.items():
            if not 0 < rate < 1:
                raise ValueError(
                    f"learning_rates.{name} must lie between 0 and 1, got {rate}; freeze it to keep it still"
                )
            if name in self.freeze:
                raise ValueError(f"{name} has a learning rate and is frozen; leave one of the two out")
        return self

    def rate(self, component: Component) -> float:
        """The learning rate of a component that is not frozen."""
        return self.learning_rates.get(component, 2e-6 if component == "vision_encoder" else 1e-5)
