"""The folder of a run: what was asked, how, and one JSON line for each answer.

    run.json         RunHead: everything that a figure depends on
    questions.jsonl  the items, one a line
    answers.jsonl    AnswerLine, appended and synced one by one

A run that was killed goes on: a half-written last line is cut off, and what has an answer is not asked again, by the id
of the question and never by its position. A folder whose `run.json` differs from the run in what figures depend on is
an error. Knows neither models nor stores.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import UsageError
from index.files import write_atomically
from pipeline.evaluation.benchmarks.benchmark import Item
from pipeline.evaluation.benchmarks.subtitles import SubtitleRule

__all__ = ["AnswerLine", "Baseline", "Mode", "RunFolder", "RunHead", "ShownFrame", "State"]

Mode = Literal["likelihood", "generated"]
"""Whether options are compared by likelihood, or a generated reply is parsed."""

Baseline = Literal["none", "blind", "single-frame"]
"""What the model sees: everything, no frame, or the frame in the middle."""

State = Literal["answered", "unparsed", "refused", "missing", "undecodable", "broken"]
"""What became of a question.

`unparsed`: the reply names no option; `refused`: the question does not fit the model, or the model refuses its input;
`missing`: there is no video; `undecodable`: it has no readable frame in the time in question; `broken`: the row cannot
be asked. All but `answered` count as wrong.
"""

_AGAIN = frozenset({"missing", "undecodable"})
_FREE = frozenset({"limit", "questions", "version", "store"})


class ShownFrame(BaseModel):
    """A keyframe of an answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream_id: str
    """Stream in the store."""
    captured_at: str
    """Time in the store, RFC 3339."""
    seconds: float
    """Seconds since the first frame of the video."""
    score: float
    """Relevance to the question."""
    evidence: bool = False
    """Whether it is within the known evidence."""


class AnswerLine(BaseModel):
    """The result of one question, in one order of its options."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """Id of the question."""
    rotation: int = 0
    """The option that was shown first."""
    state: State
    """What became of the question."""
    reply: str = ""
    """The raw reply of the model; the text of the option where options were compared by likelihood."""
    predicted: int | tuple[float, float] | None = None
    """Index of the chosen option in the order of the row, or a span in seconds; None if there is none."""
    shown: int | None = None
    """Position at which the chosen option was shown."""
    value: float = 0.0
    """Score in [0, 1]."""
    probabilities: list[float] = Field(default_factory=list)
    """Probability of each option in the order of the row; empty where the answer was generated."""
    keyframes: list[ShownFrame] = Field(default_factory=list)
    """Keyframes in the order of selection."""
    evidence_hit: bool | None = None
    """Whether a keyframe is within the evidence; None where that is not known."""
    depth: float | None = None
    """Middle of the evidence as a share of the video, 0 to 1; None where that is not known."""
    frames: int = 0
    """Frames that the model read."""
    window_frames: int = 0
    """Frames of the video, one a second."""
    visual_tokens: int = 0
    """Tokens that represent the frames."""
    subtitle_lines: int = 0
    """Lines of subtitles in the prompt."""
    timings_seconds: dict[str, float] = Field(default_factory=dict)
    """Time of each stage."""
    problem: str | None = None
    """What happened, unless the question was answered; also a defect of the footage that was read."""
    detail: dict[str, Any] = Field(default_factory=dict)
    """What the benchmark's metrics need beside it."""


