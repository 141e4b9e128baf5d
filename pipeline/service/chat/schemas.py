"""Requests of `/v1/chat/completions`: OpenAI's format, and the footage in `sightline`. Imports no torch.

Every field is used, is documented to have no effect, or is refused; an unknown field is refused. The model reads one
question about stored footage: earlier messages, system messages, images and sounds are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from index.errors import UsageError
from index.records import parse_time
from model.answers import Sampling
from pipeline.service.schemas import MAX_QUESTION, MAX_STREAMS, NewTokens, Options, SamplingSeed, Seconds, StreamName

__all__ = ["ChatBody", "FootageScope", "Message", "StreamOptions", "TextPart"]

_MAX_MESSAGES = 256
_MAX_PARTS = 64
_ONE_QUESTION = (
    "the model answers one question at a time and reads no earlier messages and no system message: send one message of "
    "the role `user`, and repeat in it what it refers to"
)
_NO_PICTURES = (
    "the model reads stored footage, not attachments: ingest the footage and name it in the field `sightline`"
)


def refused(kind: str, message: str) -> PydanticCustomError:
    """An error of validation with the code `kind`; `message` is shown to the client."""
    return PydanticCustomError(kind, "{reason}", {"reason": message})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class FootageScope(_Strict):
    """The footage of a question; all that the service has if it is empty."""

    streams: list[StreamName] | None = Field(default=None, min_length=1, max_length=MAX_STREAMS)
    """Stream ids; all streams if null."""
    start: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Start of the window, inclusive, as RFC 3339."""
    end: Annotated[str, StringConstraints(max_length=64)] | None = None
    """End of the window, exclusive, as RFC 3339."""
    options: Options = Field(default_factory=list)
    """Answers to choose from; an open question if empty."""
    k: int | None = Field(default=None, ge=1, le=1_000_000)
    """Largest number of keyframes; the profile's if null."""
    tau: float | None = Field(default=None, gt=-1, le=1)
    """Similarity threshold τ of DKS; the profile's if null."""

    @field_validator("start", "end")
    @classmethod
    def _is_time(cls, text: str | None, info: ValidationInfo) -> str | None:
        """A time that parses; `end` is after `start`."""
        try:
            at = parse_time(text, str(info.field_name))
        except UsageError as error:
            raise refused("invalid_value", str(error)) from None
        before = parse_time(info.data.get("start")) if info.field_name == "end" else None
        if at is not None and before is not None and at <= before:
            raise refused("invalid_value", "the window ends before it begins")
        return text

    @field_validator("options")
    @classmethod
    def _each_once(cls, options: list[str]) -> list[str]:
        if len(set(options)) != len(options):
            raise refused("invalid_value", "two options are the same; give each only once")
        return options


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    """Only text is supported."""
    text: str
    """The text."""


def _as_parts(content: Any) -> Any:
    """The content of a message as a list of parts."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and part.get("type") in (
                "image_url",
                "input_audio",
                "file",
                "input_image",
                "image",
            ):
                raise refused("unsupported_value", _NO_PICTURES)
    return content


class Message(_Strict):
    """A message: the user's question."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    """Author of the message; only `user` is supported."""
    content: Annotated[list[TextPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])] = Field(
        min_length=1, max_length=_MAX_PARTS
    )
    """The question: a text, or parts of the type `text`."""


class StreamOptions(_Strict):
    """Options of a streamed reply."""

    include_usage: bool | None = None
    """End the stream with the number of tokens."""
    include_obfuscation: Literal[False] | None = None
    """Not supported; must be false or null."""


class ChatBody(_Strict):
    """Request of `POST /v1/chat/completions`: OpenAI's request, and the footage in `sightline`."""

    model: str
    """Name of the profile that the service runs, see `GET /v1/models`."""
    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    """One message, of the role `user`: the question. Anything else is refused."""
    sightline: FootageScope | None = None
    """The footage; all streams of the service if it is absent or null."""
    stream: bool | None = None
    """Reply with server-sent events instead of one JSON object."""
    stream_options: StreamOptions | None = None
    """`{"include_usage": true}` adds the number of tokens to the last event."""
    max_tokens: NewTokens | None = None
    """Largest number of tokens of an open answer; the profile's limit if null."""
    max_completion_tokens: NewTokens | None = None
    """The newer name of `max_tokens`; takes precedence over it."""
    deadline_seconds: Seconds | None = None
    """Longest time of the request, the wait in the queue included; the service's own limit if null."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Divides the logits of an open answer before a token is drawn; 0, the default here, takes the most likely one."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """No effect: the limit of the checkpoint applies. The reply says so in `sightline.notices`."""
    seed: SamplingSeed | None = None
    """Seed of the draws; without a temperature the same request has the same answer in any case."""
    user: str | None = Field(default=None, max_length=512)
    """No effect: the service keeps no record of users."""
    n: Literal[1] | None = None
    """Number of answers; only 1 is supported."""
    presence_penalty: Literal[0] | None = None
    """Not supported; must be 0 or null."""
    frequency_penalty: Literal[0] | None = None
    """Not supported; must be 0 or null."""
    stop: Annotated[list[str], Field(max_length=0)] | None = None
    """Not supported; must be empty or null."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Not supported; must be empty or null."""
    tool_choice: Literal["none", "auto"] | None = None
    """No effect without tools."""
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    """Not supported; must be empty or null."""
    logprobs: Literal[False] | None = None
    """Not supported; must be false or null."""
    store: Literal[False] | None = None
    """Not supported; must be false or null."""
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    """Only `["text"]` is supported."""
    service_tier: Literal["auto", "default"] | None = None
    """No effect."""
    response_format: dict[str, Any] | None = None
    """Only `{"type": "text"}` is supported."""

    @field_validator("response_format")
    @classmethod
    def _plain_text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value != {"type": "text"}:
            raise refused("unsupported_value", "only text is supported")
        return value

    @field_validator("messages")
    @classmethod
    def _one_question(cls, messages: list[Message]) -> list[Message]:
        if len(messages) != 1 or messages[0].role != "user":
            raise refused("unsupported_value", _ONE_QUESTION)
        text = question_of(messages)
        if not text:
            raise refused("invalid_value", "the question is empty")
        if len(text) > MAX_QUESTION:
            raise refused(
                "invalid_value", f"the question has {len(text)} characters, at most {MAX_QUESTION} are allowed"
            )
        return messages

    @property
    def question(self) -> str:
        """The question, without white space around it."""
        return question_of(self.messages)

    @property
    def limit(self) -> int | None:
        """Largest number of tokens of an open answer; None for the profile's."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed reply ends with the number of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def footage(self) -> FootageScope:
        """The footage of the question."""
        return self.sightline or FootageScope()

    @property
    def notices(self) -> list[str]:
        """What the user should know about parameters that have no effect."""
        return [] if self.top_p in (None, 1) else ["top_p had no effect: the limit of the checkpoint applies."]

    @property
    def sampling(self) -> Sampling:
        """Temperature and seed."""
        return Sampling(self.temperature or 0.0, self.seed)


def question_of(messages: list[Message]) -> str:
    """The text of the only message."""
    return "\n".join(part.text for part in messages[0].content).strip()
