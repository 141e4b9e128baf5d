"""What travels through Kafka: versioned JSON, one pydantic model a topic.

    sightline.segments    SegmentMessage   key = stream id    footage of about ten seconds, inside or by URI
    sightline.indexed     IndexedMessage   key = stream id    what was stored of it, for followers
    sightline.deadletter  DeadLetter       key = origin       what could not be stored, and why; no value = dealt with
    sightline.alerts      AlertMessage     key = stream id    a standing question raised or cleared, with a picture

A reader refuses a version it does not know: guessing at footage would be worse than waiting for a person. This module
knows nothing of brokers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from index.errors import MessageInvalid, validation_message
from index.records import ClockSource, from_micros, to_micros
from index.schemas import StreamId

__all__ = [
    "PICTURE_BYTES",
    "VERSION",
    "AlertMessage",
    "DeadLetter",
    "IndexedMessage",
    "SegmentMessage",
    "origin_of",
    "parse_alert",
    "parse_dead_letter",
    "parse_segment",
    "segment_message",
]

VERSION: Literal[1] = 1
PICTURE_BYTES = 256 * 2**10  # the largest picture in an alert
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def origin_of(topic: str, partition: int, offset: int) -> str:
    """The name of one message of a topic, `topic/partition/offset`: the key of its dead letter."""
    return f"{topic}/{partition}/{offset}"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = VERSION

    def to_bytes(self) -> bytes:
        """Compact JSON in UTF-8."""
        return self.model_dump_json(exclude_none=True).encode()


class SegmentMessage(_Message):
    """A piece of a stream's footage: exactly one of `uri` and `data`.

    start: UTC time of its first frame, with microseconds. duration: seconds from there to the end of the last frame.
    data: the file's bytes in base64. size and sha256: of the file, wherever it is. clock: whence `start` is known.
    """

    stream: StreamId
    start: AwareDatetime
    duration: float = Field(gt=0, le=3600)
    media_type: Literal["video/mp4", "video/mp2t", "video/x-matroska"] = "video/mp4"
    size: int = Field(gt=0)
    sha256: Sha256
    uri: str | None = Field(default=None, max_length=2048)
    data: str | None = None
    clock: ClockSource = "arrival"

    @field_validator("start")
    @classmethod
    def _plausible(cls, value: AwareDatetime) -> AwareDatetime:
        if not 1971 <= value.year <= 2999:
            raise ValueError(f"starts in the year {value.year}")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> SegmentMessage:
        if (self.uri is None) == (self.data is None):
            raise ValueError("needs either uri or data, not both and not neither")
        return self

    @property
    def start_micros(self) -> int:
        """UTC microseconds of the first frame."""
        return to_micros(self.start)

    def payload(self) -> bytes | None:
        """The bytes that came inside, checked; None when there is a URI instead.

        Raises:
            MessageInvalid: not base64, or not of the promised size and checksum.
        """
        if self.data is None:
            return None
        try:
            payload = base64.b64decode(self.data, validate=True)
        except binascii.Error as error:
            raise MessageInvalid(
                f"{self.stream}: the segment's data is not base64 ({error}); produce it again"
            ) from None
        self.check(payload)
        return payload

    def check(self, payload: bytes) -> None:
        """Raises MessageInvalid when `payload` is not the file that was promised."""
        if len(payload) != self.size or hashlib.sha256(payload).hexdigest() != self.sha256:
            raise MessageInvalid(
                f"{self.stream} at {self.start.isoformat()}: the segment has {len(payload)} bytes that are not the {self.size} "
                "promised, or their checksum differs; it was damaged on its way, produce it again"
            )


def segment_message(
    stream: str,
    start: int,
    duration: float,
    payload: bytes,
    *,
    uri: str | None = None,
    media_type: Literal["video/mp4", "video/mp2t", "video/x-matroska"] = "video/mp4",
    clock: ClockSource = "arrival",
) -> SegmentMessage:
    """The message of a segment file `payload`, which goes inside unless it lies at `uri`.

    Args:
        start: UTC microseconds of the first frame.
        duration: seconds.
    """
    return SegmentMessage(
        stream=stream,
        start=from_micros(start),
        duration=duration,
        media_type=media_type,
        size=len(payload),
        sha256=hashlib.sha256(payload).hexdigest(),
        uri=uri,
        data=None if uri else base64.b64encode(payload).decode(),
        clock=clock,
    )


class IndexedMessage(_Message):
    """What the store holds of one segment; `frames` may be 0 where each second of it was there already."""

    stream: str
    start: AwareDatetime
    end: AwareDatetime
    frames: int = Field(ge=0)
    decode_mode: str
    problem: str | None = None
    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)


class DeadLetter(_Message):
    """A message that could not be stored, and why.

    text or data: the original's value, as UTF-8 or else in base64; neither when it was too large to be sent on, and
    then it lies at its origin for as long as the topic keeps it. attempt: how many times it has been tried in all,
    replays included. error: the name of the error. where: the step that failed.
    """

    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    key: str | None = None
    failed_at: AwareDatetime
    error: str
    reason: str
    where: Literal["message", "clock", "fetch", "decode"]
    attempt: int = Field(ge=1)
    group: str
    size: int = Field(ge=0)
    sha256: Sha256
    text: str | None = None
    data: str | None = None

    @property
    def origin(self) -> str:
        return origin_of(self.topic, self.partition, self.offset)

    @classmethod
    def of(
        cls, value: bytes | None, *, topic: str, partition: int, offset: int, key: bytes | None, **rest: Any
    ) -> DeadLetter:
        """The dead letter of the record with this `value` and `key`; `rest` are the other fields."""
        raw = value or b""
        try:
            text, data = raw.decode(), None
        except UnicodeDecodeError:
            text, data = None, base64.b64encode(raw).decode()
        return cls(
            topic=topic,
            partition=partition,
            offset=offset,
            key=None if key is None else key.decode(errors="replace"),
            size=len(raw),
            sha256=hashlib.sha256(raw).hexdigest(),
            text=text,
            data=data,
            **rest,
        )

    def without_original(self) -> DeadLetter:
        """The same for an original that does not fit into a message."""
        return self.model_copy(update={"text": None, "data": None})

    def original(self) -> bytes | None:
        """The original's value, or None when it was too large to be kept here."""
        if self.text is not None:
            return self.text.encode()
        return None if self.data is None else base64.b64decode(self.data)


