"""Questions over a store: select keyframes, read the frames, let the model answer.

    question ─ text encoder ─▶ DKS over all frames of the window ─▶ frames to read ─ patches ─▶ DFM, prefill, answer

All frames of the window are read unless the model cannot hold them; then every keyframe and an even selection of the
others. The models run in this process, or in a model service. Does not know how they work, nor the layout of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from index.errors import IdentityMismatch, ModelError, UsageError, mask_url
from index.keyframes import relevance
from index.maintenance.imports import encoders_to_search
from index.records import Time, parse_time, rfc3339
from index.selectors.registry import SelectorName
from index.selectors.selector import Redundancy
from index.store import Store
from index.window import Window
from model.answers import GREEDY, Sampling
from model.encoders.encoder import Encoders, load_encoders
from model.hico.sampling import covered_seconds
from model.profiles.profile import Profile, load_profile
from model.selection import check_selection, even_rows, keyframe_mask, reading, select_large, select_rows
from model.vocabulary import unknown_words_notice
from pipeline.questions.asked import Asked, Keyframe, Selection
from pipeline.questions.footage_starts import FootageStarts
from pipeline.questions.short_windows import ReadAgain, read_again

if TYPE_CHECKING:
    from model.answerer import Answerer
    from model.answers import AnswerPiece
    from pipeline.media.footage import FootageFinder
    from pipeline.service.client import ServiceClient
    from pipeline.service.schemas import ServedProfile

__all__ = [
    "WINDOW_BYTES",
    "Asked",
    "Asker",
    "Keyframe",
    "Selection",
    "ask",
    "check_reading",
]


WINDOW_BYTES = 2**30
"""Default of `window_bytes`: the vectors of 524,288 frames of 512 dimensions, six days of a stream."""


class _Rule(TypedDict):
    """Arguments of `model.selection.select_rows` that replace settings of the profile."""

    k: int | None
    tau: float | None
    fill: bool
    selector: SelectorName | None
    redundancy: Redundancy | None


def check_reading(options: Sequence[str] | None, max_frames: int | None) -> None:
    """Check the arguments of an answer before anything is loaded; see also `model.selection.check_selection`.

    Raises:
        UsageError: `max_frames` is below 1, or an option is empty or given twice.
    """
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"--max-frames must be at least 1, got {max_frames}")
    if not all(option.strip() for option in options or ()):
        raise UsageError("an option is empty; give every --option a text")
    if len(set(options or ())) != len(options or ()):
        raise UsageError("two options are the same; give each only once")


def _forward_text(pieces: Iterable[AnswerPiece], on_text: Callable[[str], None]) -> Iterator[AnswerPiece]:
    """Yield `pieces`, and call `on_text` with the text of each."""
    for piece in pieces:
        if piece.text:
            on_text(piece.text)
        yield piece


class Asker:
    """Answers questions over one store with one model profile; loads the models once.

    Args:
        store: an open store, or the URL or path of one.
        profile: name of a model profile, or the path of its TOML file.
        device: device of the models, such as "cpu" or "cuda"; a GPU if there is one if None.
        service: a model service that runs the models; `profile` and `device` are ignored then, and no model is loaded.
        footage: finds the footage that a profile of clips reads again where a window is short; None to read the store
            alone.
        window_bytes: most bytes of frame vectors that are held in memory; a window with more is read in parts, with the
            same keyframes.

    Raises:
        StoreNotFound, StoreVersion: the store cannot be opened.
        IdentityMismatch: the store was written with other encoders than those of the profile.
        ProfileInvalid, WeightsNotFound, WeightsInvalid: the profile cannot be loaded.
    """

    def __init__(
        self,
        store: Store | str | Path,
        profile: str | Path = "micro",
        device: str | None = None,
        *,
        service: ServiceClient | None = None,
        footage: FootageFinder | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        opened = Store.open(store) if isinstance(store, str | Path) else store
        self.device, self.service, self.footage, self.window_bytes = device, service, footage, window_bytes
        self.profile: Profile | ServedProfile
        self.encoders: Encoders
        if service is not None:
            self.profile, self.encoders = service.profile, service.encoders
        else:
            self.profile = loaded = load_profile(str(profile))
            self.encoders = load_encoders(loaded, device)
        self.store = Store.open(opened.url, encoders=encoders_to_search(opened.encoders, self.encoders.pair))
        self._answerer: Answerer | None = None

    @property
    def answerer(self) -> Answerer:
        """Connector and language model, which the first question loads.

        Raises:
            ModelError: the models are in a model service.
            IdentityMismatch: the store was imported and has no patches.
        """
        if self.store.encoders != self.encoders.pair:
            raise IdentityMismatch(
                f"{mask_url(self.store.url)}: was imported and has no patches: it can be searched, and not asked; "
                "ingest the footage for that"
            )
        if self._answerer is None:
            from model import answerer  # loads torch, which a question to a model service does not need

            if not isinstance(self.profile, Profile):
                raise ModelError("the language model is in the model service, not in this process")
            self._answerer = answerer.load_answerer(self.profile, self.encoders, self.device)
        return self._answerer

    def load(self) -> None:
        """Load the language model now, not with the first question. Does nothing with a model service.

        Raises:
            WeightsNotFound, WeightsInvalid, ModelError: see `model.answerer.load_answerer`.
        """
        if self.service is None and self._answerer is None:
            self._answerer = self.answerer

    @property
    def _reader(self) -> Answerer | ServiceClient:
        return self.answerer if self.service is None else self.service

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the language model does not know, in their order, each once. Raises ModelError."""
        return self._reader.unknown_words(text)

    def select(
        self,
        question: str,
        *,
        streams: Sequence[str] | None = None,
        start: Time | None = None,
        end: Time | None = None,
        k: int | None = None,
        tau: float | None = None,
        fill: bool = False,
        selector: SelectorName | None = None,
        redundancy: Redundancy | None = None,
        among: int | None = None,
    ) -> Selection:
        """Select the keyframes for a question (DKS).

        Args:
            question: the question.
            streams: stream ids; all streams if None.
            start, end: the window, `end` exclusive: datetimes with a time zone, RFC 3339 texts or UTC microseconds.
            k: largest number of keyframes; the profile's K if None.
            tau: similarity threshold τ (ViLAMP, Algorithm 1); the profile's if None.
            fill: fill the gaps between keyframes until there are min(k, N).
            selector: name of the selector, see `index.selectors`; the profile's if None.
            redundancy: when two frames are alike, `fixed`, `adaptive` or `background`; the profile's if None.
            among: select among at most this many frames of the window, evenly spaced; see `model.selection.even_rows`.

        Raises:
            UsageError: an argument is invalid.
            UnknownStream: the store has no such stream.
            EmptyWindow: the window has no frames.
        """
        check_selection(question, k, tau, selector, redundancy)
        since = perf_counter()
        where = (streams, parse_time(start, "from"), parse_time(end, "to"))
        large = self.store.large_window(*where, above=self.window_bytes // (4 * self.encoders.frame.identity.dimension))
        window = self.store.window(*where) if large is None else large.window
        if among is not None and among < len(window):
            window = window.take(even_rows(len(window), among))
            if large is not None:
                window, large = self.store.with_vectors(window), None
        timings = {"window": perf_counter() - since}
        since = perf_counter()
        query = self.encoders.frame.encode_text([question])[0]
        timings["text"] = perf_counter() - since
        since = perf_counter()
        rule: _Rule = {"k": k, "tau": tau, "fill": fill, "selector": selector, "redundancy": redundancy}
        if large is None:
            chosen = select_rows(window.frame_vectors, query, self.profile, stream_index=window.stream_index, **rule)
            scores = relevance(window.frame_vectors, query)
        else:
            chosen, scores = select_large(large, query, self.profile, **rule)
        timings["dks"] = perf_counter() - since
        wanted = min(self.profile.k if k is None else k, len(window))
        return Selection(window, chosen.rows, scores, timings, chosen.tau, chosen.distinct, wanted)

    def keyframes(self, question: str, **where: Any) -> list[Keyframe]:
        """The keyframes for a question, stream by stream in the order of time; `where` holds arguments of `select`."""
        return self.listed(self.select(question, **where))

    def listed(self, selection: Selection) -> list[Keyframe]:
        """The keyframes of a selection, stream by stream in the order of time."""
        window = selection.window
        named = [window.stream_ids[number] for number in np.unique(window.stream_index[selection.keyframes])]
        starts = FootageStarts([segment for name in named for segment in self.store.segments(name)])
        result = []
        for row in np.sort(selection.keyframes).tolist():
            name, at = window.stream_ids[window.stream_index[row]], int(window.captured_at[row])
            offset = starts.offset(name, at, float(window.pts_seconds[row]))
            segment = starts.segment(name, at)
            result.append(
                Keyframe(
                    stream_id=name,
                    captured_at=rfc3339(at),
                    offset_seconds=round(offset, 6),
                    score=round(float(selection.scores[row]), 6),
                    clock=None if segment is None else segment.clock,
                )
            )
        return result

    def ask(
        self,
        question: str,
        *,
        options: Sequence[str] | None = None,
        max_frames: int | None = None,
        sampling: Sampling = GREEDY,
        on_text: Callable[[str], None] = lambda _: None,
        **where: Any,
    ) -> Asked:
        """Select keyframes for a question and answer it.

        Args:
            question: the question.
            options: answers to choose from; an open question if None.
            max_frames: largest number of frames to read; 10,000 or the profile's budget if None.
            sampling: how an open answer is decoded; greedy by default.
            on_text: called with each part of the answer as it is decoded.
            **where: arguments of `select`: streams, start, end, k, tau, fill.

        Raises:
            UsageError: an argument is invalid.
            UnknownStream, EmptyWindow: the store has no such stream, or no frames in the window.
            BudgetExceeded: the question needs more tokens than the language model can hold.
        """
        check_reading(options, max_frames)
        selection = self.select(question, **where)
        return self.answer(
            question, selection, options=options, max_frames=max_frames, sampling=sampling, on_text=on_text
        )

    def answer(
        self,
        question: str,
        selection: Selection,
        *,
        options: Sequence[str] | None = None,
        max_frames: int | None = None,
        sampling: Sampling = GREEDY,
        generate: bool = False,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Asked:
        """Answer a question from a selection that `select` made for it; arguments as in `ask`.

        Args:
            generate: decode the answer to a question with options, in place of comparing their likelihoods.
            max_new_tokens: most tokens of a decoded answer; the profile's if None.

        Raises:
            UsageError: an argument is invalid.
            BudgetExceeded: the question needs more tokens than the language model can hold.
        """
        began = perf_counter()
        check_reading(options, max_frames)
        choices = tuple(options or ())
        reader, window = self._reader, selection.window
        loading = perf_counter() - began
        room = reader.max_frames(len(selection.keyframes), question, choices)
        rows = reading(
            self.profile,
            window.stream_index,
            window.captured_at,
            selection.keyframes,
            room=room,
            max_frames=max_frames,
        )
        mask = keyframe_mask(selection.keyframes, len(window))
        again = self._short(window, room) if max_frames is None else None
        frames = again if isinstance(again, ReadAgain) else None
        made = self._pieces(question, choices, window, rows, mask, sampling, generate, max_new_tokens, frames)
        *pieces, last = _forward_text(made, on_text)
        if last.answer is None:
            raise ModelError(f"the {self.profile.name} profile gave no answer after {len(pieces)} pieces")
        timings = {**selection.timings, "load": loading, **last.answer.timings}
        timings["total"] = sum(selection.timings.values()) + perf_counter() - began
        option = last.answer.option
        return Asked(
            question=question,
            answer=last.answer.text,
            option=None if option is None else choices[option],
            probabilities=dict(zip(choices, last.answer.probabilities, strict=True)) if option is not None else {},
            keyframes=self.listed(selection),
            frames=len(rows if frames is None else frames),
            window_frames=len(window),
            window_streams=len(window.streams),
            visual_tokens=last.answer.visual_tokens,
            prompt_tokens=last.answer.prompt_tokens,
            completion_tokens=last.answer.completion_tokens,
            timings_seconds={name: round(seconds, 6) for name, seconds in timings.items()},
            tau=selection.tau,
            notices=self._notices(question, selection, len(rows), again),
        )

    def _short(self, window: Window, room: int) -> ReadAgain | str | None:
        """The frames of a short window's footage, or the reason why they were not read; None for other windows."""
        spec = self.profile.hico
        if spec is None or len(window) >= spec.min_frames:
            return None
        if self.service is not None:
            return "a model service reads the store alone"
        if self.footage is None:
            return "no footage was given"
        if room < spec.min_frames:
            return f"the model has room for {room} frames"
        return read_again(self.footage, window, self.encoders, spec)

    def _pieces(
        self,
        question: str,
        choices: tuple[str, ...],
        window: Window,
        rows: NDArray[np.int64],
        keyframe: NDArray[np.bool_],
        sampling: Sampling,
        generate: bool,
        max_new_tokens: int | None,
        again: ReadAgain | None,
    ) -> Iterator[AnswerPiece]:
        """Answer from `rows` of `window`, whose keyframes are marked in `keyframe`, bool[N], or from `again`."""
        read = window if len(rows) == len(window) else window.take(rows)
        seconds = covered_seconds(window.captured_at, window.stream_index)
        if self.service is not None:
            if generate:
                raise UsageError("a model service compares options itself; leave --service out")
            return self.service.answer(question, choices, read, keyframe[rows], sampling, seconds, max_new_tokens)
        from model import answerer

        if again is not None:
            request = answerer.AnswerRequest(
                question=question,
                options=choices,
                stream_index=again.stream_index,
                captured_at=again.captured_at,
                keyframe=np.zeros(len(again), np.bool_),
                clips=again.clips,
                footage_seconds=seconds,
                read_patches=lambda part, out: np.copyto(out, again.patches[part]),
                sampling=sampling,
                generate=generate,
                max_new_tokens=max_new_tokens,
            )
            return self.answerer.answer(request)

        @cache
        def features() -> NDArray[np.float32]:
            """Embeddings of all frames, float32[N, Df], read once and only if the weights need them."""
            return self.store.frame_features(read)

        request = answerer.AnswerRequest(
            question=question,
            options=choices,
            stream_index=read.stream_index,
            captured_at=read.captured_at,
            keyframe=keyframe[rows],
            footage_seconds=seconds,
            read_patches=lambda part, out: self.store.patches(read.take(part), out),
            read_features=lambda part: features()[part],
            sampling=sampling,
            generate=generate,
            max_new_tokens=max_new_tokens,
        )
        return self.answerer.answer(request)

    def _notices(
        self, question: str, selection: Selection, read: int, again: ReadAgain | str | None = None
    ) -> list[str]:
        reader = self._reader
        notices = [reader.notice] if reader.notice else []
        unknown = reader.unknown_words(question)
        notices += unknown_words_notice(self.profile.name, unknown, "the answer may be a guess")
        frames = len(selection.window)
        if selection.notice is not None:
            notices.append(selection.notice)
        if isinstance(again, ReadAgain):
            notices.append(
                f"The window has {frames} frames in the store, so its footage was read again: {len(again)} frames in "
                "clips of their own."
            )
        elif again is not None:
            notices.append(
                f"The window has {frames} frames, fewer than the model expects of footage; they come from the store, "
                f"one a second, because {again}."
            )
        elif read < frames and self.profile.hico is not None:
            notices.append(
                f"The window has {frames} frames, of which {read} were read, whole clips spread evenly; the keyframes "
                "are evidence for you, and the model need not have read them."
            )
        elif read < frames:
            notices.append(
                f"Keyframes were selected among all {frames} frames; of the other frames an even selection was read, "
                f"{read} frames in all."
            )
        return notices


def ask(
    question: str,
    *,
    store: Store | str | Path,
    streams: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    options: Sequence[str] | None = None,
    k: int | None = None,
    tau: float | None = None,
    fill: bool = False,
    max_frames: int | None = None,
    profile: str | Path = "micro",
    device: str | None = None,
) -> Asked:
    """Answer one question over a store. Use `Asker` for several questions: it loads the models once.

    Args:
        question: the question.
        store: an open store, or the URL or path of one.
        streams: stream ids; all streams if None.
        start, end: the window, `end` exclusive: datetimes with a time zone, RFC 3339 texts or UTC microseconds.
        options: answers to choose from; an open question if None.
        k: largest number of keyframes; the profile's K if None.
        tau: similarity threshold τ of DKS (ViLAMP, Algorithm 1); the profile's if None.
        fill: fill the gaps between keyframes until there are min(k, N).
        max_frames: largest number of frames to read; 10,000 or the profile's budget if None.
        profile: name of a model profile, or the path of its TOML file.
        device: device of the models, such as "cpu" or "cuda"; a GPU if there is one if None.

    Raises:
        UsageError, StoreError, ModelError: see `index.errors`.
    """
    asker = Asker(store, profile, device)
    return asker.ask(
        question, options=options, max_frames=max_frames, streams=streams, start=start, end=end, k=k, tau=tau, fill=fill
    )
