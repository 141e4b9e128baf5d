"""Answers for the routes of the model service: frame references in, parts of an answer out.

Methods that yield are jobs of `pipeline.service.admission` and run one at a time on its worker thread. Does not know
HTTP; the store is behind the protocol `FrameSource`.
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
from model.answers import GREEDY, Answer, AnswerPiece, Sampling
from pipeline.service.admission import QueuedRequest, RequestCancelled
from pipeline.service.schemas import Budget, ServedProfile, StreamFrames, Usage

__all__ = ["FinishedAnswer", "FrameReferences", "FrameSource", "ServiceEngine", "frame_references"]

_log = structlog.get_logger("sightline.service")
# Messages of a CPU allocator and of CUDA libraries that raise RuntimeError when memory is exhausted.
_OUT_OF_MEMORY_MESSAGES = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed")


@dataclass(frozen=True, slots=True)
class FrameReferences:
    """N frames of a store by stream and time: row i of every array is the same frame.

    The rows are grouped by stream and ascend in time within each stream.
    """

    stream_ids: list[str]
    """The streams."""
    stream_index: NDArray[np.int32]
    """Position of each frame's stream in `stream_ids`, int32[N]."""
    captured_at: NDArray[np.int64]
    """Capture times in UTC microseconds, int64[N]."""
    keyframe: NDArray[np.bool_]
    """Whether each frame is a keyframe, bool[N]."""
    footage_seconds: float | None = None
    """Seconds of footage that the frames were sampled from; None for the seconds that they cover themselves."""

    def __len__(self) -> int:
        return len(self.captured_at)

    @property
    def keyframes(self) -> int:
        """Number of keyframes."""
        return int(np.count_nonzero(self.keyframe))


def frame_references(frames: Sequence[StreamFrames], footage_seconds: float | None = None) -> FrameReferences:
    """The frames that a request refers to, stream by stream in the order of the request."""
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
        footage_seconds,
    )


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


@dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """The last item of an answer's job."""

    answer: Answer
    """The answer of the model."""
    usage: Usage
    """Resources that the question used."""
    rows: FrameReferences
    """Frames that the model read."""
    queue_seconds: float
    """Time in the queue, in seconds."""


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
        """The error that a failed request replies with.

        Running out of memory fails this request only. A CUDA fault fails every later request too, and sets `broken`.
        """
        if isinstance(error, SightlineError | RequestCancelled):
            return error
        if _is_out_of_memory(error):
            if torch.cuda.is_available():
                # Return the memory of this request to the driver, so that it is not fragmented.
                torch.cuda.empty_cache()
            _log.warning("out of memory", error=_first_line(error))
            return OutOfMemory(
                "the question needs more memory than is available; ask about a shorter time, or with fewer keyframes"
            )
        if isinstance(error, getattr(torch, "AcceleratorError", ())):
            self.broken = True  # the CUDA context is lost: /readyz reports it, and a supervisor restarts the service
        _log.error("a request failed", details=mask_url("".join(traceback.format_exception(error))))
        return ModelError("the service failed to process the request; see its log")

    # ---- internals ---------------------------------------------------------------------------------------------

    def _watch_prefill(self) -> None:
        """Check the job before every pass of the language model, so that a long prefill ends if it is cancelled."""
        self.answerer.language.register_forward_pre_hook(lambda: self._job.check() if self._job is not None else None)

    def _limited(self, max_new_tokens: int | None) -> Answerer:
        """The answerer, or a shallow copy with a smaller limit of new tokens."""
        profile = self.answerer.profile
        spec = profile.language_model
        if max_new_tokens is None or max_new_tokens >= spec.max_new_tokens:
            return self.answerer
        shorter = spec.model_copy(update={"max_new_tokens": max_new_tokens})
        limited = copy.copy(self.answerer)
        limited.profile = profile.model_copy(update={"language_model": shorter})
        return limited

    def _count(self, text: str) -> int:
        """Number of tokens of an answer's text, without the token that ends it."""
        return len(self.answerer.language.tokenizer(text, add_special_tokens=False).input_ids)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OUT_OF_MEMORY_MESSAGES)


def _first_line(error: BaseException) -> str:
    return mask_url((str(error).splitlines() or [""])[0])[:500]
