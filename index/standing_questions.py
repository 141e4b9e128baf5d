"""Standing questions, and the state of the alerts of each stream: small JSON objects beside the tables of a store.

    <url>/alerts/questions/<id>.json    one StandingQuestion
    <url>/alerts/state/<stream>.json    the alert state of one stream; `ingest.alerts.scorer` defines its content

They are objects and not rows of a table, because a question is added or removed by one write or one delete: two people
who do it at the same time lose nothing, and a worker finds changes by listing a folder every few seconds. A Delta table
would cost several requests each time, and its log would grow. An object is visible as a whole or not at all; on a local
disk it is durable too (`index.files`).

This module does not know how frames are scored nor when an alert is raised.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from index.columns import digest
from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.errors import UnknownQuestion, UsageError, mask_url, validation_message
from index.files import write_atomically
from index.records import EncoderIdentity, to_micros
from index.schemas import check_stream_id, compose_stream_id, encode_stream_id

__all__ = ["MAX_QUESTIONS", "AlertRule", "StandingQuestion", "StandingQuestionStore", "make_question"]

MAX_QUESTIONS = 256
"""The largest number of standing questions of one store."""

_MAX_OBJECT_BYTES = 64 * 2**20
_NAME = re.compile(r"[\w][\w .,'-]{0,79}")
_log = structlog.get_logger(__name__)


class AlertRule(BaseModel):
    """When the scores of a stream raise and clear an alert.

    Scores are cosines. Frames come once a second. With the *background*, the recent scores of the stream without an
    alert:

        high = median + max(spread · (q − median), floor)      q: the `quantile` of the background
        low  = median + low_share · (high − median)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    floor: float = Field(default=0.05, gt=0, le=2)
    """Least distance of the threshold `high` from the median of the background."""

    spread: float = Field(default=1.4, ge=0, le=100)
    """Distance of the threshold `high` from the median, in units of (quantile − median)."""

    quantile: float = Field(default=0.98, gt=0.5, lt=1)
    """The quantile of the background that measures how much its scores vary."""

    low_share: float = Field(default=0.7, gt=0, lt=1)
    """Position of the threshold `low` between the median (0) and `high` (1)."""

    raise_frames: int = Field(default=2, ge=1, le=60)
    """An alert is raised when this many of the last `of_frames` frames score above `high`."""

    of_frames: int = Field(default=3, ge=1, le=60)
    """Number of recent frames that are counted; at least `raise_frames`."""

    clear_seconds: int = Field(default=3, ge=1, le=3600)
    """An alert is cleared after this many seconds of scores below `low`."""

    gap_seconds: int = Field(default=30, ge=2, le=3600)
    """An alert is cleared when no frame arrives for this many seconds."""

    warm_up: int = Field(default=300, ge=10, le=86_400)
    """Number of first frames of a stream in which no alert is raised."""

    samples: int = Field(default=900, ge=20, le=20_000)
    """Number of scores in the background."""

    every: int = Field(default=2, ge=1, le=600)
    """One score in this many seconds goes into the background."""

    settle_seconds: int = Field(default=600, ge=10, le=86_400)
    """The scores of an alert that lasts longer than this go into the background, so that it ends by itself."""

    @field_validator("of_frames")
    @classmethod
    def _enough(cls, value: int, info: object) -> int:
        least = getattr(info, "data", {}).get("raise_frames", 1)
        if value < least:
            raise ValueError(f"of_frames {value} is less than raise_frames {least}")
        return value


