"""A run of an ablation: `sightline eval ablate`.

    run.json   mergers/NAME.safetensors   rows/NAME.jsonl   report.json   report.md   report.html

All rows ask the same questions about the same rendered streams. The answers of a row are written when the row is done,
so a run that was stopped goes on with the next row. Speed and memory are those of the machine; operations are counted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from index.errors import UsageError
from index.files import write_atomically
from index.records import to_micros
from index.store import Store
from model.answerer import Answerer
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import Profile, load_profile
from model.selection import select_rows
from pipeline.bench.memory import peak_bytes, reset_peak
from pipeline.evaluation.ablations.models import AskedCamera, RowModels
from pipeline.evaluation.ablations.plan import GROUPS, TRAINED, AblationRow, Group, Trained, plan_rows
from pipeline.evaluation.camera import Camera
from pipeline.evaluation.footage import evidence_shown
from pipeline.evaluation.needles.rendered import BEGAN
from pipeline.evaluation.streams import AskedStream, rendered_streams

__all__ = ["AblationAnswer", "AblationFolder", "AblationHead", "AblationPlan", "run_ablation"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationPlan:
    """What is run.

    Raises:
        UsageError: a number is out of range.
    """

    work: Path
    """Folder for the store of rendered footage, which a later run uses again."""
    out: Path
    """Folder of the run."""
    profile: str
    """Name of the profile, or the path of its TOML file."""
    device: str | None = None
    """Device of the models."""
    seed: int = 401
    """Seed of the streams; mergers are trained on those of the next seed."""
    streams: int = 8
    """Streams that are asked about."""
    seconds: int = 300
    """Length of a stream."""
    each: int = 2
    """Questions of every kind and stream."""
    training_streams: int = 6
    """Streams that mergers are trained on."""
    training_steps: int = 40
    """Optimiser steps of each merger."""
    groups: tuple[Group, ...] = GROUPS
    """Groups of rows."""
    trained: tuple[Trained, ...] = TRAINED
    """Mergings that are trained; none to leave them out."""

    def __post_init__(self) -> None:
        least = {"streams": 1, "seconds": 60, "each": 1, "training_streams": 1, "training_steps": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name.replace('_', ' ')} must be at least {value}, got {getattr(self, name)}")


class AblationHead(BaseModel):
    """What the figures of a run depend on."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    encoders: dict[str, str]
    """Digests of the weights of both encoders."""
    seed: int
    """Seed of the streams."""
    streams: int
    """Streams that are asked about."""
    seconds: int
    """Length of a stream, and its frames."""
    questions: int
    """Questions of each row."""
    questions_digest: str
    """SHA-256 of their texts, options and answers."""
    training_streams: int
    """Streams that mergers were trained on, of the next seed."""
    training_steps: int
    """Optimiser steps of each trained merger."""


class AblationAnswer(BaseModel):
    """The answer to one question in one row."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    question: str
    """Stream and number of the question."""
    stream: str
    """Its stream."""
    kind: str
    """Kind of the question."""
    right: bool
    """Whether the answer is right."""
    evidence: bool
    """Whether keyframes show every event of the evidence."""
    keyframes: int
    """Keyframes."""
    frames: int
    """Frames that were read, keyframes included."""
    visual_tokens: int
    """Vision tokens."""
    prompt_tokens: int
    """Tokens of the prompt."""
    first_token: float
    """Seconds from the question to the scores of its options, patches in memory."""
    cpu_seconds: float
    """Time that cores worked for the question, selection and reading included: its time on one core without other
    work."""
    peak_bytes: int
    """Growth of the peak resident memory while the row was answered, up to this question; 0 where it is not known."""


class AblationFolder:
    """The folder of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, head: AblationHead) -> None:
        """Create the folder, or go on with one that has the same head.

        Raises:
            UsageError: the folder has another run.
        """
        file = self.path / "run.json"
        if file.exists() and self.head() != head:
            raise UsageError(f"--out {self.path}: holds another run; name another folder")
        (self.path / "rows").mkdir(parents=True, exist_ok=True)
        write_atomically(file, head.model_dump_json(indent=1) + "\n")

    def head(self) -> AblationHead:
        """The head. Raises UsageError if there is none."""
        try:
            return AblationHead.model_validate_json((self.path / "run.json").read_text())
        except (OSError, ValidationError) as error:
            raise UsageError(f"{self.path}: is no folder of `sightline eval ablate`: {error}") from None

    def answers(self, row: AblationRow) -> list[AblationAnswer] | None:
        """The answers of a row; None if it is not done."""
        file = self._file(row)
        if not file.exists():
            return None
        return [AblationAnswer.model_validate_json(line) for line in file.read_text().splitlines()]

    def write(self, row: AblationRow, answers: list[AblationAnswer]) -> None:
        """Keep the answers of a row, all or nothing."""
        write_atomically(self._file(row), "".join(answer.model_dump_json() + "\n" for answer in answers))

    def _file(self, row: AblationRow) -> Path:
        return self.path / "rows" / (re.sub(r"[^a-z0-9.=-]+", "_", row.name) + ".jsonl")


