"""The work behind the routes: frame references in, pieces of an answer out, one job at a time on the worker's thread.

Does not know HTTP. The store is behind `FrameSource`, which whoever starts the service hands in.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from index.errors import BudgetExceeded, ModelError, OutOfMemory, SightlineError, mask_url
from model.answerer import Answerer, AnswerRequest
from model.answers import Answer, AnswerPiece
from pipeline.service.admission import QueuedRequest, RequestCancelled
from pipeline.service.schemas import Budget, ServedProfile, StreamFrames, Usage

__all__ = ["FinishedAnswer", "FrameReferences", "FrameSource", "ServiceEngine", "frame_references"]

_log = structlog.get_logger("sightline.service")
# What a CPU allocator and some CUDA libraries say in a plain RuntimeError.
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed")


@dataclass(frozen=True, slots=True)
class FrameReferences:
    """Frames by name; row i of every array is the same frame, grouped by stream and ascending in time inside each.

    Shapes: stream_index int32[N] into `stream_ids`, captured_at int64[N] (UTC microseconds), keyframe bool[N].
    """

    stream_ids: list[str]
    stream_index: NDArray[np.int32]
    captured_at: NDArray[np.int64]
    keyframe: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.captured_at)

    @property
    def keyframes(self) -> int:
        return int(np.count_nonzero(self.keyframe))


def frame_references(frames: Sequence[StreamFrames]) -> FrameReferences:
    """The rows that a request names, stream by stream in its order."""
    index = [np.full(len(part.captured_at), i, np.int32) for i, part in enumerate(frames)]
    times = [np.asarray(part.captured_at, np.int64) for part in frames]
    masks = [np.zeros(len(part.captured_at), np.bool_) for part in frames]
    for mask, part in zip(masks, frames, strict=True):
        mask[part.keyframes] = True
    return FrameReferences(
        [part.stream_id for part in frames],
        np.concatenate([np.zeros(0, np.int32), *index]),
        np.concatenate([np.zeros(0, np.int64), *times]),
        np.concatenate([np.zeros(0, np.bool_), *masks]),
    )


class FrameSource(Protocol):
    """The store, as far as the service needs it. For one request at a time, but `patches` in a thread of its own."""

    def patches(self, rows: FrameReferences, part: slice, out: NDArray[np.float16]) -> None:
        """Fill float16[n, M, Dp] with the rows of `part`.

        Raises:
            UnknownFrame: the store holds no such frame.
            StoreError: it cannot be read.
        """

    def vectors(self, rows: FrameReferences, part: slice) -> NDArray[np.float32]:
        """The frame encoder's float32[n, Df] of the rows of `part`. Raises as `patches`."""

    def choose(
        self,
        question: str,
        *,
        streams: Sequence[str] | None,
        start: str | None,
        end: str | None,
        k: int | None,
        tau: float | None,
        most: Callable[[int], int],
    ) -> FrameReferences:
        """Keyframes by DKS over a window, and the other frames, `most(keyframes)` at most in all. Times are RFC 3339.

        Raises:
            UsageError, UnknownStream, EmptyWindow.
        """


@dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """The end of an answer: what the model said of it, what it took, and the rows it was read from."""

    answer: Answer
    usage: Usage
    rows: FrameReferences
    queue_seconds: float


