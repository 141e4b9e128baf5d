"""The interface between frames and the language model's input: `Frames` in, `PromptPart`s out.

A `Visual` also counts tokens, so that a budget can be checked before anything is read. `model.visual.tokens` builds the
one that a profile names. Does not know the text of prompts or language models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Frames", "PromptPart", "StageTimer", "Visual", "no_timer"]

StageTimer = Callable[[str], AbstractContextManager[None]]
"""Returns a context manager that measures the stage of that name; see `model.stage_clock`."""


def no_timer(name: str) -> AbstractContextManager[None]:
    """The `StageTimer` that measures nothing."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """The N frames of a window; row i of every array is the same frame. Rows of a stream are contiguous and ascend in
    time."""

    keyframe: NDArray[np.bool_]
    """True for keyframes, bool[N]."""
    stream_index: NDArray[np.integer]
    """Which stream a row belongs to, int[N]."""
    captured_at: NDArray[np.int64]
    """Capture times, int64[N], UTC microseconds."""
    read: Callable[[slice], Tensor]
    """Returns the patches of a slice of at most `chunk` rows, [n, M, Dp]."""
    chunk: int = 64
    """Most rows that are read at once."""
    clips: NDArray[np.int64] | None = None
    """Number of the clip of each row, ascending, int64[N]; None for the store's clips. Only HiCo reads clips."""
    read_features: Callable[[slice], NDArray[np.float32]] | None = None
    """Returns the frame encoder's embeddings of a slice of rows, float32[n, Df], not of unit norm; needed for
    `single_token` weights."""
    read_norms: Callable[[slice], Tensor] | None = None
    """Returns `LearnedMerger.norms` of a slice of rows, [n, M, 2]. None to compute them, nine tenths of the merger's
    work."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A stretch of the language model's input."""

    embeddings: Tensor
    """[n, width]."""
    visual: bool = True
    """True for vision tokens; False for text among them (capture times), which is never dropped."""


class Visual(Protocol):
    """Turns frames and a question into embeddings of the language model's width."""

    @property
    def keyframe_tokens(self) -> int:
        """Tokens of one keyframe without its capture time."""

    @property
    def closing_tokens(self) -> int:
        """Tokens after the last frame."""

    def count(self, keyframes: int, frames: int) -> int:
        """Vision tokens of N `frames`, of which K are `keyframes`; the closing ones included, capture times not."""

    def count_times(self, keyframes: int, frames: int) -> int:
        """Most capture times that are written among N `frames`, of which K are `keyframes`."""

    def most_frames(self, room: int, keyframes: int, time_tokens: int) -> int:
        """Most frames, the keyframes included, that need at most `room` tokens.

        Args:
            room: tokens that are free.
            keyframes: K.
            time_tokens: tokens of one capture time; 0 if none are written.

        Raises:
            BudgetExceeded: the keyframes alone need more.
        """

    def preface(self, seconds: float, frames: int) -> str:
        """Text between the vision tokens and the question, about N `frames` of footage of `seconds`; may be empty."""

    def query(self, question: str) -> Tensor:
        """The question in the space where it is compared with patches, [d]."""

    def embeddings(
        self, frames: Frames, query: Tensor, embed_time: Callable[[int], Tensor] | None, stage: StageTimer = no_timer
    ) -> Iterator[PromptPart]:
        """Embeddings in row order, then the closing token if there are frames.

        Args:
            frames: the window.
            query: see `query`.
            embed_time: returns the embeddings of a capture time (UTC microseconds), which precede each keyframe, or
                each clip; None for none.
            stage: measures `dfm` and `projector`.

        Raises:
            UsageError: the rows of a stream are not contiguous, or a shape is invalid.
        """
