"""Messages in Kafka: versioned JSON, one pydantic model for each topic.

    sightline.segments    SegmentMessage   key = stream id    footage of about ten seconds, as bytes or by URI
    sightline.indexed     IndexedMessage   key = stream id    what was stored of a segment
    sightline.deadletter  DeadLetter       key = origin       a message that could not be stored, and the error;
                                                              a record without a value marks it as handled
    sightline.alerts      AlertMessage     key = stream id    a standing question was raised or cleared, with a picture

A reader rejects a version that it does not know, because a message that is only half understood could store footage
under the wrong stream or time. This module knows nothing of brokers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import to_json

from index.errors import MessageInvalid, shown_text, validation_message
from index.records import ClockFold, ClockSource, from_micros, to_micros
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
"""Version of the messages' schema."""
PICTURE_BYTES = 256 * 2**10
"""Most bytes of the picture in an alert."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 checksum in hexadecimal."""


def origin_of(topic: str, partition: int, offset: int) -> str:
    """What identifies one message of a topic, `topic/partition/offset`. It is the key of the message's dead letter."""
    return f"{topic}/{partition}/{offset}"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    version: Literal[1] = VERSION
    """Version of the message's schema."""

    def to_bytes(self) -> bytes:
        """The message as compact JSON in UTF-8. Fields that are None are left out."""
        return self.model_dump_json(exclude_none=True).encode()


class SegmentMessage(_Message):
    """One segment of a stream. Its footage is in exactly one of `uri` and `data`."""

    stream: StreamId
    """Stream id, also the key of the record."""
    start: AwareDatetime
    """Time of the first frame, with microseconds."""
    duration: float = Field(gt=0, le=3600)
    """Seconds from the first frame to the end of the last."""
    media_type: Literal["video/mp4", "video/mp2t", "video/x-matroska"] = "video/mp4"
    """Container format of the footage."""
    size: int = Field(gt=0, le=2**40)
    """Bytes of the footage."""
    sha256: Sha256
    """SHA-256 of the footage, in hexadecimal."""
    uri: str | None = Field(default=None, max_length=2048)
    """Where the footage is, if it is not in the message."""
    data: str | None = None
    """The footage in base64, if it is in the message."""
    clock: ClockSource = "arrival"
    """The source of `start`."""
    clock_zone: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_+:/-]{1,64}$")
    """The time zone in which a time in the footage's name was read, such as `Europe/Amsterdam` or `+01:00`."""
    clock_fold: ClockFold | None = None
    """How that time was read, if daylight saving makes it doubtful; see `index.records.ClockFold`."""

    @field_validator("start")
    @classmethod
    def _plausible(cls, value: AwareDatetime) -> AwareDatetime:
        if not 1971 <= value.year <= 2999:
            raise ValueError(f"the year {value.year} is not between 1971 and 2999")
        return value

    @field_validator("uri")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.isprintable():
                raise ValueError("it contains control characters")
            _ = urlsplit(value).port  # raises ValueError, as urlsplit does, for a host or port that is none
        return value

    @model_validator(mode="after")
    def _one_place(self) -> SegmentMessage:
        if (self.uri is None) == (self.data is None):
            raise ValueError("exactly one of uri and data must be given")
        return self

    @property
    def start_micros(self) -> int:
        """UTC microseconds of the first frame."""
        return to_micros(self.start)

    def payload(self) -> bytes | None:
        """The footage in the message, or None if it has a URI instead.

        Raises:
            MessageInvalid: `data` is not base64, or does not have the message's size and checksum.
        """
        if self.data is None:
            return None
        try:
            payload = base64.b64decode(self.data, validate=True)
        except ValueError as error:  # a binascii.Error, or characters beyond ASCII
            raise MessageInvalid(
                f"{self.stream}: the segment's data is not base64 ({error}); produce it again"
            ) from None
        self.check(payload)
        return payload

    def check(self, payload: bytes) -> None:
        """Raise MessageInvalid unless `payload` has the message's size and checksum."""
        if len(payload) != self.size or hashlib.sha256(payload).hexdigest() != self.sha256:
            raise MessageInvalid(
                f"{self.stream} at {self.start.isoformat()}: the footage has {len(payload)} bytes and the message "
                f"announces {self.size}, or the checksum differs; it was damaged in transit, produce it again"
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
    clock_zone: str | None = None,
    clock_fold: ClockFold | None = None,
) -> SegmentMessage:
    """The message of one segment.

    Args:
        stream: stream id.
        start: UTC microseconds of the first frame.
        duration: seconds.
        payload: the footage. It is put into the message if `uri` is None.
        uri: where the footage is.
        media_type: container format of the footage.
        clock: the source of `start`.
        clock_zone, clock_fold: the zone of a time in a name, and how a doubtful one was read.
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
        clock_zone=clock_zone,
        clock_fold=clock_fold,
    )


class IndexedMessage(_Message):
    """What the store holds of one segment."""

    stream: str
    """Stream id."""
    start: AwareDatetime
    """Time of the segment's first frame."""
    end: AwareDatetime
    """End of the segment, exclusive."""
    frames: int = Field(ge=0)
    """Frames stored; 0 if the store held a frame of each of the segment's seconds."""
    decode_mode: str
    """How the segment was decoded: `keyframes`, `nonref` or `all`."""
    problem: str | None = None
    """The error that ended decoding early."""
    topic: str
    """Topic of the segment's message."""
    partition: int = Field(ge=0)
    """Partition of the segment's message."""
    offset: int = Field(ge=0)
    """Offset of the segment's message."""


