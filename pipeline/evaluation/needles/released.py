"""Multi-hop rows as VideoChat-Flash released them: pictures that name each other already, and two questions.

A row is {images, question1, answer1, question2, answer2}. The images are listed in the order of time, clues and decoys
with their texts printed on them; they are shown as they are. Questions end with their options. Which image is the
final one is known from the names of the released files alone, and is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.errors import UsageError
from pipeline.evaluation.benchmarks.rows import read_rows
from pipeline.evaluation.needles.chains import PictureQuestion
from pipeline.evaluation.needles.pictures import Picture, checked_answer, released_question

__all__ = ["ReleasedChain", "are_chains", "read_chains"]


@dataclass(frozen=True, slots=True)
class ReleasedChain:
    """Pictures that name each other, in the order of time, and the two questions."""

    id: str
    """Its place in the file, or its id if it has one."""
    pictures: tuple[Picture, ...]
    """The pictures, texts included."""
    questions: tuple[PictureQuestion, PictureQuestion]
    """Q1 and Q2."""


def are_chains(path: Path) -> bool:
    """Whether a file has rows of chains; raises UsageError if it cannot be read."""
    return any("images" in row for row in read_rows(path))


def read_chains(path: Path) -> list[ReleasedChain]:
    """The chains of a file; images are relative to it.

    Raises:
        UsageError: the file cannot be read, or a row cannot be asked; the message names the row.
    """
    return [_chain(path, str(row.get("id", number)), row) for number, row in enumerate(read_rows(path))]


def _chain(path: Path, name: str, row: dict[str, Any]) -> ReleasedChain:
    where = f"{path}: row {name}"
    images = row.get("images")
    if not isinstance(images, list) or len(images) < 2 or not all(isinstance(image, str) and image for image in images):
        raise UsageError(f"{where}: images must be a list of at least two paths")
    if len(set(images)) < len(images):
        raise UsageError(f"{where}: names an image twice")
    pictures = tuple(Picture(id=image, path=path.parent / image) for image in images)
    for picture in pictures:
        if picture.path is None or not picture.path.is_file():
            raise UsageError(f"{where}: there is no image {picture.path}; images are relative to the file of the rows")
    return ReleasedChain(f"chain-{name}", pictures, (_question(row, 1, where), _question(row, 2, where)))


def _question(row: dict[str, Any], number: int, where: str) -> PictureQuestion:
    text, options = released_question(str(row.get(f"question{number}") or ""))
    answer = checked_answer(row.get(f"answer{number}"), text, options, f"{where}, question{number}")
    return PictureQuestion(name=f"Q{number}", text=text, options=options, answer=answer)
