"""What every adapter is: rows, videos, prompt, parse, metric and groups.

    files of the user ─ read ─▶ Item … ─ prompt ─▶ model ─ reply ─▶ parse ─ score ─▶ value in [0, 1] ─ metrics ─▶ figure

An adapter says where its files are and what they mean. It does not know models, stores, or how a run resumes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.evaluation.benchmarks.subtitles import Alignment
from pipeline.evaluation.scoring.reply import LETTERS, PARSER_ID, parse_reply
from pipeline.evaluation.scoring.spans import Span

__all__ = ["Benchmark", "Item", "Metric", "Scored", "Split", "Task"]

Task = Literal["choice", "grounding", "highlights"]
"""What is asked for: one of several options, a span of time, or a ranking of moments."""

_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a benchmark."""

    id: str
    """Unique within the split; a run resumes by it."""
    video: str
    """Name of the video, which several items may share."""
    question: str
    """The question alone, which keyframes are selected for."""
    options: tuple[str, ...] = ()
    """Options without labels; empty unless the task is a choice."""
    answer: int | None = None
    """Index of the right option; None if it is hidden, or the task is another."""
    spans: tuple[Span, ...] = ()
    """Where the evidence is, in seconds of the video; empty if that is not known."""
    frames: tuple[int, ...] = ()
    """Where the evidence is, as numbers of frames of the original file; its rate makes them spans."""
    clip: tuple[float | None, float | None] | None = None
    """The part of the video that the question is about, in seconds; the whole video if None."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Values of each field that accuracies are reported by; an item counts in each of its values."""
    problem: str | None = None
    """Why the row cannot be asked or scored; it counts as wrong."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the adapter's score needs; kept with the answer as it is, so values are those of JSON."""


@dataclass(frozen=True, slots=True)
class Split:
    """The items of one split, and the files that they were read from."""

    items: list[Item]
    """All rows, in the order of the files."""
    files: list[Path]
    """Annotation files, whose digest is recorded."""


@dataclass(frozen=True, slots=True)
class Scored:
    """An answered item, as metrics need it."""

    item: Item
    """The item."""
    value: float
    """Its score in [0, 1]: 1 and 0 for right and wrong, or an IoU."""
    detail: Mapping[str, Any]
    """What `Benchmark.detail` returned."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a benchmark beside its accuracy."""

    name: str
    """Its name."""
    value: float
    """Its value, in percent."""
    note: str = ""
    """How it is computed, in a few words."""


class Benchmark(ABC):
    """An adapter of one benchmark."""

    name: ClassVar[str]
    """Name on the command line."""
    title: ClassVar[str]
    """Name in reports."""
    task: ClassVar[Task] = "choice"
    """What is asked for."""
    splits: ClassVar[tuple[str, ...]] = ("test",)
    """Names of the splits, the default first."""
    groups: ClassVar[tuple[str, ...]] = ()
    """Fields that accuracies are reported by."""
    subtitled: ClassVar[bool] = False
    """Whether it has subtitles."""
    prompt_id: ClassVar[str]
    """Recorded with results; changes whenever the prompt does."""
    parser_id: ClassVar[str] = PARSER_ID
    """Recorded with results; changes whenever a reply may be read differently."""
    reference_tokens: ClassVar[int] = 256
    """Most tokens of an answer in the published scripts of ViLAMP."""
    lmms_tasks: ClassVar[Mapping[str, str]] = {}
    """Name of the task in lmms-eval by split; a split that is not there has no task with the same rows."""
    sizes: ClassVar[Mapping[str, int]] = {}
    """Rows of each split as published; a file with fewer rows gives figures that are not comparable."""
    alignment: ClassVar[Alignment] = Alignment()
    """When a line of subtitles is aligned with a frame."""

    @abstractmethod
    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read all rows of a split.

        Args:
            data: folder of the user.
            split: one of `splits`.
            seed: for adapters that draw options; others ignore it.

        Raises:
            UsageError: a file is missing or not readable.
        """

    @abstractmethod
    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """The text of the user's turn where the answer is generated.

        Args:
            item: the item.
            options: its options in the order in which they are shown.
            subtitles: lines of subtitles; empty without.
        """

    def video_paths(self, data: Path, item: Item) -> list[Path]:
        """Where the item's video may be: files, or a folder of pictures; the first that exists is read."""
        return with_suffixes(data, ("data", "videos", "."), item.video)

    def subtitle_path(self, data: Path, item: Item) -> tuple[Path, float] | None:
        """File of the item's subtitles and the seconds to subtract; None without."""
        return None

    def parse(self, reply: str, options: Sequence[str]) -> int | Span | None:
        """What a generated reply says: the position of an option, or a span; None if it is unparsed."""
        return parse_reply(reply, options)

    def score(self, item: Item, predicted: int | Span | None) -> float:
        """The value of a prediction in [0, 1]; `predicted` indexes the options of the item."""
        return float(item.answer is not None and predicted == item.answer)

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        """Figures beside the mean value, over every row of the split; none by default."""
        return []


def with_suffixes(data: Path, folders: Sequence[str], name: str) -> list[Path]:
    """Paths of a video in some folders; a name that has a suffix stays as it is, and is tried first."""
    given = [data / folder / name for folder in folders] if Path(name).suffix.lower() in _LOWER else []
    stem = name.removesuffix(Path(name).suffix) if given else name
    return given + [data / folder / f"{stem}{suffix}" for folder in folders for suffix in _SUFFIXES]


_LOWER = frozenset(suffix.lower() for suffix in _SUFFIXES)


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """Options with their letters, one a line."""
    return "\n".join(form.format(letter=LETTERS[i], option=option) for i, option in enumerate(options))


def row_id(*parts: object) -> str:
    """An id for a row whose file gives none: a digest of what it says."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]


def unique_ids(items: Sequence[Item]) -> list[Item]:
    """The items with `#2`, `#3` … behind ids that are not the first of their name."""
    seen: dict[str, int] = {}
    result = []
    for item in items:
        seen[item.id] = count = seen.get(item.id, 0) + 1
        result.append(item if count == 1 else _renamed(item, f"{item.id}#{count}"))
    return result


def _renamed(item: Item, name: str) -> Item:
    fields = {key: getattr(item, key) for key in Item.__dataclass_fields__}
    return Item(**{**fields, "id": name})


__all__ += ["lettered", "row_id", "unique_ids", "with_suffixes"]
