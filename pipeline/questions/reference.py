"""Reference mode: a question is asked as the published evaluation scripts of ViLAMP ask it.

    window ─ at most 600 frames, evenly ─▶ DKS with gaps filled ─▶ released prompt ─▶ decoded text

It differs from `Asker.ask` in three points: the frames are thinned before keyframes are selected, so that DKS never
sees the others; keyframes are those of the paper's rule, filled up to K; and the answer to a question with options is
decoded text, which may be none of the options, in place of the option with the largest likelihood. With the profile
`vilamp` the settings of selection, merging and prompt are those of the released code too. One difference stays: the
frames are those of the store, one a second by timestamp, where the scripts step by a whole number of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from index.errors import UsageError
from index.records import Time
from pipeline.questions.asker import Asked, Asker, Selection

__all__ = ["REFERENCE_FRAMES", "answer_as_reference", "ask_as_reference", "select_as_reference"]

REFERENCE_FRAMES = 600
"""Most frames of a video in the published scripts."""


def select_as_reference(
    asker: Asker,
    question: str,
    *,
    streams: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    k: int | None = None,
    tau: float | None = None,
    frames: int = REFERENCE_FRAMES,
) -> Selection:
    """Select keyframes among at most `frames` frames of one stream; the other arguments are those of `Asker.select`.

    Raises:
        UsageError: an argument is invalid, or the window has several streams: the scripts know single videos.
        UnknownStream, EmptyWindow: as `Asker.select`.
    """
    if frames < 1:
        raise UsageError(f"frames must be at least 1, got {frames}")
    names = asker.store.check_scope(streams)
    if len(names) > 1:
        raise UsageError(
            f"--reference is about one video, and {len(names)} streams were asked about ({', '.join(names[:4])}"
            f"{', …' if len(names) > 4 else ''}); choose one with --stream"
        )
    where = {"streams": streams, "start": start, "end": end}
    return asker.select(
        question,
        k=k,
        tau=tau,
        fill=True,
        selector="dks",
        redundancy="fixed",
        among=frames,
        **where,  # type: ignore[arg-type]
    )


def answer_as_reference(
    asker: Asker,
    question: str,
    selection: Selection,
    *,
    options: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Asked:
    """Answer from a selection of `select_as_reference`, by decoding; `option` is set where the text is an option.

    Args:
        asker: store and models; not a model service.
        question: the question without its options, from which the released prompt is made.
        selection: the frames.
        options: answers to choose from, printed into the prompt.
        max_new_tokens: most tokens of the answer; the profile's if None. The scripts allow 1 for Video-MME, 128 for
            LongVideoBench, and 256 elsewhere.
        on_text: called with each part of the answer as it is decoded.

    Raises:
        UsageError: as `Asker.answer`, or the models are in a model service.
        BudgetExceeded: as `Asker.answer`.
    """
    asked = asker.answer(
        question, selection, options=options, generate=True, max_new_tokens=max_new_tokens, on_text=on_text
    )
    given = asked.answer.strip().casefold()
    same = [option for option in options or () if option.strip().casefold() == given]
    note = (
        f"Reference mode: keyframes were selected among {len(selection.window)} frames, spaced evenly, and the answer "
        "is decoded text."
    )
    return asked.model_copy(update={"option": same[0] if same else None, "notices": [*asked.notices, note]})


def ask_as_reference(
    asker: Asker,
    question: str,
    *,
    options: Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
    start: Time | None = None,
    end: Time | None = None,
    k: int | None = None,
    tau: float | None = None,
    frames: int = REFERENCE_FRAMES,
    max_new_tokens: int | None = None,
) -> Asked:
    """`select_as_reference` and `answer_as_reference` in one; for evaluations. Raises what they raise."""
    selection = select_as_reference(asker, question, streams=streams, start=start, end=end, k=k, tau=tau, frames=frames)
    return answer_as_reference(asker, question, selection, options=options, max_new_tokens=max_new_tokens)
