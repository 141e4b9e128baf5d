"""What goes over the wire between the model service and those who ask it. Needs no torch, so that clients need none.

Every list and text has a most; what is larger is refused by validation. Bodies as a whole are bounded by the gate.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from index.errors import SightlineError, mask_url
from index.records import EncoderPair
from model.profiles.profile import DfmSpec

__all__ = [
    "AnswerBody",
    "AnswerDone",
    "Budget",
    "BudgetBody",
    "ChatBody",
    "EmbedBody",
    "Embedded",
    "FootageScope",
    "Problem",
    "ServedProfile",
    "StreamFrames",
    "TokenText",
    "Usage",
    "code_of",
    "problem_of",
]

_LAST_MICROSECOND = 253_402_300_799_999_999  # the end of the year 9999
_MOST_OPTIONS = 64
_MOST_TEXTS = 64
_MOST_STREAMS = 1024
_MOST_MESSAGES = 256

Micros = Annotated[int, Field(ge=0, le=_LAST_MICROSECOND, strict=True)]
Position = Annotated[int, Field(ge=0, strict=True)]
# Words without any visible letter would be an empty question; the pattern refuses them here, as `ask` does.
Words = Annotated[str, StringConstraints(min_length=1, max_length=8_000, pattern=r"\S")]
Option = Annotated[str, StringConstraints(min_length=1, max_length=1_000, pattern=r"\S")]
Options = Annotated[list[Option], Field(max_length=_MOST_OPTIONS)]
StreamName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
NewTokens = Annotated[int, Field(ge=1, le=100_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamFrames(_Body):
    """Frames of one stream: capture times (UTC microseconds, ascending) and which positions are keyframes."""

    stream_id: StreamName
    captured_at: list[Micros] = Field(min_length=1)
    keyframes: list[Position] = Field(default_factory=list)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if any(a >= b for a, b in pairwise(self.captured_at)):
            raise ValueError("captured_at must ascend, each frame once")
        if any(a >= b for a, b in pairwise(self.keyframes)):
            raise ValueError("keyframes must ascend, each position once")
        if self.keyframes and self.keyframes[-1] >= len(self.captured_at):
            raise ValueError("a keyframe is a position in captured_at")
        return self


class AnswerBody(_Body):
    """`POST /v1/answer`. Without frames the model answers blind. `stream` chooses server-sent events over one JSON."""

    question: Words
    options: Options = Field(default_factory=list)
    frames: list[StreamFrames] = Field(default_factory=list, max_length=_MOST_STREAMS)
    stream: bool = True
    deadline_seconds: Seconds | None = None
    max_new_tokens: NewTokens | None = None

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({part.stream_id for part in self.frames}) != len(self.frames):
            raise ValueError("each stream once; put all its frames in one entry")
        if len(set(self.options)) != len(self.options):
            raise ValueError("two options are the same; give each only once")
        return self


class TokenText(BaseModel):
    """Event `token`: the next piece of the answer's text."""

    text: str


class Usage(BaseModel):
    """What a question took. Visual tokens are among the prompt's; `patch_bytes` were read from the store."""

    prompt_tokens: int
    completion_tokens: int
    visual_tokens: int
    frames: int
    keyframes: int
    patch_bytes: int


class AnswerDone(BaseModel):
    """Event `answer`, the last one. `option` is a position in the options; `timings` in seconds, `queue` among them."""

    text: str
    option: int | None
    probabilities: list[float]
    usage: Usage
    timings: dict[str, float]


class BudgetBody(_Body):
    """`POST /v1/budget`: what a question with so many keyframes may bring along."""

    question: Words
    options: Options = Field(default_factory=list)
    keyframes: int = Field(ge=0, le=1_000_000)


class Budget(BaseModel):
    """The most frames, keyframes among them, and the words of the question that the model does not know."""

    max_frames: int
    unknown_words: list[str]


class ServedProfile(BaseModel):
    """`GET /v1/profile`: what the service runs. `k`, `tau` and `dfm` steer DKS, `encoders` are whose vectors it reads.

    On the wire `dfm` has only the fields that its profile sets: its own rules tell a default from what was written.
    """

    name: str
    notice: str
    k: int
    tau: float
    max_frames: int
    dfm: DfmSpec
    encoders: EncoderPair


class EmbedBody(_Body):
    """`POST /v1/embed/text`: by the frame encoder (keyframes, search) or the patch encoder (R_p)."""

    texts: list[Words] = Field(min_length=1, max_length=_MOST_TEXTS)
    encoder: Literal["frame", "patch"] = "frame"
    deadline_seconds: Seconds | None = None


class Embedded(BaseModel):
    """One vector of unit norm a text; each number is exactly the encoder's float32."""

    encoder: str
    vectors: list[list[float]]
    timings: dict[str, float]


class FootageScope(_Body):
    """The `sightline` field of a chat: which footage the question is about. An empty one means all of it."""

    streams: list[StreamName] | None = Field(default=None, max_length=_MOST_STREAMS)
    start: Annotated[str, StringConstraints(max_length=64)] | None = None
    end: Annotated[str, StringConstraints(max_length=64)] | None = None
    options: Options = Field(default_factory=list)
    k: int | None = Field(default=None, ge=1, le=1_000_000)
    tau: float | None = Field(default=None, gt=-1, le=1)


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None


class ChatBody(BaseModel):
    """`POST /v1/chat/completions` as OpenAI shapes it, with `sightline` for the footage.

    Fields that only steer sampling (temperature, top_p, seed, …) are taken and ignored: decoding is greedy. Fields
    that would change what is returned are refused.
    """

    model: str
    messages: list[_Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    n: Literal[1] | None = None
    stop: None = None
    tools: None = None
    functions: None = None
    logprobs: Literal[False] | None = None
    response_format: dict[str, Any] | None = None
    deadline_seconds: Seconds | None = None
    sightline: FootageScope | None = None

    @model_validator(mode="after")
    def _plain_text(self) -> Self:
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise ValueError("response_format: only text is written")
        return self

    def question(self) -> str:
        """The text of the last message.

        Raises:
            ValueError: it is not the user's, holds anything but text, or is too long.
        """
        last = self.messages[-1]
        if last.role != "user":
            raise ValueError("messages: the last one must be the user's question")
        parts = last.content if isinstance(last.content, list) else [{"type": "text", "text": last.content or ""}]
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
            raise ValueError("messages: only text is read; name footage in the field `sightline`")
        text = "\n".join(str(part["text"]) for part in parts).strip()
        if not text:
            raise ValueError("messages: the question is empty")
        if len(text) > 8_000:
            raise ValueError(f"messages: the question has {len(text)} characters, the most is 8000")
        return text


class Problem(BaseModel):
    """Every error's body, under the key `error`. `type` names the class of `index.errors` in snake case."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str
    code: str


def code_of(kind: type[Exception]) -> str:
    """`BudgetExceeded` → `budget_exceeded`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def problem_of(error: Exception, **numbers: int | float | None) -> Problem:
    """What a client may know of `error`: ours as they are, without credentials; of any other only that it happened."""
    if isinstance(error, SightlineError):
        code, message = code_of(type(error)), mask_url(str(error))
    else:
        code, message = "internal_error", "the service failed on this request; its log says why"
    return Problem(type=code, message=message, code=code, **{k: v for k, v in numbers.items() if v is not None})
