"""Training data: conversations about footage in JSON and JSON Lines files, each read by its number, and the plan's
YAML.

    [{"conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": "…"}],
      "video": "clips/a.mp4", "query": "…", "max_frame_num": 32}, …]

A picture has `image` in place of `video`. `query` (the text that keyframes are selected for) and `max_frame_num` (K)
are optional; other keys are ignored. A run may have millions of samples, so memory holds only the position of each in
its file. All samples are checked once before training starts, and each is read again when it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from index.errors import TrainingDataInvalid, UsageError, validation_message
from model.training.conversation import Turn, bare_question, check_turns
from model.training.plan import DatasetSpec, TrainingPlan

__all__ = ["Conversation", "Conversations", "load_plan"]


class _Message(BaseModel):
    """One turn as it is written."""

    model_config = ConfigDict(extra="ignore", strict=True)

    who: Literal["human", "user", "gpt", "assistant"] = Field(alias="from")
    value: str


class _Record(BaseModel):
    """A sample as it is written."""

    model_config = ConfigDict(extra="ignore", strict=True)

    conversations: list[_Message] = Field(min_length=1)
    video: str | None = None
    image: str | None = None
    query: str | None = None
    max_frame_num: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_footage(self) -> Self:
        if (self.video is None) == (self.image is None):
            raise ValueError("give exactly one of video and image")
        return self


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked sample."""

    turns: tuple[Turn, ...]
    """Questions and answers, in turn."""
    footage: Path
    """The video or picture."""
    is_image: bool
    """Whether it is a picture."""
    query: str
    """The text that keyframes are selected for."""
    keyframes: int | None
    """Its own K; the plan's or profile's if None."""
    where: str
    """File, line and number of the sample, for messages."""


@dataclass(frozen=True, slots=True)
class _File:
    """The selected samples of one file: byte offset, byte length, line and number (from 1) of each."""

    path: Path
    footage: Path
    places: NDArray[np.int64]  # [n, 4]

    def where(self, row: NDArray[np.int64]) -> str:
        """Name the place of a sample, for messages."""
        return f"{self.path}: line {row[2]}, sample {row[3]}"


class Conversations:
    """The samples of a plan, numbered through all of its files.

    Attributes:
        digest: a digest of the files and sampling strategies.

    Raises:
        TrainingDataInvalid: a file or sample is invalid; the message names the file, line and sample.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        digest = hashlib.sha256()
        self._files: list[_File] = []
        for number, spec in enumerate(plan.data):
            places = _index(spec.json_path, digest)
            chosen = _chosen(spec, len(places), np.random.default_rng([plan.seed, number]))
            digest.update(spec.sampling_strategy.encode())
            footage = plan.footage if plan.footage is not None else spec.json_path.parent
            self._files.append(_File(spec.json_path, footage, places[chosen]))
        self._ends = np.cumsum([len(file.places) for file in self._files])
        self.digest = digest.hexdigest()
        for _ in self:  # check all samples before a run of days begins
            pass

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Conversation:
        if not 0 <= number < len(self):
            raise IndexError(number)
        file = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[file - 1]) if file else 0
        return _read(self._files[file], self._files[file].places[number - start])

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))


def _chosen(spec: DatasetSpec, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    how, count = spec.take(total)
    if count > total:
        raise TrainingDataInvalid(
            f"{spec.json_path}: sampling_strategy {spec.sampling_strategy} wants {count} samples and the file has "
            f"{total}; ask for fewer, or for all"
        )
    if how == "random":
        return np.sort(rng.choice(total, count, replace=False))
    return np.arange(total)[total - count :] if how == "end" else np.arange(count)


def _index(path: Path, digest: Any) -> NDArray[np.int64]:
    """Find the samples of a file: rows of offset, length, line, number; int64[n, 4]."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).lstrip()
            file.seek(0)
            places = _index_list(path, file.read(), digest) if head[:1] == b"[" else _index_lines(file, digest)
    except OSError as error:
        raise TrainingDataInvalid(f"{path}: not readable ({error.strerror}); check json_path") from None
    if not len(places):
        raise TrainingDataInvalid(f"{path}: has no samples; remove it from the datasets")
    return places


def _index_lines(file: Any, digest: Any) -> NDArray[np.int64]:
    rows: list[tuple[int, int, int, int]] = []
    offset = 0
    for line, text in enumerate(file, 1):
        digest.update(text)
        if text.strip():
            rows.append((offset, len(text), line, len(rows) + 1))
        offset += len(text)
    return np.array(rows, np.int64).reshape(-1, 4)


