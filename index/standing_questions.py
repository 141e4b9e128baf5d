"""Standing questions, and how far each camera has been watched for them: small JSON objects beside the store's tables.

    <url>/alerts/questions/<id>.json    one StandingQuestion
    <url>/alerts/state/<stream>.json    what a worker remembers of one stream; `ingest.alerts.scorer` says what

One object each and no table: a question is added or removed by one write or one delete, so two people who do it at once
lose nothing, and a worker learns of it by listing a folder every few seconds, where a Delta table would cost it several
requests and a log that grows. An object appears whole or not at all.
"""

from __future__ import annotations

import re
from typing import Annotated

import fsspec
import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from index.columns import digest
from index.errors import StoreCorrupt, StoreFull, UnknownQuestion, UsageError, mask_url
from index.files import write_atomically
from index.records import EncoderIdentity
from index.schemas import check_stream_id

__all__ = ["MAX_QUESTIONS", "AlertRule", "StandingQuestion", "StandingQuestionStore", "make_question"]

MAX_QUESTIONS = 256  # most questions of one store
_OBJECT_BYTES = 64 * 2**20
_NAME = re.compile(r"[\w][\w .,'-]{0,79}")
_log = structlog.get_logger(__name__)


class AlertRule(BaseModel):
    """When a score is an alert. Scores are cosines; counts are of frames, a second each.

    high is median + max(spread × (q − median), floor) of the camera's background, q its `quantile`; low lies `low_share`
    of the way from the median to high. An alert is raised when `raise_frames` of the last `of_frames` are above high,
    and cleared after `clear_seconds` below low, or when no frame came for `gap_seconds`. Nothing is raised in the first
    `warm_up` frames. The background is the last `samples` frames that were not inside an alert, one in `every` seconds; an
    alert that lasts longer than `settle_seconds` becomes part of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: float = Field(default=0.05, gt=0, le=2)
    spread: float = Field(default=1.4, ge=0, le=100)
    quantile: float = Field(default=0.98, gt=0.5, lt=1)
    low_share: float = Field(default=0.7, gt=0, lt=1)
    raise_frames: int = Field(default=2, ge=1, le=60)
    of_frames: int = Field(default=3, ge=1, le=60)
    clear_seconds: int = Field(default=3, ge=1, le=3600)
    gap_seconds: int = Field(default=30, ge=2, le=3600)
    warm_up: int = Field(default=300, ge=10, le=86_400)
    samples: int = Field(default=900, ge=20, le=20_000)
    every: int = Field(default=2, ge=1, le=600)
    settle_seconds: int = Field(default=600, ge=10, le=86_400)

    @field_validator("of_frames")
    @classmethod
    def _enough(cls, value: int, info: object) -> int:
        least = getattr(info, "data", {}).get("raise_frames", 1)
        if value < least:
            raise ValueError(f"of_frames {value} is less than raise_frames {least}")
        return value


class StandingQuestion(BaseModel):
    """A text that every new frame is compared with.

    streams: the cameras it is asked of, all of them when empty. vector: the text by the patch encoder `encoder`, unit
    norm. created_at: UTC microseconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    text: str = Field(min_length=1, max_length=500)
    name: str = Field(min_length=1, max_length=80)
    streams: tuple[str, ...] = ()
    encoder: EncoderIdentity
    vector: tuple[float, ...]
    rule: AlertRule = AlertRule()
    created_at: int

    def applies_to(self, stream: str) -> bool:
        return not self.streams or stream in self.streams

    def as_array(self) -> NDArray[np.float32]:
        """float32[Dp], unit norm."""
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
    """The same text, streams, encoder and rule give the same id, so that adding twice adds once.

    Raises:
        UsageError: an empty or too long text, a name or stream that cannot be one.
    """
    text, name, rule = " ".join(text.split()), name or " ".join(text.split())[:80], rule or AlertRule()
    if not text or len(text) > 500:
        raise UsageError("the text must have 1 to 500 letters; say what to look for, as in 'a red car at the gate'")
    if not _NAME.fullmatch(name) and name != text[:80]:
        raise UsageError(f"--name {name!r}: letters, digits, spaces and . , ' - only, at most 80")
    streams = tuple(sorted({check_stream_id(stream) for stream in streams}))
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
    """The objects of the store at `url`. Any number of processes may use it at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._files, root = fsspec.core.url_to_fs(f"{url}/alerts")
        self._root = root.rstrip("/")
        self._local = "://" not in url

    # ---- questions -------------------------------------------------------------------------------------------------

    def questions(self) -> list[StandingQuestion]:
        """All of them, the oldest first; one that does not parse is left out with a warning.

        Raises:
            StoreCorrupt: the folder cannot be read.
        """
        found: list[StandingQuestion] = []
        for path in self._listed("questions")[:MAX_QUESTIONS]:
            data = self._get(path)
            if data is None:  # removed meanwhile
                continue
            try:
                found.append(StandingQuestion.model_validate_json(data))
            except ValidationError as error:
                first = error.errors(include_input=False)[0]
                _log.warning("a standing question does not parse; remove and add it", file=path, problem=first["msg"])
        return sorted(found, key=lambda question: (question.created_at, question.id))

    def add(self, question: StandingQuestion) -> None:
        """Write it down. Raises UsageError when there are too many, StoreFull."""
        held = self._listed("questions")
        if len(held) >= MAX_QUESTIONS and not any(path.endswith(f"/{question.id}.json") for path in held):
            raise UsageError(
                f"{mask_url(self.url)}: has {len(held)} standing questions, the most there may be; remove one"
            )
        self._put(f"questions/{question.id}.json", question.model_dump_json().encode())

    def remove(self, which: str) -> StandingQuestion:
        """Remove the question with this id or name.

        Raises:
            UnknownQuestion: there is none, or several have the name.
        """
        held = self.questions()
        found = [question for question in held if which in (question.id, question.name)]
        if len(found) != 1:
            there = ", ".join(f"{question.id} ({question.name})" for question in (found or held)[:8]) or "none"
            raise UnknownQuestion(
                f"{which!r}: {len(found) or 'no'} standing questions of that id or name in {mask_url(self.url)}; there are {there}"
            )
        self._delete(f"questions/{found[0].id}.json")
        return found[0]

    # ---- what a worker remembers -----------------------------------------------------------------------------------

    def read_state(self, stream: str) -> bytes | None:
        """What was last kept of a stream, None when nothing was. Raises StoreCorrupt."""
        return self._get(f"{self._root}/state/{check_stream_id(stream)}.json")

    def write_state(self, stream: str, state: bytes) -> None:
        """Raises StoreFull, StoreCorrupt."""
        self._put(f"state/{check_stream_id(stream)}.json", state)

    def delete_state(self, stream: str) -> None:
        """Forget what was kept of a stream."""
        self._delete(f"state/{check_stream_id(stream)}.json")

    # ---- objects ---------------------------------------------------------------------------------------------------

    def _listed(self, folder: str) -> list[str]:
        try:
            self._files.invalidate_cache()
            names = self._files.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreCorrupt(
                f"{mask_url(self.url)}: alerts cannot be read ({error}); check the permissions"
            ) from error
        return sorted(str(name) for name in names if str(name).endswith(".json"))

    def _get(self, path: str) -> bytes | None:
        try:
            data = self._files.cat_file(path, start=0, end=_OBJECT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreCorrupt(
                f"{mask_url(self.url)}: alerts cannot be read ({error}); check the permissions"
            ) from error
        return bytes(data)

    def _put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        try:
            if not self._local:
                self._files.pipe_file(path, data)  # an object store shows it when it is whole
                return
            write_atomically(path, data, parents=True)
        except OSError as error:
            raise StoreFull(f"{mask_url(self.url)}: alerts cannot be written ({error}); free some space") from error

    def _delete(self, name: str) -> None:
        try:
            self._files.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreCorrupt(f"{mask_url(self.url)}: alerts cannot be removed ({error})") from error
