"""What a question selects, and what its answer consists of.

`Keyframe` and `Asked` are what users get; `Selection` is what is between selecting and answering. Does not know models
or how a store is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, computed_field

from index.window import Window

__all__ = ["Asked", "Keyframe", "Selection"]


class Keyframe(BaseModel):
    """One keyframe of a question."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream_id: str
    """The stream."""
    captured_at: str
    """Capture time as RFC 3339, UTC."""
    offset_seconds: float
    """Time since the first frame of the footage that the frame belongs to, in seconds."""
    score: float
    """Relevance R_f: cosine of the frame and the question."""
    clock: str | None = None
    """The source of `captured_at`, with the zone that a time in a name was read in, such as `filename
    (Europe/Amsterdam)`; None if the segment is no longer in the store."""


class Asked(BaseModel):
    """An answer, and the frames that it is based on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    question: str
    """The question."""
    answer: str
    """The answer."""
    option: str | None = None
    """The chosen option; None for an open question."""
    probabilities: dict[str, float] = Field(default_factory=dict)
    """Probability of each option; empty for an open question."""
    keyframes: list[Keyframe]
    """The keyframes, stream by stream in the order of time."""
    frames: int
    """Number of frames that the model read, the keyframes included."""
    window_frames: int
    """Number of frames in the window, among which the keyframes were selected."""
    window_streams: int = 1
    """Number of streams with frames in the window."""
    visual_tokens: int
    """Number of tokens that represent the frames."""
    prompt_tokens: int = 0
    """Number of tokens that the model read, those of the frames included."""
    completion_tokens: int = 0
    """Number of tokens of the answer."""
    tau: float | None = None
    """Similarity threshold of the keyframes, τ or the larger one that K of them needed; None for a selector without
    one."""
    timings_seconds: dict[str, float]
    """Time of each stage, and their `total`, in seconds."""
    notices: list[str] = Field(default_factory=list)
    """Remarks that limit the trust in the answer, for the user."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def streams(self) -> dict[str, int]:
        """Number of keyframes of each stream that has any, the most first; of equal numbers, by name."""
        counts = Counter(frame.stream_id for frame in self.keyframes)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, slots=True)
class Selection:
    """The keyframes of a question in a window of N frames."""

    window: Window
    """All frames of the window."""
    keyframes: NDArray[np.int64]
    """Rows of the keyframes in the order of their selection, int64[≤ k]."""
    scores: NDArray[np.float32]
    """Relevance R_f of every frame, float32[N]."""
    timings: dict[str, float]
    """Time of each stage, in seconds."""
    tau: float | None = None
    """The threshold that applied: τ, or the larger one that K keyframes needed; None for a selector without one."""
    distinct: int | None = None
    """Keyframes before gaps were filled; None if none were filled."""
    wanted: int = 0
    """Number of keyframes that were wanted, at most the frames of the window."""

    @property
    def summary(self) -> str:
        """How many keyframes were found, and at which threshold, for the user."""
        found = f"{len(self.keyframes)} keyframes of {len(self.window)} frames"
        return found if self.tau is None else f"{found} at τ = {self.tau:.3g}"

    @property
    def notice(self) -> str | None:
        """A remark for the user if fewer keyframes differ from one another than were wanted; else None."""
        differ = len(self.keyframes) if self.distinct is None else self.distinct
        if self.tau is None or differ >= self.wanted:
            return None
        return (
            f"Only {differ} of {self.wanted} keyframes differ from one another at τ = {self.tau:.3g}: the frames are "
            "alike. --redundancy background compares them without the scene that they share."
        )