def _index_list(path: Path, raw: bytes, digest: Any) -> NDArray[np.int64]:
    """Parse a JSON list value by value, so that an error is reported with the line of its sample."""
    digest.update(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TrainingDataInvalid(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from None
    decoder, blank = json.JSONDecoder(), " \t\r\n"
    rows: list[tuple[int, int, int, int]] = []
    at, counted, line, offset = text.index("[") + 1, 0, 1, 0

    def skip() -> str:
        nonlocal at
        while at < len(text) and text[at] in blank:
            at += 1
        return text[at : at + 1]

    while skip() != "]" or rows:
        line += text.count("\n", counted, at)
        offset += len(text[counted:at].encode())
        counted = at
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise TrainingDataInvalid(
                f"{path}: line {error.lineno}, sample {len(rows) + 1}: not JSON ({error.msg}); correct the file"
            ) from None
        rows.append((offset, len(text[at:end].encode()), line, len(rows) + 1))
        at = end
        after = skip()
        at += 1
        if after == "]":
            break
        if after != ",":
            line += text.count("\n", counted, at)
            raise TrainingDataInvalid(f"{path}: line {line}, after sample {len(rows)}: a comma or ] is missing")
    return np.array(rows, np.int64).reshape(-1, 4)


def _read(file: _File, row: NDArray[np.int64]) -> Conversation:
    where = file.where(row)
    try:
        with file.path.open("rb") as opened:
            opened.seek(int(row[0]))
            record = _Record.model_validate(json.loads(opened.read(int(row[1]))))
    except ValidationError as error:
        raise TrainingDataInvalid(f"{where}: {validation_message(error)}; correct the sample or leave it out") from None
    except ValueError as error:  # JSON and UTF-8
        raise TrainingDataInvalid(f"{where}: not JSON ({error}); write one sample a line, or one list") from None
    except OSError as error:
        raise TrainingDataInvalid(f"{where}: no longer readable ({error.strerror})") from None
    turns = tuple(Turn(m.who in ("human", "user"), m.value) for m in record.conversations)
    footage = file.footage / Path(str(record.video or record.image)).expanduser()
    try:
        check_turns(turns)
    except UsageError as error:
        raise TrainingDataInvalid(f"{where}: {error}") from None
    query = (record.query or "").strip() or bare_question(turns)
    if not query:
        raise TrainingDataInvalid(f"{where}: no query and no words in the first turn; add a query")
    if not footage.is_file():
        raise TrainingDataInvalid(
            f"{where}: {footage} does not exist; set footage to the folder that paths are relative to"
        )
    return Conversation(turns, footage, record.video is None, query, record.max_frame_num, where)


_DATASETS = TypeAdapter(list[DatasetSpec])


def load_plan(path: Path) -> TrainingPlan:
    """Read a plan from a YAML file. Its paths, and those of a data file that it names, are relative to the file they
    are in.

    Raises:
        UsageError: the file is not YAML, or has an unknown key or an invalid value; the message names it.
    """
    values = _yaml(path)
    data = values.get("data")
    if isinstance(data, str):
        other = path.parent / Path(data).expanduser()
        values["data"] = _datasets(_yaml(other), other)
    elif isinstance(data, dict):
        values["data"] = _datasets(data, path)
    if str(values.get("profile", "")).endswith(".toml"):
        values["profile"] = str(path.parent / Path(str(values["profile"])).expanduser())
    for key in ("footage", "cache"):
        if isinstance(values.get(key), str):
            values[key] = path.parent / Path(values[key]).expanduser()
    try:
        return TrainingPlan.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {validation_message(error)}") from None


def _datasets(values: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    unknown = sorted(values.keys() - {"datasets"})
    if unknown or "datasets" not in values:
        problem = f"{unknown[0]} is an unknown key" if unknown else "the list of datasets is missing"
        raise UsageError(f"{path}: data: {problem}; write datasets: [{{json_path: …, sampling_strategy: …}}]")
    try:
        found = _DATASETS.validate_python(values["datasets"])
    except ValidationError as error:
        raise UsageError(f"{path}: datasets.{validation_message(error)}") from None
    return [spec.model_dump() | {"json_path": path.parent / spec.json_path.expanduser()} for spec in found]


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise UsageError(f"{path}: {line}not YAML ({getattr(error, 'problem', None) or 'invalid syntax'})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: not a mapping; a plan has keys and values, such as data: and stage:")
    return values