class DeadLetter(_Message):
    """A message that could not be stored, and the error. `text` or `data` holds its value, unless it is too large."""

    topic: str
    """Topic of the original."""
    partition: int = Field(ge=0)
    """Partition of the original."""
    offset: int = Field(ge=0)
    """Offset of the original. A value that is too large for a dead letter is still there, until it expires."""
    key: str | None = None
    """Key of the original."""
    failed_at: AwareDatetime
    """Time of the last attempt."""
    error: str
    """Name of the error, see `index.errors`."""
    reason: str
    """The error's message."""
    where: Literal["batch", "message", "clock", "fetch", "decode"]
    """The step that failed. `batch`: the value is a record batch, or a record of one, that cannot be read."""
    attempt: int = Field(ge=1)
    """How often the message has been tried, replays included."""
    group: str
    """Consumer group of the worker."""
    size: int = Field(ge=0)
    """Bytes of the original's value."""
    sha256: Sha256
    """SHA-256 of the original's value, in hexadecimal."""
    text: str | None = None
    """The original's value, if it is UTF-8."""
    data: str | None = None
    """The original's value in base64, if it is not UTF-8 or shorter so."""
    key_data: str | None = None
    """The original's key in base64, if it is not UTF-8."""
    headers: tuple[tuple[str, str | None], ...] | None = None
    """The original's headers, their values in base64, if there are any."""

    @property
    def origin(self) -> str:
        """What identifies the original, see `origin_of`."""
        return origin_of(self.topic, self.partition, self.offset)

    @classmethod
    def of(
        cls,
        value: bytes | None,
        *,
        topic: str,
        partition: int,
        offset: int,
        key: bytes | None,
        reason: str,
        headers: Sequence[tuple[str, bytes | None]] = (),
        **rest: Any,
    ) -> DeadLetter:
        """The dead letter of the record with this value, position, key and headers; `rest` are the other fields."""
        raw = value or b""
        text, data = _text(raw), None
        if text is None or len(to_json(text)) > 4 * len(raw) // 3 + 64:  # control characters take six bytes each
            text, data = None, base64.b64encode(raw).decode()
        return cls(
            topic=topic,
            partition=partition,
            offset=offset,
            key=None if key is None else key.decode(errors="replace"),
            key_data=None if key is None or _text(key) is not None else base64.b64encode(key).decode(),
            headers=tuple(
                (_encodable(name), content and base64.b64encode(content).decode()) for name, content in headers
            )
            or None,
            size=len(raw),
            sha256=hashlib.sha256(raw).hexdigest(),
            text=text,
            data=data,
            reason=shown_text(reason),
            **rest,
        )

    def without_original(self) -> DeadLetter:
        """A copy without the original's value, key and headers, for a record that is too large for a message."""
        return self.model_copy(
            update={"text": None, "data": None, "key": (self.key or "")[:200], "key_data": None, "headers": None}
        )

    def original(self) -> bytes | None:
        """The original's value, or None if it was too large for the dead letter."""
        if self.text is not None:
            return self.text.encode()
        return None if self.data is None else base64.b64decode(self.data)

    def original_key(self) -> bytes | None:
        """The original's key, None if it had none."""
        if self.key_data is not None:
            return base64.b64decode(self.key_data)
        return None if self.key is None else self.key.encode()

    def original_headers(self) -> list[tuple[str, bytes | None]]:
        """The original's headers."""
        return [(name, None if value is None else base64.b64decode(value)) for name, value in self.headers or ()]


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


