"""One question of a benchmark, asked: frames, prompt, reply, score.

The keyframes are selected for the bare question; options and subtitles would exceed the text encoder's context. The
language model reads the benchmark's prompt where the answer is generated, and the profile's own prompt where options
are compared by likelihood. `reference` selects and asks as the published scripts do (`pipeline.questions.reference`):
the options, with letters, are printed into the released prompt. Does not know where results are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import BudgetExceeded, EmptyWindow, OutOfMemory, UsageError
from index.keyframes import relevance
from index.records import rfc3339
from index.search.moments import moments_of
from index.search.scores import ScoredFrames
from index.selectors.registry import SelectorName
from index.window import Window
from model.selection import select_rows
from pipeline.evaluation.benchmarks.benchmark import Benchmark, Item
from pipeline.evaluation.benchmarks.qvhighlights import HIT_AT
from pipeline.evaluation.benchmarks.subtitles import Cue, SubtitleRule, select_cues
from pipeline.evaluation.runs.footage import EPOCH, VideoInStore
from pipeline.evaluation.runs.record import AnswerLine, Baseline, Mode, ShownFrame
from pipeline.evaluation.scoring.highlights import CLIP_SECONDS
from pipeline.evaluation.scoring.positions import rotate, unrotate
from pipeline.evaluation.scoring.reply import LETTERS
from pipeline.evaluation.scoring.spans import Span
from pipeline.questions.asker import Asked, Asker, Selection
from pipeline.questions.reference import REFERENCE_FRAMES, answer_as_reference, select_as_reference

__all__ = ["Questioner", "Reading", "evidence_spans"]

_WINDOWS = 10


@dataclass(frozen=True, slots=True)
class Reading:
    """How questions are read and answered."""

    mode: Mode
    """How answers are found."""
    baseline: Baseline = "none"
    """What the model sees."""
    reference: bool = False
    """Selection, prompt and decoding of the published scripts."""
    subtitles: SubtitleRule = "none"
    """Which subtitles the prompt has."""
    k: int | None = None
    """Largest number of keyframes; the profile's if None."""
    tau: float | None = None
    """Similarity threshold τ; the profile's if None."""
    selector: SelectorName | None = None
    """Selector of keyframes; the profile's if None."""

    @property
    def frame_rule(self) -> str:
        """Rate and bounds of the frames, in words."""
        if self.baseline != "none":
            return {"blind": "no frames", "single-frame": "the frame in the middle"}[self.baseline]
        if self.reference:
            return f"1 a second by pts, at most {REFERENCE_FRAMES} by linspace before selection"
        return "1 a second by pts, keyframes among all, others evenly where the context is full"


def evidence_spans(item: Item, rate: float | None) -> list[Span]:
    """Where the evidence is, in seconds; frames of the file need its rate."""
    return [*item.spans, *([(frame / rate, frame / rate) for frame in item.frames] if rate else [])]


