"""Asking a question about a splice, as `sightline ask` asks it about a stream.

Keyframes are selected for the bare question among all frames of the splice, and options are compared by likelihood.
The models run in this process, because a model service reads whole streams from its own store. Does not know what a
needle is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from index.errors import BudgetExceeded, OutOfMemory, UsageError
from model.answerer import Answerer, AnswerRequest
from model.answers import Answer
from model.hico.sampling import covered_seconds
from model.selection import keyframe_mask, reading, select_rows
from pipeline.bench.memory import peak_bytes
from pipeline.evaluation.needles.cases import Piece
from pipeline.evaluation.needles.record import SETTINGS, AnswerLine, NeedleFolder, NeedleHead, Setting, list_digest
from pipeline.evaluation.needles.splice import Splice, Streams

__all__ = ["Shown", "SpliceAsker", "begin_run"]

_Key = tuple[str, tuple[str, ...], int, tuple[Piece, ...]]


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer was made from."""

    splice: Splice
    """The splice."""
    keyframes: NDArray[np.int64]
    """Rows of the keyframes."""


def begin_run(
    out: Path,
    kind: str,
    cases: Sequence[BaseModel],
    streams: Streams,
    answerer: Answerer,
    *,
    source: str,
    seed: int,
    settings: Sequence[Setting],
) -> NeedleFolder:
    """The folder of a new run, or of one that goes on.

    Args:
        out: the folder.
        kind: `video`, `image` or `chain`.
        cases: the cases.
        streams: streams of the store that has them.
        answerer: the models.
        source: where footage and questions come from.
        seed: seed of the list.
        settings: what is asked of each case; `spliced` is always asked.

    Raises:
        UsageError: the folder has another run.
    """
    profile, pair = answerer.profile, streams.store.encoders
    head = NeedleHead(
        kind=kind,
        cases_digest=list_digest(cases),
        source=source,
        seed=seed,
        settings=[setting for setting in SETTINGS if setting in settings or setting == "spliced"],
        profile=profile.name,
        k=profile.k,
        tau=profile.tau,
        encoders={"frame": pair.frame.weights_digest, "patch": pair.patch.weights_digest},
    )
    folder = NeedleFolder(out)
    folder.begin(head, cases)
    return folder


class SpliceAsker:
    """Asks questions about splices of a store's streams.

    Args:
        streams: the streams.
        answerer: the models.
    """

    def __init__(self, streams: Streams, answerer: Answerer) -> None:
        self.streams, self.answerer = streams, answerer
        self._known: dict[_Key, AnswerLine] = {}

    def ask(
        self,
        question: str,
        options: Sequence[str],
        answer: int,
        pieces: Sequence[Piece],
        *,
        case: str,
        setting: str,
        look: Callable[[AnswerLine, Shown], None] = lambda line, shown: None,
    ) -> AnswerLine:
        """Ask one question.

        Args:
            question: the question.
            options: its options.
            answer: index of the right one.
            pieces: what is shown, in its order; nothing if empty.
            case: id of the case.
            setting: name of what is shown.
            look: notes in the line what the keyframes show.

        Returns:
            The answer. A question that does not fit the model counts as wrong. What was asked of the same pieces, as a
            question with its needle alone is for every haystack, is not asked again; its line is the first one's with
            the ids of this case.
        """
        key = question, tuple(options), answer, tuple(pieces)
        if key not in self._known:
            line, shown = self._ask(question, options, answer, pieces)
            look(line, shown)
            self._known[key] = line
        return self._known[key].model_copy(update={"case": case, "setting": setting})

    def _ask(
        self, question: str, options: Sequence[str], answer: int, pieces: Sequence[Piece]
    ) -> tuple[AnswerLine, Shown]:
        """Ask a question; the line has neither case nor setting."""
        began = perf_counter()
        splice = Splice(self.streams, pieces, whole_clips=self.answerer.profile.hico is not None)
        keyframes = self._select(question, splice)
        line = AnswerLine(case="", setting="", predicted=None, right=False, keyframes=len(keyframes))
        try:
            rows, reply = self._answer(question, tuple(options), splice, keyframes)
        except (BudgetExceeded, OutOfMemory, UsageError) as error:
            line.problem = str(error)
        else:
            line.predicted, line.right = reply.option, reply.option == answer
            line.probabilities = [round(value, 6) for value in reply.probabilities]
            line.frames, line.visual_tokens = len(rows), reply.visual_tokens
        line.seconds, line.peak_bytes = round(perf_counter() - began, 3), peak_bytes()
        return line, Shown(splice, keyframes)

    def _select(self, question: str, splice: Splice) -> NDArray[np.int64]:
        if not len(splice):
            return np.zeros(0, np.int64)
        query = self.answerer.encoders.frame.encode_text([question])[0]
        return select_rows(splice.vectors, query, self.answerer.profile, stream_index=splice.stream_index).rows

    def _answer(
        self, question: str, options: tuple[str, ...], splice: Splice, keyframes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Answer]:
        answerer = self.answerer
        rows = np.zeros(0, np.int64)
        if len(splice):
            room = answerer.max_frames(len(keyframes), question, options)
            rows = reading(answerer.profile, splice.stream_index, splice.captured_at, keyframes, room=room)
        request = AnswerRequest(
            question=question,
            options=options,
            stream_index=splice.stream_index[rows],
            captured_at=splice.captured_at[rows],
            keyframe=keyframe_mask(keyframes, len(splice))[rows],
            read_patches=lambda part, out: splice.read_patches(rows[part], out),
            read_features=lambda part: splice.read_features(rows[part]),
            footage_seconds=covered_seconds(splice.captured_at, splice.stream_index),
        )
        *_, last = answerer.answer(request)
        if last.answer is None:
            raise UsageError("the model gave no answer")
        return rows, last.answer