class AlertMessage(_Message):
    """A standing question was raised for a stream, or cleared. The two messages of one episode have the same `id`.

    A message can be delivered more than once; a reader must ignore a pair of `id` and `state` that it has seen.
    """

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Digest of question, stream and start of the episode."""
    question: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    """Id of the standing question."""
    text: str = Field(max_length=500)
    """Text of the question."""
    name: str = Field(max_length=80)
    """Name of the question."""
    stream: str
    """Stream id."""
    state: Literal["raised", "cleared"]
    """What happened."""
    start: AwareDatetime
    """First second of the episode."""
    at: AwareDatetime
    """Second of the frame that raised or cleared the question."""
    end: AwareDatetime | None = None
    """Last second whose score passed the threshold; only if cleared."""
    peak: AwareDatetime
    """Second of the episode's highest score so far."""
    score: float
    """That score, a cosine."""
    threshold: float
    """The score that a second must pass."""
    usual: float | None = None
    """Median of the stream's own background for this question, a cosine."""
    percentile: float | None = Field(default=None, ge=0, le=100)
    """Share of that background that scores less than `score`, in percent."""
    picture: str | None = Field(default=None, max_length=4 * (PICTURE_BYTES // 3 + 1))
    """JPEG of the frame that raised the question, in base64; only if raised, and if it has at most `PICTURE_BYTES`."""

    def jpeg(self) -> bytes | None:
        """The picture, or None if there is none. Raises MessageInvalid if it is not base64."""
        try:
            return None if self.picture is None else base64.b64decode(self.picture, validate=True)
        except ValueError as error:
            raise MessageInvalid(
                f"{shown_text(self.stream)}: the picture of alert {self.id} is not base64 ({error})"
            ) from None

    def without_picture(self) -> AlertMessage:
        """A copy without the picture, for a topic whose messages must be smaller."""
        return self.model_copy(update={"picture": None})


def _parsed(model: type[Any], value: bytes | None, what: str) -> Any:
    """Parse a record's value. Whatever is wrong with it raises MessageInvalid: every reader depends on that."""
    if not value:
        raise MessageInvalid(f"{what}: the message is empty; produce it again")
    try:
        fields = json.loads(value)
        version = fields.get("version") if isinstance(fields, dict) else None
        if version != VERSION or isinstance(version, bool):
            raise MessageInvalid(
                f"{what}: schema version {_short(version)} is not supported, this Sightline reads version {VERSION}; "
                "install the version of Sightline that the producer uses"
            )
        return model.model_validate_json(value)
    except ValidationError as error:
        raise MessageInvalid(f"{what}: {validation_message(error)}; produce it again") from None
    except (MessageInvalid, MemoryError):
        raise
    except (ValueError, RecursionError) as error:
        raise MessageInvalid(f"{what}: not JSON ({shown_text(str(error))}); produce it again") from None
    except Exception as error:  # no message may stop its reader, whatever it makes a parser do
        raise MessageInvalid(f"{what}: invalid ({type(error).__name__}: {shown_text(str(error))})") from error


def _short(value: Any) -> str:
    return shown_text(str(value)[:20]) if isinstance(value, str | int | float | None) else type(value).__name__


def parse_segment(value: bytes | None, key: bytes | None = None) -> SegmentMessage:
    """Parse a record of `sightline.segments`.

    Raises:
        MessageInvalid: the value is empty, not JSON, of another version, or has an invalid field; or the key is not the
            stream id.
    """
    message: SegmentMessage = _parsed(SegmentMessage, value, "segment")
    if key is not None and bytes(key) != message.stream.encode():
        raise MessageInvalid(
            f"{message.stream}: the record's key is {key[:140]!r} and must be the stream id, so that the segments of "
            "a stream stay in order"
        )
    return message


def parse_dead_letter(value: bytes | None) -> DeadLetter:
    """Parse a record of `sightline.deadletter`. Raises MessageInvalid as `parse_segment` does."""
    letter: DeadLetter = _parsed(DeadLetter, value, "dead letter")
    return letter


def parse_alert(value: bytes | None) -> AlertMessage:
    """Parse a record of `sightline.alerts`. Raises MessageInvalid as `parse_segment` does."""
    alert: AlertMessage = _parsed(AlertMessage, value, "alert")
    return alert