class ServiceEngine:
    """One answerer over one store. Every method that yields is the work of a job; the others may be called anywhere."""

    def __init__(self, answerer: Answerer, store: FrameSource) -> None:
        self.answerer, self.store = answerer, store
        self.broken = False
        self._job: QueuedRequest | None = None
        self._watch_prefill()

    @property
    def profile(self) -> ServedProfile:
        profile = self.answerer.profile
        return ServedProfile(
            name=profile.name,
            notice=self.answerer.notice,
            k=profile.k,
            tau=profile.tau,
            max_frames=profile.max_frames,
            dfm=profile.dfm,
            encoders=self.answerer.encoders.pair,
        )

    def budget(self, question: str, options: Sequence[str], keyframes: int) -> Budget:
        """Raises BudgetExceeded: the keyframes alone are too many."""
        return Budget(
            max_frames=self.answerer.max_frames(keyframes, question, tuple(options)),
            unknown_words=self.answerer.unknown_words(question),
        )

    def check(self, rows: FrameReferences, question: str, options: Sequence[str]) -> None:
        """Refuse before anything is read what cannot fit. Raises BudgetExceeded, with the numbers in its message."""
        most = self.answerer.profile.max_frames
        if len(rows) > most:
            raise BudgetExceeded(
                f"{len(rows)} frames were named, the {self.answerer.profile.name} profile reads {most} at most; "
                "leave some out evenly"
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
    ) -> Iterator[str | FinishedAnswer]:
        """Texts as they are decoded, then one `FinishedAnswer`. Raises what `Answerer.answer` and the store raise."""
        read = 0

        def read_patches(part: slice, out: NDArray[np.float16]) -> None:
            nonlocal read
            job.check()
            self.store.patches(rows, part, out)
            read += out.nbytes

        request = AnswerRequest(
            question=question,
            options=tuple(options),
            stream_index=rows.stream_index,
            captured_at=rows.captured_at,
            keyframe=rows.keyframe,
            read_patches=read_patches,
            read_vectors=lambda part: self.store.vectors(rows, part),
        )
        self._job = job
        try:
            last: AnswerPiece | None = None
            for last in self._limited(max_new_tokens).answer(request):
                if last.text:
                    yield last.text
            if last is None or last.answer is None:
                raise ModelError(f"the {self.answerer.profile.name} profile gave no answer")
            answer = last.answer
            usage = Usage(
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=self._count(answer.text),
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
    ) -> Iterator[str | FinishedAnswer]:
        """As `answer`, with the frames chosen here; `where` as in `FrameSource.choose`."""
        rows = self.store.choose(
            question, most=lambda k: self.answerer.max_frames(k, question, tuple(options)), **where
        )
        job.check()
        self.check(rows, question, options)
        yield from self.answer(job, question, options, rows, max_new_tokens)

    def embed(self, texts: Sequence[str], encoder: Literal["frame", "patch"]) -> Iterator[NDArray[np.float32]]:
        """One array float32[n, D] of unit norm."""
        yield getattr(self.answerer.encoders, encoder).encode_text(list(texts))

    def translate_error(self, error: Exception) -> Exception:
        """What the owner of a failed job is told. Memory that ran out is one request's error; a GPU that broke is all's."""
        if isinstance(error, SightlineError | RequestCancelled):
            return error
        if _is_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what this request had taken goes back whole, not in its own pieces
            _log.warning("out of memory", error=_first_line(error))
            return OutOfMemory(
                "this question needed more memory than there was; ask about a shorter time, or for fewer keyframes"
            )
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            self.broken = True  # a CUDA context does not recover from this; /readyz says so and a supervisor restarts
        _log.error("a request failed", details=mask_url("".join(traceback.format_exception(error))))
        return ModelError("the service failed to process the request; see its log")

    # ---- ourselves ---------------------------------------------------------------------------------------------

    def _watch_prefill(self) -> None:
        """Ask the job before every pass through the language model, so that a long prefill ends when nobody waits."""
        self.answerer.language.register_forward_pre_hook(lambda: self._job.check() if self._job is not None else None)

    def _limited(self, max_new_tokens: int | None) -> Answerer:
        """The answerer, or a shallow copy of it whose answers end earlier."""
        profile = self.answerer.profile
        spec = profile.language_model
        if max_new_tokens is None or max_new_tokens >= spec.max_new_tokens:
            return self.answerer
        shorter = spec.model_copy(update={"max_new_tokens": max_new_tokens})
        limited = copy.copy(self.answerer)
        limited.profile = profile.model_copy(update={"language_model": shorter})
        return limited

    def _count(self, text: str) -> int:
        """Tokens of an answer: its text as the tokenizer writes it, without the end of the turn."""
        return len(self.answerer.language.tokenizer(text, add_special_tokens=False).input_ids)


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY_WORDS)


def _first_line(error: BaseException) -> str:
    return mask_url((str(error).splitlines() or [""])[0])[:500]