class StandingQuestion(BaseModel):
    """A text that every new frame is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    """12 hex digits, a digest of text, streams, encoder and rule."""

    text: str = Field(min_length=1, max_length=500)
    """The question, for example "a red car at the gate"."""

    name: str = Field(min_length=1, max_length=80)
    """Name in lists and alerts; the beginning of the text by default."""

    streams: tuple[str, ...] = ()
    """Names of the streams it applies to; all streams if empty."""

    encoder: EncoderIdentity
    """The patch encoder that made `vector`."""

    vector: tuple[float, ...]
    """Embedding of the text, Dp floats, unit norm."""

    rule: AlertRule = AlertRule()
    """When the question raises an alert."""

    created_at: int
    """UTC microseconds."""

    def applies_to(self, stream: str) -> bool:
        """Whether frames of this stream are compared with the question."""
        return not self.streams or stream in self.streams

    def as_array(self) -> NDArray[np.float32]:
        """The vector as float32[Dp]."""
        return np.asarray(self.vector, np.float32)


def make_question(
    text: str,
    vector: NDArray[np.float32],
    encoder: EncoderIdentity,
    *,
    name: str | None = None,
    streams: tuple[str, ...] = (),
    rule: AlertRule | None = None,
    created_at: int,
) -> StandingQuestion:
    """Build a standing question. The same text, streams, encoder and rule give the same id, so adding it twice adds
    one.

    Args:
        text: the question; white space is normalized.
        vector: float32[Dp], the embedding of the text, unit norm.
        encoder: the patch encoder that made it.
        name: its name; the first 80 characters of the text when None.
        streams: names of the streams it applies to; all streams if empty.
        rule: when it raises an alert; the default rule when None.
        created_at: UTC microseconds.

    Raises:
        UsageError: the text is empty or too long, or the name or a stream's name is invalid.
    """
    text, name, rule = " ".join(text.split()), name or " ".join(text.split())[:80], rule or AlertRule()
    if not text or len(text) > 500:
        raise UsageError(
            "the text must have 1 to 500 characters; describe what to look for, as in 'a red car at the gate'"
        )
    if not _NAME.fullmatch(name) and name != text[:80]:
        raise UsageError(f"--name {name!r}: letters, digits, spaces and . , ' - only, at most 80")
    streams = tuple(sorted({compose_stream_id(stream) for stream in streams}))
    return StandingQuestion(
        id=digest(text, *streams, encoder.model_dump_json(), rule.model_dump_json())[:12],
        text=text,
        name=name,
        streams=streams,
        encoder=encoder,
        vector=tuple(round(float(value), 7) for value in vector),
        rule=rule,
        created_at=created_at,
    )


class StandingQuestionStore:
    """The standing questions and alert states of the store at `url`. Any number of processes may use them at once.

    Args:
        url: the store, as `Store.url`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with translate_errors(url):
            self._files, root = file_system(f"{url}/alerts")
        self._root = root.rstrip("/")
        self._local = "://" not in url

    # ---- questions -------------------------------------------------------------------------------------------------

    def questions(self) -> list[StandingQuestion]:
        """All questions, the oldest first. An invalid object is left out, with a warning in the log.

        Raises:
            StoreError: the folder cannot be read.
        """
        found: list[StandingQuestion] = []
        for path in self._list("questions")[:MAX_QUESTIONS]:
            data = self._read(path)
            if data is None:  # removed since it was listed
                continue
            try:
                found.append(StandingQuestion.model_validate_json(data))
            except ValidationError as error:
                _log.warning(
                    "invalid standing question; remove and add it", file=path, problem=validation_message(error)
                )
        return sorted(found, key=lambda question: (question.created_at, question.id))

    def add(self, question: StandingQuestion) -> None:
        """Store a question; one with the same id is replaced.

        Raises:
            UsageError: the store has `MAX_QUESTIONS` already.
            StoreError: it cannot be written.
        """
        held = self._list("questions")
        if len(held) >= MAX_QUESTIONS and not any(path.endswith(f"/{question.id}.json") for path in held):
            raise UsageError(
                f"{mask_url(self.url)}: the store has {len(held)} standing questions, the maximum; remove one first"
            )
        self._write(f"questions/{question.id}.json", question.model_dump_json().encode())

    def remove(self, which: str) -> StandingQuestion:
        """Remove the question with this id or name, and return it.

        Raises:
            UnknownQuestion: no question has this id or name, or several have the name.
            StoreError: it cannot be removed.
        """
        held = self.questions()
        found = [question for question in held if which in (question.id, question.name)]
        if len(found) != 1:
            there = ", ".join(f"{question.id} ({question.name})" for question in (found or held)[:8]) or "none"
            raise UnknownQuestion(
                f"{which!r}: {len(found) or 'no'} standing questions of that id or name in {mask_url(self.url)}; there "
                f"are {there}"
            )
        self._delete(f"questions/{found[0].id}.json")
        return found[0]

    def forget_stream(self, stream: str, older_than: int | None = None) -> None:
        """Remove the questions that apply to this stream alone, and the stream from questions about several.

        Args:
            stream: the stream.
            older_than: UTC microseconds; questions that were added since then stay. None removes all.

        Raises:
            StoreError: a question cannot be removed or replaced.
        """
        for question in self.questions():
            if stream not in question.streams or (older_than is not None and question.created_at >= older_than):
                continue
            others = tuple(name for name in question.streams if name != stream)
            if others:  # first, so that a process that is killed loses no question
                left = make_question(
                    question.text,
                    np.asarray(question.vector, np.float32),
                    question.encoder,
                    name=question.name,
                    streams=others,
                    rule=question.rule,
                    created_at=question.created_at,
                )
                self._write(f"questions/{left.id}.json", left.model_dump_json().encode())
            self._delete(f"questions/{question.id}.json")

    # ---- alert states ----------------------------------------------------------------------------------------------

    def read_state(self, stream: str) -> bytes | None:
        """The stored state of a stream, None if there is none. Raises StoreError."""
        return self._read(f"{self._root}/state/{encode_stream_id(check_stream_id(stream))}.json")

    def write_state(self, stream: str, state: bytes) -> None:
        """Replace the state of a stream. Raises StoreError."""
        self._write(f"state/{encode_stream_id(check_stream_id(stream))}.json", state)

    def delete_state(self, stream: str, older_than: int | None = None) -> None:
        """Delete the state of a stream, if there is one; with `older_than`, UTC microseconds, unless it was written
        since then. Raises StoreError."""
        name = f"state/{encode_stream_id(check_stream_id(stream))}.json"
        if older_than is not None:
            with translate_errors(f"{self.url}/alerts"):
                try:
                    if to_micros(self._files.modified(f"{self._root}/{name}")) >= older_than:
                        return
                except FileNotFoundError:
                    return
        self._delete(name)

    # ---- objects ---------------------------------------------------------------------------------------------------

    def _list(self, folder: str) -> list[str]:
        with translate_errors(f"{self.url}/alerts"):
            try:
                self._files.invalidate_cache()
                names = self._files.ls(f"{self._root}/{folder}", detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(name) for name in names if str(name).endswith(".json"))

    def _read(self, path: str) -> bytes | None:
        with translate_errors(f"{self.url}/alerts"):
            try:
                data = self._files.cat_file(path, start=0, end=_MAX_OBJECT_BYTES)
            except FileNotFoundError:
                return None
        return bytes(data)

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        with translate_errors(f"{self.url}/alerts"):
            if self._local:
                write_atomically(path, data, parents=True)
            else:
                self._files.pipe_file(path, data)  # an object store shows an object only when it is whole

    def _delete(self, name: str) -> None:
        with translate_errors(f"{self.url}/alerts"), suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")
