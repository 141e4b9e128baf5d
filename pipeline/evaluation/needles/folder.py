"""Haystacks and needles from a folder of the user: videos, and rows with questions about the short ones.

Rows are those of `questions.*` in the folder, or of a benchmark of choices such as Video-MME. A video that rows name
and that has 30 to 120 frames is a needle; longer videos, whether rows name them or not, are haystacks. Of Video-MME,
short videos are needles and long ones haystacks, and those of medium length are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from index.errors import UsageError
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from model.encoders.encoder import Encoders
from pipeline.evaluation.benchmarks.benchmark import Benchmark, Item, Split, lettered, unique_ids
from pipeline.evaluation.benchmarks.registry import BENCHMARKS
from pipeline.evaluation.benchmarks.rows import answer_or_problem, digest_of, find_file, read_rows, strip_options
from pipeline.evaluation.needles.cases import Needle
from pipeline.evaluation.runs.footage import Footage

__all__ = ["NEEDLE_FRAMES", "FolderFootage", "FolderRows", "read_films", "read_folder"]

NEEDLE_FRAMES = (30, 120)
"""Fewest and most frames of a needle: the paper's 30 to 120 seconds."""

_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_PLACES = ("videos", "data", ".")


class FolderRows(Benchmark):
    """Rows {video, question, options, answer} and, if there are, question_id and task_type, in `questions.*`."""

    name = "needles"
    title = "needles"
    groups: ClassVar[tuple[str, ...]] = ("task_type",)
    prompt_id = "needles-1"

    def read(self, data: Path, split: str, seed: int = 0) -> Split:
        """Read the rows; see `Benchmark.read`."""
        path = find_file(data, tuple(f"questions.{suffix}" for suffix in ("jsonl", "json", "csv", "parquet")))
        items = []
        for number, row in enumerate(read_rows(path)):
            listed = row.get("options")
            options = strip_options(listed.split("|") if isinstance(listed, str) else listed)
            answer, problem = answer_or_problem(row.get("answer"), options)
            items.append(
                Item(
                    id=str(row.get("question_id", number)),
                    video=str(row.get("video", "")),
                    question=str(row.get("question", "")).strip(),
                    options=options,
                    answer=answer,
                    groups={name: (str(row[name]),) for name in self.groups if row.get(name)},
                    problem=problem,
                )
            )
        return Split(unique_ids(items), [path])

    def prompt(self, item: Item, options: Sequence[str], subtitles: Sequence[str]) -> str:
        """The question with its options; needles compare options by likelihood, so that it is not used."""
        return f"{item.question}\n{lettered(options)}"


@dataclass(frozen=True, slots=True)
class FolderFootage:
    """What a folder gives."""

    needles: list[Needle]
    """Questions about needles."""
    haystacks: dict[str, int]
    """Frames of each stream that haystacks are made of."""
    source: str
    """Rows and the digest of their file."""
    missing: list[str] = field(default_factory=list)
    """Videos that rows name and that could not be read, each with the reason."""
    broken: list[str] = field(default_factory=list)
    """Rows that cannot be asked, each with the reason."""


def read_folder(
    data: Path,
    rows: str,
    store: Store,
    encoders: Encoders,
    limits: DecodeLimits | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FolderFootage:
    """Read rows, and ingest the videos that the store lacks.

    Args:
        data: the folder.
        rows: `questions` for `questions.*`, or the name of a benchmark of choices.
        store: the store.
        encoders: its encoders.
        limits: of the decoder.
        on_progress: called with the videos looked for and the videos in all.

    Raises:
        UsageError: the rows cannot be read, or the benchmark is no choice.
    """
    bench = FolderRows() if rows == "questions" else BENCHMARKS.get(rows)
    if bench is None or bench.task != "choice":
        choices = ", ".join(name for name, each in BENCHMARKS.items() if each.task == "choice")
        raise UsageError(f"--rows {rows}: give questions, or one of {choices}")
    split = bench.read(data, bench.splits[0])
    items = [item for item in split.items if item.groups.get("duration", ("",))[0] != "medium"]
    named = {item.video: item for item in items}
    if rows == "questions":
        for name in _unnamed(data, set(named)):
            named[name] = Item(id=name, video=name, question="")
    footage, found, missing = Footage(bench, data, store, lambda: encoders, limits), dict[str, str](), list[str]()
    for number, (name, item) in enumerate(named.items()):
        video = footage.find(item)
        if video.stream is None:
            missing.append(f"{name}: {video.problem}")
        else:
            found[name] = video.stream
        on_progress(number + 1, len(named))
    frames = {summary.stream_id: summary.frames for summary in store.streams(sorted(set(found.values())))}
    needles, broken = list[Needle](), list[str]()
    for item in items:
        stream = found.get(item.video)
        if item.problem is not None or item.answer is None or len(item.options) < 2:
            broken.append(f"{item.id}: {item.problem or 'has fewer than two options'}")
        elif stream is not None and NEEDLE_FRAMES[0] <= frames.get(stream, 0) <= NEEDLE_FRAMES[1]:
            needles.append(
                Needle(
                    id=item.id,
                    stream=stream,
                    frames=frames[stream],
                    kind=item.groups.get("task_type", ("question",))[0],
                    question=item.question,
                    options=item.options,
                    answer=item.answer,
                )
            )
    short = {found[item.video] for item in items if item.groups.get("duration") == ("short",) and item.video in found}
    haystacks = {name: count for name, count in frames.items() if count > NEEDLE_FRAMES[1] and name not in short}
    return FolderFootage(needles, haystacks, f"{rows} {digest_of(split.files)[:16]}", missing, broken)


def read_films(
    folder: Path,
    store: Store,
    encoders: Encoders,
    limits: DecodeLimits | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Ingest the videos of a folder that the store lacks; returns the frames of each stream. One that cannot be read is
    left out.

    Raises:
        UsageError: the folder has no readable video.
    """
    names = _unnamed(folder, set())
    footage, streams = Footage(FolderRows(), folder, store, lambda: encoders, limits), []
    for number, name in enumerate(names, 1):
        streams.append(footage.find(Item(id=name, video=name, question="")).stream)
        on_progress(number, len(names))
    found = {each.stream_id: each.frames for each in store.streams(sorted({name for name in streams if name}))}
    if not found:
        raise UsageError(f"{folder}: has no readable video; haystacks are made of its .mp4, .mkv or .webm files")
    return found


def _unnamed(data: Path, named: set[str]) -> list[str]:
    """Names of videos in the folder that no row names."""
    stems = {Path(name).stem for name in named}
    found = [path for place in _PLACES if (data / place).is_dir() for path in sorted((data / place).iterdir())]
    return [path.name for path in found if path.suffix.lower() in _SUFFIXES and path.stem not in stems]
