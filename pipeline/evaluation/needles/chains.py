"""Cases with pictures as needles: one picture at a depth, or a chain of pictures that name each other among decoys.

Single-hop: a picture is inserted at depths 0, 0.2, … 1 (VideoChat-Flash, LongVA). Multi-hop: the question names the
first picture of a chain, a text in each picture names the next one, and the last has no text; three decoys name each
other and are named by nothing else. Insertion is at multiples of four frames, and haystacks are not shortened. Drawn
from a seed; does not know stores or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict

from index.errors import UsageError
from pipeline.evaluation.needles.cases import CLIP, Piece
from pipeline.evaluation.needles.pictures import CaptionedPicture

__all__ = ["DECOYS", "DEPTHS", "Chain", "PictureCase", "PictureQuestion", "draw_chains", "inserted", "spread"]

DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Depths of single pictures."""
DECOYS = 3
"""Decoys of a chain."""
_LINKS = (2, 3, 4)
_HEAD = "Find the frame of {first}. Locate the final frame based on the instructions in the image, and "


class PictureQuestion(BaseModel):
    """One question of a case."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    """`Q1` asks for the caption of the final picture, `Q2` and `QA` a question about it."""
    text: str
    """The question."""
    options: tuple[str, ...]
    """Options without labels."""
    answer: int
    """Index of the right option."""


class PictureCase(BaseModel):
    """Pictures in one haystack, and what is asked."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Unique in the list."""
    length: int
    """Frames of the haystack, the pictures' not included."""
    depth: float | None
    """Depth of a single picture; None for a chain."""
    cluster: str
    """The picture or chain, which is asked in several haystacks."""
    haystack: tuple[Piece, ...]
    """The haystack."""
    needles: tuple[tuple[int, str], ...]
    """Row of the haystack before which each picture is inserted, ascending, and the picture's stream."""
    questions: tuple[PictureQuestion, ...]
    """The questions."""


class Chain(BaseModel):
    """Pictures that name each other, in the order of time, and the two questions."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Unique."""
    pictures: tuple[tuple[str, str], ...]
    """Id of each picture and the text that it carries, empty for the final one."""
    questions: tuple[PictureQuestion, PictureQuestion]
    """Q1 and Q2."""


def inserted(haystack: Sequence[Piece], needles: Sequence[tuple[int, str]]) -> list[Piece]:
    """A haystack with streams of four frames inserted before its rows; rows ascend and may be its length."""
    result, left, done = list[Piece](), list(needles), 0
    for piece in haystack:
        at = piece.first
        while left and left[0][0] < done + len(piece):
            row, stream = left.pop(0)
            cut = piece.first + row - done
            if cut > at:
                result.append(Piece(stream=piece.stream, first=at, stop=cut))
            result.append(Piece(stream=stream, first=0, stop=CLIP))
            at = cut
        result.append(Piece(stream=piece.stream, first=at, stop=piece.stop))
        done += len(piece)
    return result + [Piece(stream=stream, first=0, stop=CLIP) for _, stream in left]


def spread(length: int, count: int) -> list[int]:
    """Rows of `count` pictures spread over a haystack, the first before it and the last behind it: i · N / (n − 1)."""
    return [length * i // (count - 1) // CLIP * CLIP if i < count - 1 else length for i in range(count)]


def at_depth(length: int, depth: float) -> int:
    """The row of a depth, a multiple of four; the length itself for depth 1."""
    return length if depth >= 1 else round(depth * length / CLIP) * CLIP


def draw_chains(pictures: Sequence[CaptionedPicture], count: int, seed: int) -> list[Chain]:
    """Draw chains of 2, 3 and 4 pictures by turns, each with three decoys; list order is the order of time.

    A caption that contains another one of the same chain would name two pictures and is not drawn with it. The options
    of Q1 are captions of the same case.

    Raises:
        UsageError: there are too few pictures with captions.
    """
    captioned = [picture for picture in pictures if picture.caption]
    rng = np.random.default_rng([seed, 9])
    chains = []
    for number in range(count):
        links = _LINKS[number % len(_LINKS)]
        chosen = list[CaptionedPicture]()
        for index in rng.permutation(len(captioned)):
            one = captioned[int(index)]
            if len(chosen) < links + DECOYS and all(_differ(one.caption, other.caption) for other in chosen):
                chosen.append(one)
        if len(chosen) < links + DECOYS:
            raise UsageError(
                f"a chain needs {links + DECOYS} pictures whose captions differ; of {len(captioned)} with captions "
                f"only {len(chosen)} do"
            )
        chain, decoys = chosen[:links], chosen[links:]
        texts = {one.id: f"Find a frame of {after.caption}" for one, after in pairwise(chain)}
        texts |= {
            one.id: f"Find a frame of {after.caption}"
            for one, after in zip(decoys, decoys[1:] + decoys[:1], strict=True)
        }
        final, others = chain[-1], [one.caption for one in chosen if one is not chain[-1]]
        captions = [final.caption, *(others[int(i)] for i in rng.permutation(len(others))[:3])]
        options = tuple(captions[int(i)] for i in rng.permutation(len(captions)))
        head = _HEAD.format(first=chain[0].caption)
        order = rng.permutation(len(chosen))
        chains.append(
            Chain(
                id=f"chain-{number:03}",
                pictures=tuple((chosen[int(i)].id, texts.get(chosen[int(i)].id, "")) for i in order),
                questions=(
                    PictureQuestion(
                        name="Q1",
                        text=f"{head}choose the captions that best describe the frame:",
                        options=options,
                        answer=options.index(final.caption),
                    ),
                    PictureQuestion(
                        name="Q2",
                        text=f"{head}answer the following question based on the final frame: {final.question}",
                        options=final.options,
                        answer=final.answer,
                    ),
                ),
            )
        )
    return chains


def _differ(one: str, other: str) -> bool:
    """Whether neither caption contains the other."""
    one, other = one.casefold(), other.casefold()
    return one not in other and other not in one


def haystack_of(streams: Mapping[str, int], length: int, rng: np.random.Generator) -> tuple[Piece, ...]:
    """Streams in a random order, whole clips of each, until there are `length` frames.

    Raises:
        UsageError: there are too few frames.
    """
    pieces, left, names = list[Piece](), length, sorted(streams)
    for index in rng.permutation(len(names)):
        frames = min(left, streams[names[int(index)]] // CLIP * CLIP)
        if frames:
            pieces.append(Piece(stream=names[int(index)], first=0, stop=frames))
        left -= frames
    if left:
        raise UsageError(f"a haystack of {length} frames lacks {left}; add longer videos, or give smaller --length")
    return tuple(pieces)


__all__ += ["at_depth", "haystack_of"]