class Questioner:
    """Asks the questions of one benchmark.

    Args:
        benchmark: the adapter.
        asker: store and models.
        reading: how questions are read and answered.
    """

    def __init__(self, benchmark: Benchmark, asker: Asker, reading: Reading) -> None:
        self.benchmark, self.asker, self.reading = benchmark, asker, reading

    def ask(self, item: Item, video: VideoInStore, rotation: int, cues: Sequence[Cue]) -> AnswerLine:
        """Ask one question.

        Args:
            item: the question; it has no problem.
            video: its video, which is in the store.
            rotation: the option that is shown first.
            cues: subtitles of the video.

        Raises:
            StoreError, ModelError: store, model or service fail; the question may be asked again.
        """
        try:
            window = self._window(item, str(video.stream))
            selection = self._reference(item, window) if self._is_reference else self._select(item, window)
            if self.benchmark.task == "highlights":
                line = self._rank(item, selection)
            else:
                line = self._answer(item, selection, rotation, cues)
        except EmptyWindow as error:
            return AnswerLine(id=item.id, rotation=rotation, state="undecodable", problem=str(error))
        except (BudgetExceeded, OutOfMemory, UsageError) as error:
            return AnswerLine(id=item.id, rotation=rotation, state="refused", problem=str(error))
        spans = evidence_spans(item, video.rate) if self.benchmark.task == "choice" else list(item.spans)
        length = float(window.captured_at[-1] - EPOCH) / 1e6 + 1 if len(window) else 0.0
        line.keyframes = self._keyframes(selection, spans)
        if spans and self.reading.baseline == "none":
            line.evidence_hit = any(frame.evidence for frame in line.keyframes)
        if spans and length:
            line.depth = min(1.0, max(0.0, (spans[0][0] + spans[0][1]) / 2 / length))
        line.window_frames = len(window)
        line.problem = line.problem or video.problem
        return line

    def _window(self, item: Item, stream: str) -> Window:
        low, high = item.clip or (None, None)
        start = None if low is None else EPOCH + round(low * 1e6) // 1_000_000 * 1_000_000
        end = None if high is None else max(EPOCH + round(high * 1e6), (start or EPOCH) + 1_000_000)
        return self.asker.store.window([stream], start, end)

    @property
    def _is_reference(self) -> bool:
        return self.reading.reference and self.reading.baseline == "none"

    def _reference(self, item: Item, window: Window) -> Selection:
        """Keyframes as the published scripts select them."""
        ends = int(window.captured_at[0]), int(window.captured_at[-1]) + 1
        k, tau = self.reading.k, self.reading.tau
        return select_as_reference(
            self.asker, item.question, streams=window.streams, start=ends[0], end=ends[1], k=k, tau=tau
        )

    def _select(self, item: Item, window: Window) -> Selection:
        """Keyframes among the frames that the baseline or the reference leaves."""
        reading, began = self.reading, perf_counter()
        count = len(window)
        if reading.baseline == "blind":
            nothing = window.take(np.zeros(0, np.int64))
            return Selection(nothing, np.zeros(0, np.int64), np.zeros(0, np.float32), {})
        if reading.baseline == "single-frame":
            window = window.take(np.array([count // 2]))
        query = self.asker.encoders.frame.encode_text([item.question])[0]
        chosen = self._chosen(window, query, reading.k)
        scores = relevance(window.frame_vectors, query)
        timings = {"select": perf_counter() - began}
        wanted = min(self.asker.profile.k if reading.k is None else reading.k, len(window))
        return Selection(window, chosen.rows, scores, timings, chosen.tau, chosen.distinct, wanted)

    def _chosen(self, window: Window, query: NDArray[np.float32], k: int | None) -> Any:
        return select_rows(
            window.frame_vectors,
            query,
            self.asker.profile,
            stream_index=window.stream_index,
            k=k,
            tau=self.reading.tau,
            selector=self.reading.selector,
        )

    def _answer(self, item: Item, selection: Selection, rotation: int, cues: Sequence[Cue]) -> AnswerLine:
        seconds = ((selection.window.captured_at - EPOCH) / 1e6).tolist()
        lines = select_cues(cues, self.reading.subtitles, seconds, self.benchmark.alignment)
        options = rotate(item.options, rotation)
        if self.reading.mode == "likelihood" and self.benchmark.task == "choice":
            asked = self.asker.answer(_subtitled(lines) + item.question, selection, options=options)
            shown = options.index(asked.option) if asked.option is not None else None
            line = self._line(item, rotation, asked, shown, options)
            line.probabilities = [asked.probabilities[option] for option in item.options]
        elif self._is_reference and self.benchmark.task == "choice":
            listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
            tokens = self.benchmark.reference_tokens
            asked = answer_as_reference(
                self.asker, _subtitled(lines) + item.question, selection, options=listed, max_new_tokens=tokens
            )
            line = self._line(item, rotation, asked, self.benchmark.parse(asked.answer, options), options)
        else:
            asked = self.asker.answer(self.benchmark.prompt(item, options, lines), selection)
            parsed = self.benchmark.parse(asked.answer, options)
            line = self._line(item, rotation, asked, parsed, options)
        line.subtitle_lines = len(lines)
        return line

    def _line(
        self, item: Item, rotation: int, asked: Asked, parsed: int | Span | None, options: Sequence[str]
    ) -> AnswerLine:
        shown = parsed if isinstance(parsed, int) else None
        predicted = parsed if shown is None else unrotate(shown, rotation, len(options))
        return AnswerLine(
            id=item.id,
            rotation=rotation,
            state="unparsed" if predicted is None else "answered",
            reply=asked.answer,
            predicted=predicted,
            shown=shown,
            value=self.benchmark.score(item, predicted),
            frames=asked.frames,
            visual_tokens=asked.visual_tokens,
            timings_seconds=asked.timings_seconds,
        )

    def _rank(self, item: Item, selection: Selection) -> AnswerLine:
        """Moments, clip scores and selected frames of a query, without a language model."""
        window, scores = selection.window, selection.scores
        seconds = (window.captured_at - EPOCH) / 1e6
        query = self.asker.encoders.frame.encode_text([item.question])[0]
        stream = window.stream_ids[int(window.stream_index[0])]
        found = [
            [(m.start - EPOCH) / 1e6, (m.end - EPOCH) / 1e6 + 1, m.score]
            for m, _ in zip(moments_of(ScoredFrames(stream, window.captured_at, scores)), range(_WINDOWS), strict=False)
        ]
        clips = np.full(int(float(item.extra.get("duration", 150)) / CLIP_SECONDS), float(scores.min()))
        for second, score in zip(seconds.tolist(), scores.tolist(), strict=True):
            number = int(second // CLIP_SECONDS)
            if number < len(clips):
                clips[number] = max(clips[number], score)
        selected = {str(k): seconds[self._chosen(window, query, k).rows].round(3).tolist() for k in HIT_AT}
        top = np.argsort(-scores, kind="stable")[: max(HIT_AT)]
        predicted = (found[0][0], found[0][1])
        detail = {
            "windows": [[round(value, 4) for value in each] for each in found],
            "saliency": clips.round(4).tolist(),
            "selected": selected,
            "top": seconds[top].round(3).tolist(),
        }
        return AnswerLine(
            id=item.id,
            state="answered",
            predicted=predicted,
            value=self.benchmark.score(item, predicted),
            timings_seconds=selection.timings,
            detail=detail,
        )

    def _keyframes(self, selection: Selection, spans: Sequence[Span]) -> list[ShownFrame]:
        window = selection.window
        shown = []
        for row in selection.keyframes.tolist():
            at = int(window.captured_at[row])
            second = (at - EPOCH) / 1e6
            shown.append(
                ShownFrame(
                    stream_id=window.stream_ids[int(window.stream_index[row])],
                    captured_at=rfc3339(at),
                    seconds=round(second, 3),
                    score=round(float(selection.scores[row]), 6),
                    evidence=any(second <= end and second + 1 > start for start, end in spans),
                )
            )
        return shown


def _subtitled(lines: Sequence[str]) -> str:
    """Subtitles as they precede a question in the profile's own prompt; empty without lines."""
    return "\n".join(["This video's subtitles are listed below:", *lines, ""]) if lines else ""
