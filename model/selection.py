"""Selection of the frames that a question reads: keyframes by DKS, and the other frames beside them.

    frame vectors, query vector ─ select_rows(profile) ─▶ keyframes ─ reading(profile) ─▶ every row that is read

A profile with a `hico` section reads whole clips instead, whatever the keyframes are.

This is the one place where a profile's settings become a selection. Questions, the model service, training, evaluation
and benchmarks all call it, so that they measure and train what is asked. Imports no torch. The algorithms are in
`index.selectors`; this module does not know stores, time ranges or encoders.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError
from index.selectors.registry import SELECTORS, SelectorName
from index.selectors.selector import REDUNDANCIES, Candidates, Chosen, Redundancy, SelectionRule
from index.selectors.streamed import FrameReader, dks_streamed
from model.encoders.clips import clip_numbers
from model.hico.sampling import clips_to_read
from model.profiles.profile import DfmSpec, HicoSpec

__all__ = [
    "MAX_FRAMES",
    "SelectionSettings",
    "check_selection",
    "even_rows",
    "keyframe_mask",
    "reading",
    "rows_to_read",
    "select_large",
    "select_rows",
]

MAX_FRAMES = 10_000
"""Most frames of one question unless another number is given."""


class SelectionSettings(Protocol):
    """The part of a profile that selects keyframes; a loaded profile and one served by a model service both have it."""

    @property
    def k(self) -> int:
        """Largest number of keyframes."""

    @property
    def tau(self) -> float:
        """Similarity threshold τ of Algorithm 1."""

    @property
    def selector(self) -> SelectorName:
        """The selector."""

    @property
    def redundancy(self) -> Redundancy:
        """When two frames are alike."""

    @property
    def dfm(self) -> DfmSpec:
        """Relevance floor, gap fill, and the mode that decides whether a cosine equal to τ is accepted."""

    @property
    def hico(self) -> HicoSpec | None:
        """Clips that are read instead of keyframes and merged frames; None for these."""


def select_rows(
    vectors: NDArray[np.float32],
    query: NDArray[np.float32],
    profile: SelectionSettings,
    *,
    stream_index: NDArray[np.integer] | None = None,
    k: int | None = None,
    tau: float | None = None,
    fill: bool = False,
    selector: SelectorName | None = None,
    redundancy: Redundancy | None = None,
) -> Chosen:
    """Select keyframes with the settings of `profile`: by DKS (ViLAMP, Algorithm 1) unless it names another selector.

    Args:
        vectors: vectors of the frame encoder, float32[N, Df].
        query: the question's vector of the same encoder, float32[Df].
        profile: the settings; each of the following arguments replaces one of them.
        stream_index: the stream of each row, int[N], rows of a stream together; one stream if None.
        k: largest number of keyframes.
        tau: similarity threshold τ.
        fill: fill the gaps between keyframes up to min(k, N), even if the profile does not.
        selector: name of the selector.
        redundancy: when two frames are alike.

    Returns:
        Rows of the keyframes in the order of selection, and the threshold that applied.

    Raises:
        UsageError: `k` or `tau` is out of range, or the arrays do not fit each other or are not finite.
    """
    rule = _rule(profile, k, tau, redundancy, fill=fill)
    return SELECTORS[selector or profile.selector](Candidates(vectors, query, stream_index), rule)


def select_large(
    frames: FrameReader,
    query: NDArray[np.float32],
    profile: SelectionSettings,
    *,
    k: int | None = None,
    tau: float | None = None,
    fill: bool = False,
    selector: SelectorName | None = None,
    redundancy: Redundancy | None = None,
) -> tuple[Chosen, NDArray[np.float32]]:
    """`select_rows` among frames whose vectors do not fit into memory: the same rows, by DKS alone.

    Args:
        frames: the frames, which are read in parts (see `index.selectors.streamed`).
        query: the question's vector of the same encoder, float32[Df].
        profile: the settings; each of the following arguments replaces one of them, as in `select_rows`.
        k, tau, fill, selector, redundancy: as in `select_rows`.

    Returns:
        The choice, and the relevance of every frame, float32[N].

    Raises:
        UsageError: as `select_rows`, or the selector is not `dks`.
    """
    name = selector or profile.selector
    if name != "dks":
        raise UsageError(
            f"the selector {name} needs the vectors of all {len(frames.stream_index):,} frames in memory; ask about "
            "fewer frames, take the selector dks, or set `window_bytes` to a larger number"
        )
    return dks_streamed(frames, query, _rule(profile, k, tau, redundancy, fill=fill))


def _rule(
    profile: SelectionSettings, k: int | None, tau: float | None, redundancy: Redundancy | None, *, fill: bool
) -> SelectionRule:
    """The rule of a profile, of which an argument that is not None replaces a part."""
    return SelectionRule(
        k=profile.k if k is None else k,
        tau=profile.tau if tau is None else tau,
        redundancy=redundancy or profile.redundancy,
        fill=fill or profile.dfm.gap_fill,
        floor=profile.dfm.relevance_floor,
        inclusive=profile.dfm.mode == "released",
    )


def keyframe_mask(rows: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    """`rows` of keyframes as bool[total], True at each of them."""
    mask = np.zeros(total, np.bool_)
    mask[rows] = True
    return mask


def reading(
    profile: SelectionSettings,
    stream_index: NDArray[np.integer],
    captured_at: NDArray[np.int64],
    keyframes: NDArray[np.int64],
    *,
    room: int,
    max_frames: int | None = None,
) -> NDArray[np.int64]:
    """Rows of a window that a question reads.

    Keyframes and an even selection of the other frames, or, with a `hico` section, whole clips spread evenly.

    Args:
        profile: the settings.
        stream_index: the stream of each row, int[N], rows of a stream together.
        captured_at: capture times, int64[N], UTC microseconds, ascending within each stream.
        keyframes: rows of the keyframes.
        room: most frames that the language model can hold.
        max_frames: most frames to read; T_max of the `hico` section, or `MAX_FRAMES`, if None.

    Returns:
        Ascending rows, int64[≤ N].

    Raises:
        UsageError: there is not room for all keyframes, or for one clip.
    """
    if profile.hico is not None:
        clips = clip_numbers(captured_at, stream_index, profile.hico.clip_frames)
        return clips_to_read(clips, min(max_frames or profile.hico.max_frames, room))
    limit = min(max_frames or MAX_FRAMES, room)
    if limit < len(keyframes):
        raise UsageError(f"--max-frames {limit} is less than the {len(keyframes)} keyframes; lower --k as well")
    return rows_to_read(len(captured_at), keyframes, limit)


def rows_to_read(total: int, keyframes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Rows of at most `limit` frames out of `total`: all `keyframes`, and an even selection of the others.

    Returns:
        Ascending rows, int64[min(total, limit)]; `keyframes` alone if there are `limit` or more of them.
    """
    if total <= limit:
        return np.arange(total)
    others = np.setdiff1d(np.arange(total), keyframes, assume_unique=True)
    count = max(0, limit - len(keyframes))
    picked = others[((2 * np.arange(count) + 1) * len(others)) // (2 * max(1, count))]
    return np.sort(np.concatenate([keyframes, picked]))


def even_rows(total: int, limit: int) -> NDArray[np.int64]:
    """Ascending rows of at most `limit` frames out of `total`, the first and the last included, int64[min(total,
    limit)].

    As the published evaluation of ViLAMP thins a video: the whole parts of `numpy.linspace(0, total - 1, limit)`.

    Raises:
        UsageError: `limit` is below 1.
    """
    if limit < 1:
        raise UsageError(f"the number of frames must be at least 1, got {limit}")
    if total <= limit:
        return np.arange(total)
    return np.linspace(0, total - 1, limit, dtype=np.int64)


def check_selection(
    question: str, k: int | None, tau: float | None, selector: str | None = None, redundancy: str | None = None
) -> None:
    """Check the inputs of a selection before anything is loaded.

    Raises:
        UsageError: the question is empty, `k` is below 1, `tau` is outside (−1, 1], or a name is unknown.
    """
    if not question.strip():
        raise UsageError("the question is empty; type what you want to know")
    if k is not None and k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if tau is not None and not -1.0 < tau <= 1.0:
        raise UsageError(f"tau must lie above −1 and be at most 1, got {tau}")
    if selector is not None and selector not in SELECTORS:
        raise UsageError(f"no selector {selector!r}; give one of {', '.join(SELECTORS)}")
    if redundancy is not None and redundancy not in REDUNDANCIES:
        raise UsageError(f"no redundancy {redundancy!r}; give one of {', '.join(REDUNDANCIES)}")