class RunHead(BaseModel):
    """Everything that the figures of a run depend on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    benchmark: str
    """Name of the benchmark."""
    split: str
    """Name of the split."""
    annotations: str
    """SHA-256 of the annotation files."""
    rows: int
    """Rows of the split."""
    questions: int
    """Rows that are asked."""
    subset: str | None = None
    """`FIELD=VALUE` that the rows were chosen by."""
    limit: int | None = None
    """Largest number of rows; they are drawn with the seed."""
    prompt_id: str
    """The prompt."""
    parser_id: str
    """The parser of replies."""
    mode: Mode
    """How answers are found."""
    baseline: Baseline
    """What the model sees."""
    reference: bool
    """Whether the published scripts' way of reading frames is used."""
    rotations: int
    """Cyclic orders of the options, at most; 1 is the order of the rows alone."""
    frame_rule: str
    """Rate and bounds of the frames."""
    subtitle_rule: SubtitleRule
    """Which subtitles the prompt has."""
    decoding: str
    """How replies are decoded."""
    seed: int
    """Seed of drawn rows and options."""
    k: int
    """Largest number of keyframes."""
    tau: float
    """Similarity threshold τ."""
    selector: str
    """Selector of keyframes."""
    profile: str
    """Name of the model profile."""
    profile_digest: str
    """SHA-256 of the profile's settings."""
    encoders: dict[str, Any]
    """Identities of the encoders, with the digests of their weights."""
    service: bool
    """Whether a model service answered."""
    version: str
    """Version of Sightline that began the run."""
    store: str
    """The store, credentials masked."""

    def differences(self, other: RunHead) -> list[str]:
        """What differs from another head and changes figures, as `FIELD: mine, not theirs`."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [
            f"{name}: {mine[name]}, not {theirs[name]}" for name in mine.keys() - _FREE if mine[name] != theirs[name]
        ]


class RunFolder:
    """The folder of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head_path, self.items_path = path / "run.json", path / "questions.jsonl"
        self.answers_path = path / "answers.jsonl"

    def begin(self, head: RunHead, items: list[Item]) -> None:
        """Create the folder, or go on with one that has the same head; its questions may grow with `limit`.

        Raises:
            UsageError: the folder has a run of other settings.
        """
        if self.head_path.exists():
            problems = self.head().differences(head)
            if problems:
                raise UsageError(
                    f"--out {self.path}: holds another run ({'; '.join(sorted(problems))}); name another folder"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.items_path, "".join(json.dumps(asdict(item)) + "\n" for item in items))
        write_atomically(self.head_path, head.model_dump_json(indent=1) + "\n")
        self._cut()

    def _cut(self) -> None:
        """Cut off a last line that was not written to its end."""
        if not self.answers_path.exists():
            return
        with self.answers_path.open("r+b") as file:
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                file.truncate(len(whole))

    def head(self) -> RunHead:
        """The head. Raises UsageError if there is none."""
        try:
            return RunHead.model_validate_json(self.head_path.read_text())
        except (OSError, ValidationError) as error:
            raise UsageError(f"{self.path}: is no folder of `sightline eval run`: {error}") from None

    def items(self) -> list[Item]:
        """The questions of the run, in their order."""
        rows = [json.loads(line) for line in self.items_path.read_text().splitlines()]
        return [item_of(row) for row in rows]

    def answers(self) -> dict[tuple[str, int], AnswerLine]:
        """The answers by question and rotation; of several, the last."""
        found: dict[tuple[str, int], AnswerLine] = {}
        if self.answers_path.exists():
            for line in self.answers_path.read_text().split("\n"):
                if not line:
                    continue
                try:
                    answer = AnswerLine.model_validate_json(line)
                except ValidationError:
                    continue  # the line that a killed run was writing
                found[answer.id, answer.rotation] = answer
        return found

    def done(self) -> set[tuple[str, int]]:
        """What need not be asked again: everything but questions whose video was missing or could not be read."""
        return {key for key, answer in self.answers().items() if answer.state not in _AGAIN}

    def append(self, answer: AnswerLine) -> None:
        """Append an answer; it survives a power cut once this returns."""
        with self.answers_path.open("ab") as file:
            file.write(answer.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def item_of(row: dict[str, Any]) -> Item:
    """The item that `dataclasses.asdict` made a row of, read back from JSON."""
    clip = row["clip"]
    values = {
        "options": tuple(row["options"]),
        "spans": tuple((float(a), float(b)) for a, b in row["spans"]),
        "frames": tuple(row["frames"]),
        "clip": None if clip is None else (clip[0], clip[1]),
        "groups": {name: tuple(each) for name, each in row["groups"].items()},
    }
    return Item(**{**row, **values})


__all__ += ["item_of"]
