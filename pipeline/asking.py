"""A question over the store: keyframes by DKS, everything else thinned only where it must be, then the model.

    question ─CLIP text─▶ DKS over every frame of the window ─▶ rows ─patches─▶ DFM, prefill, answer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from index.errors import UsageError
from index.records import parse_rfc3339, rfc3339, to_micros

if TYPE_CHECKING:
    from index.store import Store
    from index.window import Window
    from model.answerer import Answerer
    from model.encoders import Encoders

__all__ = ["Asked", "Asker", "Keyframe", "ask", "choose_rows", "moment"]

MAX_FRAMES = 10_000
Moment = datetime | str | int


class Keyframe(BaseModel):
    """One keyframe: when it was captured (RFC 3339 UTC), how far into its stream's footage, and R_f."""

    stream_id: str
    captured_at: str
    offset_seconds: float
    score: float


class Asked(BaseModel):
    """The answer with what it rests on; `frames` is what the model read, `option` the chosen option's text."""

    question: str
    answer: str
    option: str | None = None
    probabilities: dict[str, float] = Field(default_factory=dict)
    keyframes: list[Keyframe]
    frames: int
    window_frames: int
    visual_tokens: int
    timings_seconds: dict[str, float]
    notices: list[str] = Field(default_factory=list)


def moment(value: Moment | None, name: str = "time") -> int | None:
    """UTC microseconds of a datetime with a zone, RFC 3339 text, or microseconds.

    Raises:
        UsageError: it names no time zone or is no time.
    """
    if value is None or isinstance(value, int):
        return value
    try:
        return parse_rfc3339(value) if isinstance(value, str) else to_micros(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def choose_rows(n: int, keyframes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Ascending rows of at most `most` frames of `n`: every keyframe, and of the others an even selection."""
    if n <= most:
        return np.arange(n)
    others = np.setdiff1d(np.arange(n), keyframes, assume_unique=True)
    count = max(0, most - len(keyframes))
    picked = others[((2 * np.arange(count) + 1) * len(others)) // (2 * max(1, count))]
    return np.sort(np.concatenate([keyframes, picked]))


@dataclass(frozen=True, slots=True)
class Selection:
    """DKS over one window: rows of keyframes in the order of selection, R_f of every row, the query, what it took."""

    window: Window
    keyframes: NDArray[np.int64]
    scores: NDArray[np.float32]
    timings: dict[str, float]

    def listed(self, origins: dict[str, int]) -> list[Keyframe]:
        """In temporal order, streams together; `origins` is each stream's first frame in UTC microseconds."""
        window = self.window
        result = []
        for row in np.sort(self.keyframes):
            name = window.stream_ids[window.stream_index[row]]
            at = int(window.captured_at[row])
            offset = round((at - origins[name]) / 1e6, 6)
            result.append(Keyframe(stream_id=name, captured_at=rfc3339(at), offset_seconds=offset, score=float(self.scores[row])))
        return result


class Asker:
    """A store and a profile, loaded once for any number of questions.

    Raises:
        StoreNotFound, StoreVersion, IdentityMismatch: the store, or that the profile is not the one that wrote it.
        ProfileInvalid, WeightsNotFound, WeightsInvalid: the profile.
    """

    def __init__(self, store: Store | str | Path, profile: str | Path = "micro", device: str | None = None) -> None:
        from index.store import Store as StoreClass
        from model.encoders import load_encoders
        from model.profiles import load_profile

        opened = StoreClass.open(store) if isinstance(store, str | Path) else store
        self.profile = load_profile(str(profile))
        self.device = device
        self.encoders: Encoders = load_encoders(self.profile, device)
        self.store: Store = StoreClass.open(opened.url, encoders=self.encoders.pair)
        self._answerer: Answerer | None = None

    @property
    def answerer(self) -> Answerer:
        """Connector and language model, loaded when the first question needs them."""
        if self._answerer is None:
            from model.answerer import load_answerer

            self._answerer = load_answerer(self.profile, self.encoders, self.device)
        return self._answerer

    def select(
        self,
        question: str,
        *,
        streams: Sequence[str] | None = None,
        start: Moment | None = None,
        end: Moment | None = None,
        k: int | None = None,
        tau: float | None = None,
        fill: bool = False,
    ) -> Selection:
        """DKS alone. Raises UsageError, UnknownStream, EmptyWindow."""
        from index.keyframes import relevance, select_keyframes

        if not question.strip():
            raise UsageError("the question is empty; type what you want to know")
        k = self.profile.k if k is None else k
        tau = self.profile.tau if tau is None else tau
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        if not -1.0 < tau <= 1.0:
            raise UsageError(f"tau must lie above −1 and be at most 1, got {tau}")
        since = perf_counter()
        window = self.store.window(streams, moment(start, "from"), moment(end, "to"))
        timings = {"window": perf_counter() - since}
        since = perf_counter()
        query = self.encoders.frame.encode_text([question])[0]
        timings["text"] = perf_counter() - since
        since = perf_counter()
        keyframes = select_keyframes(window.frame_vectors, query, k=k, tau=tau, fill=fill)
        scores = relevance(window.frame_vectors, query)
        timings["dks"] = perf_counter() - since
        return Selection(window, keyframes, scores, timings)

    def keyframes(self, question: str, **where: Any) -> list[Keyframe]:
        """What `select` chose, in temporal order."""
        return self.select(question, **where).listed(self._origins())

    def _origins(self) -> dict[str, int]:
        return {s.stream_id: s.first for s in self.store.streams()}

    def ask(
        self,
        question: str,
        *,
        options: Sequence[str] | None = None,
        max_frames: int | None = None,
        on_text: Callable[[str], None] = lambda _: None,
        **where: Any,
    ) -> Asked:
        """Answer `question`; `on_text` gets the answer piece by piece. `where` is as in `select`.

        Raises:
            UsageError, UnknownStream, EmptyWindow, BudgetExceeded.
        """
        from model.answerer import AnswerRequest

        began = perf_counter()
        if max_frames is not None and max_frames < 1:
            raise UsageError(f"--max-frames must be at least 1, got {max_frames}")
        choices = tuple(options or ())
        if len(set(choices)) != len(choices):
            raise UsageError("two options are the same; give each only once")
        selection = self.select(question, **where)
        answerer, window = self.answerer, selection.window
        count = len(selection.keyframes)
        most = min(max_frames or MAX_FRAMES, answerer.max_frames(count, question, choices))
        if most < count:
            raise UsageError(f"--max-frames {most} is less than the {count} keyframes; lower --k too")
        rows = choose_rows(len(window), selection.keyframes, most)
        read = window if len(rows) == len(window) else window.take(rows)
        mask = np.zeros(len(window), bool)
        mask[selection.keyframes] = True
        notices = self._notices(question, len(window), len(rows))
        since = perf_counter()
        patches = self.store.patches(read)
        timings = {**selection.timings, "patches": perf_counter() - since}
        request = AnswerRequest(
            question=question,
            options=choices,
            stream_index=read.stream_index,
            captured_at=read.captured_at,
            keyframe=mask[rows],
            read_patches=lambda part: patches[part],
        )
        answer = None
        for piece in answerer.answer(request):
            if piece.text:
                on_text(piece.text)
            answer = piece.answer or answer
        assert answer is not None  # the last piece always carries it
        for stage, seconds in answer.timings.items():
            timings[stage] = timings.get(stage, 0.0) + seconds
        timings["total"] = perf_counter() - began
        return Asked(
            question=question,
            answer=answer.text,
            option=None if answer.option is None else choices[answer.option],
            probabilities=dict(zip(choices, answer.probabilities, strict=True)) if choices else {},
            keyframes=selection.listed(self._origins()),
            frames=len(rows),
            window_frames=len(window),
            visual_tokens=answer.visual_tokens,
            timings_seconds={name: round(seconds, 6) for name, seconds in timings.items()},
            notices=notices,
        )

    def _notices(self, question: str, frames: int, read: int) -> list[str]:
        notices = [self.answerer.notice] if self.answerer.notice else []
        unknown = self.answerer.unknown_words(question)
        if unknown:
            notices.append(f"The {self.profile.name} profile does not know the word{'s' * (len(unknown) > 1)} {', '.join(unknown)}.")
        if read < frames:
            notices.append(
                f"Keyframes were chosen among all {frames} frames; of the others every {frames / read:.1f}th or so was read, "
                f"{read} frames in all."
            )
        return notices


def ask(
    question: str,
    *,
    store: Store | str | Path,
    streams: Sequence[str] | None = None,
    start: Moment | None = None,
    end: Moment | None = None,
    options: Sequence[str] | None = None,
    k: int = 32,
    tau: float = 0.85,
    fill: bool = False,
    max_frames: int | None = None,
    profile: str | Path = "micro",
    device: str | None = None,
) -> Asked:
    """One question over a store; use `Asker` for several, which loads the models once.

    Args:
        store: an open store, its URL or its path.
        streams: stream ids, all when None.
        start, end: UTC times (datetime with a zone, or RFC 3339); the end is exclusive.
        options: answers to choose from; an open question when None.
        k, tau: keyframes (Algorithm 1). fill: fill gaps until there are min(k, N) keyframes.
        max_frames: most frames to read, 10,000 or the profile's budget when None.

    Raises:
        UsageError, StoreError, ModelError: see `index.errors`.
    """
    asker = Asker(store, profile, device)
    return asker.ask(
        question, options=options, max_frames=max_frames, streams=streams, start=start, end=end, k=k, tau=tau, fill=fill
    )