class AlertMessage(_Message):
    """A standing question that was raised at a camera, or cleared: two messages an episode, with the same id.

    id: digest of question, stream and start; whoever reads drops what has an `id` and `state` it has had, for a message
    may come twice. question, text, name: of the question. start: the first second of the episode, at: the second of the
    frame that raised or cleared it, end: the last second that still looked like it, only when cleared. peak and score:
    the best second so far and its cosine, threshold: what that had to pass. picture: JPEG of the frame that raised it, in
    base64; none in the message that clears, or where it is larger than `PICTURE_BYTES`.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    question: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    text: str = Field(max_length=500)
    name: str = Field(max_length=80)
    stream: str
    state: Literal["raised", "cleared"]
    start: AwareDatetime
    at: AwareDatetime
    end: AwareDatetime | None = None
    peak: AwareDatetime
    score: float
    threshold: float
    picture: str | None = Field(default=None, max_length=4 * (PICTURE_BYTES // 3 + 1))

    def jpeg(self) -> bytes | None:
        """The picture's bytes. Raises MessageInvalid when they are not base64."""
        try:
            return None if self.picture is None else base64.b64decode(self.picture, validate=True)
        except binascii.Error as error:
            raise MessageInvalid(f"{self.stream}: the picture of alert {self.id} is not base64 ({error})") from None

    def without_picture(self) -> AlertMessage:
        """The same for a topic that takes no message of this size."""
        return self.model_copy(update={"picture": None})


def _parsed(model: type[Any], value: bytes | None, what: str) -> Any:
    if not value:
        raise MessageInvalid(f"{what}: the message is empty; produce it again")
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MessageInvalid(f"{what}: not JSON ({error}); produce it again") from None
    version = fields.get("version") if isinstance(fields, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise MessageInvalid(
            f"{what}: schema version {str(version)[:20]}, this Sightline reads version {VERSION}; install the one it was made for"
        )
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        raise MessageInvalid(f"{what}: {validation_message(error)}; produce it again") from None


def parse_segment(value: bytes | None, key: bytes | None = None) -> SegmentMessage:
    """A message of `sightline.segments`.

    Raises:
        MessageInvalid: empty, not JSON, another version, a field that does not fit, or a key that is not its stream.
    """
    message: SegmentMessage = _parsed(SegmentMessage, value, "segment")
    if key is not None and key != message.stream.encode():
        raise MessageInvalid(
            f"{message.stream}: the record's key is {key[:140]!r} and must be the stream id, which keeps a camera's segments in order"
        )
    return message


def parse_dead_letter(value: bytes | None) -> DeadLetter:
    """A message of `sightline.deadletter`. Raises MessageInvalid."""
    letter: DeadLetter = _parsed(DeadLetter, value, "dead letter")
    return letter


def parse_alert(value: bytes | None) -> AlertMessage:
    """A message of `sightline.alerts`. Raises MessageInvalid."""
    alert: AlertMessage = _parsed(AlertMessage, value, "alert")
    return alert
