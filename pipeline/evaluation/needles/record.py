"""The folder of a run over needles: what was measured, the list of cases, and one line an answer.

    run.json   cases.jsonl   answers.jsonl   report.md   heatmap.json   heatmap.png

An answer is on the disk before the next question is asked, and a run goes on by the id of the case. Does not know what
a case is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from index.errors import UsageError
from index.files import write_atomically

__all__ = ["SETTINGS", "AnswerLine", "NeedleFolder", "NeedleHead", "Setting"]

Setting = Literal["spliced", "needle alone", "haystack alone", "blind"]
"""What is shown of a case."""
SETTINGS: tuple[Setting, ...] = get_args(Setting)
"""All of them, in the order in which they are asked."""


class NeedleHead(BaseModel):
    """What the figures of a run depend on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: str
    """`video`, `image` or `chain`."""
    cases_digest: str
    """SHA-256 of the list of cases; equal for two profiles that were asked the same."""
    source: str
    """Where footage and questions come from: `rendered` with its seed, or the digest of the annotation file."""
    seed: int
    """Seed of the list."""
    settings: list[Setting]
    """What was asked of each case, such as `spliced` and `blind`."""
    profile: str
    """Name of the model profile."""
    k: int
    """Largest number of keyframes."""
    tau: float
    """Similarity threshold τ."""
    encoders: dict[str, str]
    """Digests of the weights of both encoders."""
    decoding: str = "likelihood of options"
    """How an answer is found."""


class AnswerLine(BaseModel):
    """The answer to one question of one case."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    case: str
    """Id of the case."""
    setting: str
    """What was shown."""
    predicted: int | None
    """Index of the chosen option; None if the question could not be asked."""
    right: bool
    """Whether it is the right one."""
    probabilities: list[float] = []
    """Probabilities of the options."""
    frames: int = 0
    """Frames that were read."""
    keyframes: int = 0
    """Keyframes."""
    needle_keyframes: int = 0
    """Keyframes in the needle."""
    evidence: bool | None = None
    """Whether keyframes show every event of the evidence; None if that is not known."""
    visual_tokens: int = 0
    """Vision tokens of the prompt."""
    seconds: float = 0.0
    """Time from the question to the answer, selection and reading included."""
    peak_bytes: int = 0
    """Peak of the process's resident memory until then; 0 where it is not known."""
    problem: str | None = None
    """Why the question could not be asked; it counts as wrong."""


class NeedleFolder:
    """The folder of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head_path, self.cases_path = path / "run.json", path / "cases.jsonl"
        self.answers_path = path / "answers.jsonl"

    def begin(self, head: NeedleHead, cases: Sequence[BaseModel]) -> None:
        """Create the folder, or go on with one that has the same head.

        Raises:
            UsageError: the folder has another run.
        """
        if self.head_path.exists():
            mine, theirs = self.head().model_dump(), head.model_dump()
            other = sorted(f"{name}: {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name])
            if other:
                raise UsageError(f"--out {self.path}: holds another run ({'; '.join(other)}); name another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.cases_path, list_text(cases))
        write_atomically(self.head_path, head.model_dump_json(indent=1) + "\n")

    def head(self) -> NeedleHead:
        """The head. Raises UsageError if there is none."""
        try:
            return NeedleHead.model_validate_json(self.head_path.read_text())
        except (OSError, ValidationError) as error:
            raise UsageError(f"{self.path}: is no folder of `sightline eval needles`: {error}") from None

    def answers(self) -> dict[tuple[str, str], AnswerLine]:
        """Answers by case and setting; a line that was not written to its end is left out."""
        found: dict[tuple[str, str], AnswerLine] = {}
        if self.answers_path.exists():
            for text in self.answers_path.read_text().split("\n"):
                try:
                    line = AnswerLine.model_validate_json(text)
                except ValidationError:
                    continue
                found[line.case, line.setting] = line
        return found

    def write(self, summary: BaseModel, heat: BaseModel, picture: bytes, report: str) -> None:
        """Write `summary.json`, `heatmap.json`, `heatmap.png` and `report.md`."""
        write_atomically(self.path / "summary.json", summary.model_dump_json(indent=1) + "\n")
        write_atomically(self.path / "heatmap.json", heat.model_dump_json(indent=1) + "\n")
        write_atomically(self.path / "heatmap.png", picture)
        write_atomically(self.path / "report.md", report)

    def append(self, line: AnswerLine) -> None:
        """Append an answer; it survives a power cut once this returns. A line that a killed run began is ended."""
        with self.answers_path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def list_text(cases: Sequence[BaseModel]) -> str:
    """A list of cases as JSON Lines."""
    return "".join(case.model_dump_json() + "\n" for case in cases)


def list_digest(cases: Sequence[BaseModel]) -> str:
    """SHA-256 of a list of cases."""
    return hashlib.sha256(list_text(cases).encode()).hexdigest()


__all__ += ["list_digest", "list_text"]
