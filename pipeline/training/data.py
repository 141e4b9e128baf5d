"""Conversations in JSON and JSONL files: which of them a run reads, and each one by its number.

    [{"conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": "…"}],
      "video": "clips/a.mp4", "query": "…", "max_frame_num": 32}, …]

`image` stands in place of `video` for a picture; `query` (what keyframes are chosen for) and `max_frame_num` (K) may be
left out; other keys belong to others. A run may have millions of samples, so memory holds where each one stands in its
file; all are checked once before anything else is done, and read again when it is their turn.
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


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    who: Literal["human", "user", "gpt", "assistant"] = Field(alias="from")
    value: str


class _Record(BaseModel):
    """A sample as it is written."""

    model_config = ConfigDict(extra="ignore", strict=True)

    conversations: list[_Said] = Field(min_length=1)
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
    """A checked sample. `keyframes` is its own K; `where` says where it stands."""

    turns: tuple[Turn, ...]
    footage: Path
    is_image: bool
    query: str
    keyframes: int | None
    where: str


@dataclass(frozen=True, slots=True)
class _File:
    """What is taken of one file: byte offsets and lengths, lines and numbers (from 1) of samples."""

    path: Path
    footage: Path
    places: NDArray[np.int64]  # [n, 4]

    def where(self, row: NDArray[np.int64]) -> str:
        return f"{self.path}: line {row[2]}, sample {row[3]}"


class Conversations:
    """The samples of a plan, numbered through all of its files. `digest` changes when any of them does.

    Raises:
        TrainingDataInvalid: a file or sample that cannot be used; says which file, line and sample.
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
        for _ in self:  # before a run of days begins
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
    """Where samples stand: rows of offset, length, line, number."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).lstrip()
            file.seek(0)
            places = _index_list(path, file.read(), digest) if head[:1] == b"[" else _index_lines(file, digest)
    except OSError as error:
        raise TrainingDataInvalid(f"{path}: cannot be read ({error.strerror}); check json_path") from None
    if not len(places):
        raise TrainingDataInvalid(f"{path}: there are no samples in it; leave it out of the datasets")
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
    """A JSON list is parsed value by value, so that a fault is told with the line of its sample."""
    digest.update(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TrainingDataInvalid(f"{path}: line {line} is not UTF-8; write the file anew") from None
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
                f"{path}: line {error.lineno}, sample {len(rows) + 1}: not JSON ({error.msg}); write the file anew"
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
        raise TrainingDataInvalid(f"{where}: {validation_message(error)}; mend the sample or leave it out") from None
    except ValueError as error:  # JSON and UTF-8
        raise TrainingDataInvalid(f"{where}: not JSON ({error}); write one sample a line, or one list") from None
    except OSError as error:
        raise TrainingDataInvalid(f"{where}: cannot be read any more ({error.strerror})") from None
    turns = tuple(Turn(said.who in ("human", "user"), said.value) for said in record.conversations)
    footage = file.footage / Path(str(record.video or record.image)).expanduser()
    try:
        check_turns(turns)
    except UsageError as error:
        raise TrainingDataInvalid(f"{where}: {error}") from None
    query = (record.query or "").strip() or bare_question(turns)
    if not query:
        raise TrainingDataInvalid(f"{where}: neither a query nor words in the first turn; add a query")
    if not footage.is_file():
        raise TrainingDataInvalid(f"{where}: {footage} is not there; set footage to the folder that paths start from")
    return Conversation(turns, footage, record.video is None, query, record.max_frame_num, where)


_DATASETS = TypeAdapter(list[DatasetSpec])


def load_plan(path: Path) -> TrainingPlan:
    """A plan from a YAML file; its paths, and those of a data file it names, start from the file they stand in.

    Raises:
        UsageError: not YAML, an unknown key, or a value that cannot be; says which.
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
        said = f"{unknown[0]} is not known there" if unknown else "there is no list of datasets"
        raise UsageError(f"{path}: data: {said}; write datasets: [{{json_path: …, sampling_strategy: …}}]")
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
        raise UsageError(f"{path}: {line}not YAML ({getattr(error, 'problem', None) or 'it does not parse'})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a plan is keys and values, such as data: and stage:")
    return values