def run_ablation(
    plan: AblationPlan, on_progress: Progress = lambda stage, done, total: None
) -> tuple[AblationFolder, dict[Group, list[AblationRow]], Profile]:
    """Run all rows that the folder lacks.

    Args:
        plan: what is run.
        on_progress: called with the name of the stage, what is done of it, and all of it.

    Returns:
        The folder, the rows of each group, and the profile.

    Raises:
        UsageError: the profile cannot be ablated, or the folder has another run.
    """
    profile = load_profile(plan.profile)
    groups = plan_rows(profile, plan.groups, plan.trained)
    encoders = load_encoders(profile, plan.device)
    store = Store.open_or_create(str(plan.work / f"store-{profile.name}"), encoders.pair)

    def streams(seed: int, count: int, each: int) -> list[AskedStream]:
        """Rendered streams of a seed."""
        return rendered_streams(
            store,
            encoders,
            plan.work / "drawn",
            seed=seed,
            count=count,
            seconds=plan.seconds,
            each=each,
            on_progress=lambda done, total: on_progress("footage", done, total),
        )

    asked = streams(plan.seed, plan.streams, plan.each)
    folder = AblationFolder(plan.out)
    folder.begin(_head(plan, profile, encoders, asked))
    rows = list(dict.fromkeys(row for group in groups.values() for row in group))
    left = [row for row in rows if folder.answers(row) is None]
    models = RowModels(profile, encoders, plan.out / "mergers", plan.device)
    for merging in plan.trained:
        if any(row.merging == merging for row in left):
            models.prepare(
                merging,
                lambda: list(_cameras(store, streams(plan.seed + 1, plan.training_streams, 2 * plan.each))),
                seed=plan.seed,
                steps=plan.training_steps,
                on_step=lambda step, loss, name=merging: on_progress(  # type: ignore[misc]
                    f"training {name}, loss {loss:.2f}", step, plan.training_steps
                ),
            )
    for number, row in enumerate(rows):
        on_progress(row.name, number, len(rows))
        if row in left:
            folder.write(row, _answers(models.answerer(row), row, _cameras(store, asked)))
    on_progress("rows", len(rows), len(rows))
    return folder, groups, profile


def _cameras(store: Store, streams: list[AskedStream]) -> Iterator[AskedCamera]:
    """Streams in memory, one after the other."""
    for stream in streams:
        yield AskedCamera(Camera(store, store.window([stream.name]), to_micros(BEGAN)), stream.questions)


def _answers(answerer: Answerer, row: AblationRow, cameras: Iterator[AskedCamera]) -> list[AblationAnswer]:
    """All questions of a row."""
    found: list[AblationAnswer] = []
    before = _reset_peak()
    for camera, questions in cameras:
        window = camera.window
        (name,) = window.streams
        for number, question in enumerate(questions):
            worked = process_time()
            query = answerer.encoders.frame.encode_text([question.text])[0]
            keyframes = select_rows(window.frame_vectors, query, answerer.profile).rows
            if row.merging == "none":
                read = np.sort(keyframes)
                answer = camera.answer_from(answerer, question, keyframes, read)
                frames = len(read)
            else:
                answer = camera.answer(answerer, question, keyframes)
                frames = answer.visual_tokens - len(keyframes) * (answerer.visual.keyframe_tokens - 1)
            found.append(
                AblationAnswer(
                    question=f"{name}-{number}",
                    stream=name,
                    kind=question.kind,
                    right=answer.text == question.answer,
                    evidence=all(evidence_shown(question, camera.seconds[keyframes])),
                    keyframes=len(keyframes),
                    frames=frames - answerer.visual.closing_tokens,
                    visual_tokens=answer.visual_tokens,
                    prompt_tokens=answer.prompt_tokens,
                    first_token=round(answer.timings["first_token"], 4),
                    cpu_seconds=round(process_time() - worked, 4),
                    peak_bytes=max(0, peak_bytes() - before),
                )
            )
    return found


def _reset_peak() -> int:
    """Resident memory now, from which the growth of the peak counts; 0 where it is not known."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    reset_peak()
    return peak_bytes()


def _head(plan: AblationPlan, profile: Profile, encoders: Encoders, asked: list[AskedStream]) -> AblationHead:
    pair = encoders.pair
    questions = [(s.name, q.text, q.options, q.answer) for s in asked for q in s.questions]
    return AblationHead(
        profile=profile.name,
        encoders={"frame": pair.frame.weights_digest, "patch": pair.patch.weights_digest},
        seed=plan.seed,
        streams=plan.streams,
        seconds=plan.seconds,
        questions=len(questions),
        questions_digest=hashlib.sha256(repr(questions).encode()).hexdigest(),
        training_streams=plan.training_streams,
        training_steps=plan.training_steps,
    )
