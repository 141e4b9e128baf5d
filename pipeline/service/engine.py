"""Answers for the routes of the model service: frame references in, parts of an answer out.

Methods that yield are jobs of `pipeline.service.admission` and run one at a time on its worker thread. Does not know
HTTP; the store is behind the protocol `FrameSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index.errors import BudgetExceeded, ModelError
from model.answerer import Answerer, AnswerRequest
from model.answers import GREEDY, AnswerPiece, Sampling
from pipeline.service.admission import QueuedRequest
from pipeline.service.answers.failures import failure_of
from pipeline.service.answers.finished import FinishedAnswer, FrameReferences
from pipeline.service.schemas import Budget, ServedProfile, Usage

__all__ = ["FrameSource", "ServiceEngine"]


class FrameSource(Protocol):
    """The store, as the service uses it: one request at a time, except that another thread may call `patches`."""

    def patches(self, rows: FrameReferences, part: slice, out: NDArray[np.float16]) -> None:
        """Read the patches of the rows `part` into `out`, float16[n, M, Dp].

        Raises:
            UnknownFrame: the store has no such frame.
            StoreError: the store is not readable.
        """

    def features(self, rows: FrameReferences, part: slice) -> NDArray[np.float32]:
        """Embeddings of the frame encoder for the rows `part`, float32[n, Df], not of unit norm. Raises as `patches`,
        and UsageError if the store lacks their norms."""

    def choose(
        self,
        question: str,
        *,
        streams: Sequence[str] | None,
        start: str | None,
        end: str | None,
        k: int | None,
        tau: float | None,
        max_frames: Callable[[int], int],
    ) -> FrameReferences:
        """Select keyframes (DKS) in a window, and an even selection of the other frames.

        Args:
            question: the question.
            streams: stream ids; all streams if None.
            start, end: the window as RFC 3339, `end` exclusive.
            k, tau: parameters of DKS; the profile's if None.
            max_frames: returns the largest number of frames, the keyframes included, for a number of keyframes.

        Raises:
            UsageError, UnknownStream, EmptyWindow.
        """


class ServiceEngine:
    """One answerer over one store. Methods that yield are jobs; the others may be called from any thread.

    After a CUDA fault `broken` is True: the process cannot use the GPU again and must be restarted.
    """

    def __init__(self, answerer: Answerer, store: FrameSource) -> None:
        self.answerer, self.store = answerer, store
        self.broken = False
        self._job: QueuedRequest | None = None
        self._watch_prefill()

    @property
    def profile(self) -> ServedProfile:
        """The profile, as the reply of `GET /v1/profile`."""
        profile = self.answerer.profile
        return ServedProfile(
            name=profile.name,
            notice=self.answerer.notice,
            k=profile.k,
            tau=profile.tau,
            selector=profile.selector,
            redundancy=profile.redundancy,
            max_frames=profile.max_frames,
            dfm=profile.dfm,
            hico=profile.hico,
            encoders=self.answerer.encoders.pair,
        )

    def budget(self, question: str, options: Sequence[str], keyframes: int) -> Budget:
        """Raises BudgetExceeded: the keyframes alone are too many."""
        return Budget(
            max_frames=self.answerer.max_frames(keyframes, question, tuple(options)),
            unknown_words=self.answerer.unknown_words(question),
        )

    def check(self, rows: FrameReferences, question: str, options: Sequence[str]) -> None:
        """Check that the frames fit the model, before anything is read. Raises BudgetExceeded."""
        limit = self.answerer.profile.max_frames
        if len(rows) > limit:
            raise BudgetExceeded(
                f"the question has {len(rows)} frames, the {self.answerer.profile.name} profile reads at most {limit}; "
                "leave frames out evenly"
            )
        self.answerer.check_budget(
            keyframes=rows.keyframes, frames=len(rows), question=question, options=tuple(options)
        )

    def answer(
        self,
        job: QueuedRequest,
        question: str,
        options: Sequence[str],
        rows: FrameReferences,
        max_new_tokens: int | None,
        sampling: Sampling = GREEDY,
    ) -> Iterator[str | FinishedAnswer]:
        """Yield the text as it is decoded, then one `FinishedAnswer`. Raises as `Answerer.answer` and `FrameSource`."""
        read = 0

        def read_patches(part: slice, out: NDArray[np.float16]) -> None:
            """Read patches from the store, if the job may continue."""
            nonlocal read
            job.check()
            self.store.patches(rows, part, out)
            read += out.nbytes

        longest = self.answerer.profile.language_model.max_new_tokens  # clients may shorten an answer only
        request = AnswerRequest(
            question=question,
            options=tuple(options),
            stream_index=rows.stream_index,
            captured_at=rows.captured_at,
            keyframe=rows.keyframe,
            read_patches=read_patches,
            read_features=lambda part: self.store.features(rows, part),
            footage_seconds=rows.footage_seconds,
            sampling=sampling,
            max_new_tokens=None if max_new_tokens is None else min(max_new_tokens, longest),
        )
        self._job = job
        try:
            last: AnswerPiece | None = None
            for last in self.answerer.answer(request):
                if last.text:
                    yield last.text
            if last is None or last.answer is None:
                raise ModelError(f"the {self.answerer.profile.name} profile gave no answer")
            answer = last.answer
            usage = Usage(
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=answer.completion_tokens,
                visual_tokens=answer.visual_tokens,
                frames=len(rows),
                keyframes=rows.keyframes,
                patch_bytes=read,
            )
            yield FinishedAnswer(answer, usage, rows, job.waited)
        finally:
            self._job = None

    def answer_about(
        self,
        job: QueuedRequest,
        question: str,
        options: Sequence[str],
        max_new_tokens: int | None,
        where: dict[str, Any],
        sampling: Sampling = GREEDY,
    ) -> Iterator[str | FinishedAnswer]:
        """As `answer`, for frames that the service selects; `where` holds arguments of `FrameSource.choose`."""
        rows = self.store.choose(
            question, max_frames=lambda k: self.answerer.max_frames(k, question, tuple(options)), **where
        )
        job.check()
        self.check(rows, question, options)
        yield from self.answer(job, question, options, rows, max_new_tokens, sampling)

    def embed(self, texts: Sequence[str], encoder: Literal["frame", "patch"]) -> Iterator[NDArray[np.float32]]:
        """Yield one array of text vectors, float32[n, D] of unit norm."""
        yield getattr(self.answerer.encoders, encoder).encode_text(list(texts))

    def translate_error(self, error: Exception) -> Exception:
        """The error that a failed request replies with, see `failure_of`. A CUDA fault also sets `broken`."""
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            self.broken = True  # the CUDA context is lost: /readyz reports it, and a supervisor restarts the service
        return failure_of(error)

    # ---- internals ---------------------------------------------------------------------------------------------

    def _watch_prefill(self) -> None:
        """Check the job before every pass of the language model, so that a long prefill ends if it is cancelled."""
        self.answerer.language.register_forward_pre_hook(lambda: self._job.check() if self._job is not None else None)
