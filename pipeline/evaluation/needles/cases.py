"""Cases of VideoNIAH: which videos make the haystack, where the needle goes, and what is asked (ViLAMP, section 5.3).

The paper released neither code nor data; the reading is in docs/evaluation.md. A case has exactly `length` frames, the
needle's included. A haystack is made of several videos in a random order, joined before the needle is inserted, and the
last one is cut. Insertion and cuts are at multiples of four frames, so that no clip of four frames is split; the list
is therefore the same for every profile. Cases are drawn from a seed. This module does not know stores or models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from index.errors import UsageError

__all__ = ["BINS", "CLIP", "Case", "Needle", "Piece", "depth_bin", "draw_cases"]

CLIP = 4
"""Frames of a clip; needles are inserted at multiples of it."""
BINS = 10
"""Bins of depth, each a tenth; the last one includes 1."""


class Piece(BaseModel):
    """Consecutive frames of one stream."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    stream: str
    """The stream in the store."""
    first: int
    """Row of its first frame in the stream, from 0."""
    stop: int
    """Row behind its last frame."""

    def __len__(self) -> int:
        return self.stop - self.first


class Needle(BaseModel):
    """A question about a short video, and the video."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Id of the question."""
    stream: str
    """The video's stream; all its frames are the needle."""
    frames: int
    """Its number of frames."""
    kind: str
    """Type of the question."""
    question: str
    """The question, as it is asked."""
    options: tuple[str, ...]
    """Options without labels."""
    answer: int
    """Index of the right option."""
    evidence: tuple[tuple[float, float], ...] = ()
    """Where in the needle the evidence is, in seconds; empty if that is not known."""


class Case(BaseModel):
    """One question about one haystack."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Unique in the list."""
    seed: int
    """Seed of the list."""
    length: int
    """Frames of the haystack and the needle together."""
    depth: float
    """Where the needle begins, as a share of the haystack: 0 in front of it, 1 behind it."""
    insertion: int
    """Row of the needle's first frame."""
    haystack: tuple[Piece, ...]
    """The haystack without the needle, in its order."""
    needle: Needle
    """The needle and its question."""

    def pieces(self, *, needle: bool = True, haystack: bool = True) -> list[Piece]:
        """What is read, in its order, with or without the needle or the haystack."""
        inserted = [Piece(stream=self.needle.stream, first=0, stop=self.needle.frames)] if needle else []
        if not haystack:
            return inserted
        before, after, left = list[Piece](), list[Piece](), self.insertion
        for piece in self.haystack:
            cut = piece.first + min(max(left, 0), len(piece))
            left -= len(piece)
            if cut > piece.first:
                before.append(piece.model_copy(update={"stop": cut}))
            if cut < piece.stop:
                after.append(piece.model_copy(update={"first": cut}))
        return [*before, *inserted, *after]


class Draw(BaseModel):
    """How cases are drawn."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    lengths: tuple[int, ...] = (2000, 4000, 6000, 8000, 10000)
    """Lengths in frames, that is in seconds."""
    per_length: int = Field(default=60, ge=1)
    """Cases of each length."""
    seed: int = 0
    """Seed of haystacks, depths and the order of needles."""


def depth_bin(depth: float) -> int:
    """The bin of a depth in [0, 1], 0 to `BINS` − 1."""
    return min(BINS - 1, int(depth * BINS))


def draw_cases(
    needles: Sequence[Needle],
    haystacks: Mapping[str, int],
    draw: Draw,
    allowed: Callable[[Needle, str], bool] = lambda needle, stream: needle.stream != stream,
) -> list[Case]:
    """Draw the cases, balanced over the types of questions and over the bins of depth.

    Types alternate, and needles of a type are repeated in new haystacks where there are too few. Bins alternate in a
    random order, and the depth is uniform in its bin, so that cells have equal counts where `per_length` is a multiple
    of `BINS`.

    Args:
        needles: the questions to draw from.
        haystacks: frames of each stream that haystacks are made of.
        draw: lengths, counts and seed.
        allowed: whether a stream may be in the haystack of a needle; its own video never should be.

    Returns:
        Cases by length, then by number.

    Raises:
        UsageError: there are no needles, a length is too short for one, or the allowed streams have too few frames.
    """
    if not needles:
        raise UsageError("there are no needles: no question about a video of 30 to 120 seconds")
    cases = []
    for length in draw.lengths:
        rng = np.random.default_rng([draw.seed, length])
        kinds = {kind: [n for n in needles if n.kind == kind] for kind in sorted({n.kind for n in needles})}
        queues = {kind: cycle([group[i] for i in rng.permutation(len(group))]) for kind, group in kinds.items()}
        names = list(queues)
        bins = np.concatenate([rng.permutation(BINS) for _ in range(-(-draw.per_length // BINS))])
        for number in range(draw.per_length):
            # A type's place moves by one in each round, so that no type always has the same bins.
            needle = next(queues[names[(number + number // len(names)) % len(names)]])
            wanted = length - needle.frames
            if wanted < CLIP:
                raise UsageError(f"a length of {length} frames has no room for a needle of {needle.frames}")
            depth = (int(bins[number]) + float(rng.random())) / BINS
            insertion = min(round(depth * wanted / CLIP) * CLIP, wanted)
            cases.append(
                Case(
                    id=f"{length}-{number:03}",
                    seed=draw.seed,
                    length=length,
                    depth=depth,
                    insertion=insertion,
                    haystack=tuple(_haystack(needle, haystacks, wanted, rng, allowed)),
                    needle=needle,
                )
            )
    return cases


def _haystack(
    needle: Needle,
    haystacks: Mapping[str, int],
    wanted: int,
    rng: np.random.Generator,
    allowed: Callable[[Needle, str], bool],
) -> list[Piece]:
    """Streams in a random order, whole clips of each, until there are `wanted` frames."""
    names = sorted(name for name in haystacks if allowed(needle, name))
    pieces, left = list[Piece](), wanted
    for index in rng.permutation(len(names)):
        stream = names[int(index)]
        frames = min(left, haystacks[stream] // CLIP * CLIP)
        if frames:
            pieces.append(Piece(stream=stream, first=0, stop=frames))
        left -= frames
        if not left:
            return pieces
    have = wanted - left
    raise UsageError(
        f"the haystack of {needle.id} needs {wanted} frames and the videos that it may have hold {have}; add longer "
        "videos, or give smaller --length"
    )


__all__ += ["Draw"]
