"""One stream of an evaluation's store, in memory, of which questions are asked without the store.

Does not know how keyframes are selected.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from index.store import Store
from index.window import Window
from model.answerer import Answerer, AnswerRequest
from model.answers import Answer
from model.hico.sampling import covered_seconds
from model.selection import keyframe_mask, reading
from model.world.questions import Question

__all__ = ["Camera"]


class Camera:
    """One stream of a store, in memory.

    Args:
        store: the store.
        window: all frames of the stream.
        began: start of the footage, UTC microseconds.

    Attributes:
        patches: its patches, float16[N, M, Dp].
        seconds: time of each frame since the start of the footage, float64[N].
    """

    def __init__(self, store: Store, window: Window, began: int) -> None:
        self.store, self.window, self.patches = store, window, store.patches(window)
        self.seconds = (window.captured_at - began) / 1e6

    def answer(self, answerer: Answerer, question: Question, keyframes: NDArray[np.int64]) -> Answer:
        """Answer a question as `sightline ask` does when these are the keyframes."""
        window = self.window
        room = answerer.max_frames(len(keyframes), question.text, question.options)
        rows = reading(answerer.profile, window.stream_index, window.captured_at, keyframes, room=room)
        return self.answer_from(answerer, question, keyframes, rows)

    def answer_from(
        self, answerer: Answerer, question: Question, keyframes: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Answer:
        """Answer a question from `rows`, of which `keyframes` are keyframes."""
        mask = keyframe_mask(keyframes, len(self.window))
        request = AnswerRequest(
            question=question.text,
            options=question.options,
            stream_index=self.window.stream_index[rows],
            captured_at=self.window.captured_at[rows],
            keyframe=mask[rows],
            read_patches=lambda part, out: np.copyto(out, self.patches[rows[part]]),
            read_features=lambda part: self.store.frame_features(self.window.take(rows[part])),
            footage_seconds=covered_seconds(self.window.captured_at, self.window.stream_index),
        )
        answers = [piece.answer for piece in answerer.answer(request)]
        return cast(Answer, answers[-1])
