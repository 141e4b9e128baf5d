"""Vision tokens of HiCo: every clip's tokens in order, through one connector (VideoChat-Flash, section 3.2).

    rows of the store [N, M, Dp] ─ connector ─▶ M·N tokens; before each clip its capture time, if the profile has them

The store's rows hold the tokens of clips, M = 16 of a whole clip's 64 a row (see `model.encoders.clips`); nothing
is merged at ask time and nothing depends on the question. Does not know how clips are made, or which frames are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from model.encoders.clips import clip_numbers
from model.encoders.encoder import Encoders
from model.profiles.profile import HicoSpec
from model.visual.connector import Connector
from model.visual.interface import Frames, PromptPart, StageTimer, no_timer

__all__ = ["HicoVisual", "duration_sentence"]


def duration_sentence(seconds: float, frames: int) -> str:
    """The sentence between vision tokens and question that says how long the video is (VideoChat-Flash, section 3.3).

    Without it the published weights lose 4 points of mIoU in temporal grounding.
    """
    return f"The video lasts for {seconds:.2f} seconds, and {frames} frames are uniformly sampled from it."


class HicoVisual:
    """The `model.visual.interface.Visual` of a profile with a `hico` section.

    A connector with `relevance` compares tokens with the question, whose vector comes from the patch encoder's text
    tower; any other connector needs no text tower.
    """

    def __init__(self, spec: HicoSpec, encoders: Encoders, connector: Connector) -> None:
        self.connector, self._spec, self._encoders = connector, spec, encoders
        self.keyframe_tokens = encoders.patch.patches
        self.closing_tokens = 0

    def count(self, keyframes: int, frames: int) -> int:
        """M·N: a keyframe has as many tokens as any other frame."""
        return self.keyframe_tokens * frames

    def count_times(self, keyframes: int, frames: int) -> int:
        """N: a clip has at least one frame."""
        return frames

    def most_frames(self, room: int, keyframes: int, time_tokens: int) -> int:
        """See `Visual.most_frames`; keyframes need nothing more than other frames, and are not all read."""
        return max(0, room) // (self.keyframe_tokens + time_tokens)

    def preface(self, seconds: float, frames: int) -> str:
        """`duration_sentence`, unless there are no frames or the profile leaves it out."""
        return duration_sentence(seconds, frames) if frames and self._spec.duration_sentence else ""

    def query(self, question: str) -> Tensor:
        """See `Visual.query`; [0] for a connector that does not compare tokens with the question."""
        if self.connector.relevance is None:
            return torch.zeros(0)
        weight = next(self.connector.keyframe.parameters())
        return torch.from_numpy(self._encoders.patch.encode_text([question])[0]).to(weight.device)

    def embeddings(
        self, frames: Frames, query: Tensor, embed_time: Callable[[int], Tensor] | None, stage: StageTimer = no_timer
    ) -> Iterator[PromptPart]:
        """See `Visual.embeddings`."""
        weight = next(self.connector.keyframe.parameters())
        clips = frames.clips
        if clips is None:
            clips = clip_numbers(frames.captured_at, frames.stream_index, self._spec.clip_frames)
        begins = np.diff(clips, prepend=clips[:1] - 1) != 0
        for first in range(0, len(clips), frames.chunk):
            rows = slice(first, min(first + frames.chunk, len(clips)))
            patches = frames.read(rows)
            with stage("projector"):
                tokens = self.connector.tokens(patches.to(weight.device, weight.dtype), query, keyframe=True)
            if embed_time is None:
                yield PromptPart(tokens.flatten(0, 1))
                continue
            at = 0
            for begin in np.flatnonzero(begins[rows]).tolist():
                if begin > at:
                    yield PromptPart(tokens[at:begin].flatten(0, 1))
                yield PromptPart(embed_time(int(frames.captured_at[first + begin])), visual=False)
                at = begin
            yield PromptPart(tokens[at:].flatten(0, 1))
