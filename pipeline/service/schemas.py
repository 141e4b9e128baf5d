"""Requests and replies of the model service. Imports no torch, so that clients need none.

Every list and every text has a largest length, which validation enforces; `pipeline.service.guard` limits the size of a
whole body. The descriptions of the fields are those of the OpenAPI schema.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from index.errors import SightlineError, mask_url
from index.records import EncoderPair
from index.selectors.registry import SelectorName
from index.selectors.selector import Redundancy
from model.answers import Sampling
from model.profiles.profile import DfmSpec, HicoSpec

__all__ = [
    "MAX_QUESTION",
    "MAX_STREAMS",
    "AnswerBody",
    "AnswerDone",
    "Budget",
    "BudgetBody",
    "EmbedBody",
    "Embedded",
    "NewTokens",
    "Options",
    "Problem",
    "SamplingSeed",
    "Seconds",
    "ServedProfile",
    "StreamFrames",
    "StreamName",
    "Temperature",
    "TokenText",
    "Usage",
    "code_of",
    "problem_of",
]

_LAST_MICROSECOND = 253_402_300_799_999_998  # the year 9999; a window that ends after the frame must end in it too
MAX_QUESTION = 8_000
"""Largest number of characters of a question."""
MAX_STREAMS = 1024
"""Largest number of streams of a question."""
_MAX_OPTIONS = 64
_MAX_TEXTS = 64

Micros = Annotated[int, Field(ge=0, le=_LAST_MICROSECOND, strict=True)]
Position = Annotated[int, Field(ge=0, strict=True)]
# The pattern refuses a question of white space only, as `ask` does.
Words = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUESTION, pattern=r"\S")]
Option = Annotated[str, StringConstraints(min_length=1, max_length=1_000, pattern=r"\S")]
Options = Annotated[list[Option], Field(max_length=_MAX_OPTIONS)]
StreamName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
NewTokens = Annotated[int, Field(ge=1, le=100_000)]
Temperature = Annotated[float, Field(ge=0, le=5)]
SamplingSeed = Annotated[int, Field(ge=0, lt=2**63)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Reply(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class StreamFrames(_Request):
    """References to frames of one stream in the service's store."""

    stream_id: StreamName
    """The stream."""
    captured_at: list[Micros] = Field(min_length=1)
    """Capture times of the frames in UTC microseconds, ascending."""
    keyframes: list[Position] = Field(default_factory=list)
    """Positions in `captured_at` of the frames that are keyframes, ascending."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if any(a >= b for a, b in pairwise(self.captured_at)):
            raise ValueError("captured_at must ascend, each frame once")
        if any(a >= b for a, b in pairwise(self.keyframes)):
            raise ValueError("keyframes must ascend, each position once")
        if self.keyframes and self.keyframes[-1] >= len(self.captured_at):
            raise ValueError("a keyframe is a position in captured_at")
        return self


class AnswerBody(_Request):
    """Request of `POST /v1/answer`."""

    question: Words
    """The question."""
    options: Options = Field(default_factory=list)
    """Answers to choose from; an open question if empty."""
    frames: list[StreamFrames] = Field(default_factory=list, max_length=MAX_STREAMS)
    """Frames that the model reads; without frames it answers from the question alone."""
    footage_seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False, lt=10_000_000)
    """Seconds of footage that the frames were sampled from, which a model of clips is told; if null, the seconds that
    the frames cover themselves."""
    stream: bool = True
    """Reply with server-sent events (`token`, then `answer` or `error`) instead of one JSON object."""
    deadline_seconds: Seconds | None = None
    """Longest time of the request, the wait in the queue included; the service's own limit if null."""
    max_new_tokens: NewTokens | None = None
    """Largest number of tokens of an open answer; the profile's limit if null."""
    temperature: Temperature = 0.0
    """Divides the logits of an open answer before a token is drawn; 0 always takes the most likely token."""
    seed: SamplingSeed | None = None
    """Seed of the draws; a random one if null."""

    @property
    def sampling(self) -> Sampling:
        """Temperature and seed."""
        return Sampling(self.temperature, self.seed)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({part.stream_id for part in self.frames}) != len(self.frames):
            raise ValueError("each stream once; put all its frames in one entry")
        if len(set(self.options)) != len(self.options):
            raise ValueError("two options are the same; give each only once")
        return self


class TokenText(_Reply):
    """Event `token`: the next part of the answer."""

    text: str
    """Text of the part."""


class Usage(_Reply):
    """Resources that a question used."""

    prompt_tokens: int
    """Tokens of the prompt, the visual tokens included."""
    completion_tokens: int
    """Tokens of the answer."""
    visual_tokens: int
    """Tokens of the frames."""
    frames: int
    """Frames that the model read, the keyframes included."""
    keyframes: int
    """Keyframes."""
    patch_bytes: int
    """Bytes of patches read from the store."""


class AnswerDone(_Reply):
    """Event `answer`, the last one; also the whole reply if `stream` is false."""

    text: str
    """The answer."""
    option: int | None
    """Position of the chosen answer in `options`; null for an open question."""
    probabilities: list[float]
    """Probability of each option; empty for an open question."""
    usage: Usage
    """Resources that the question used."""
    timings: dict[str, float]
    """Seconds of each stage; `queue` is the wait in the queue."""


class BudgetBody(_Request):
    """Request of `POST /v1/budget`: how many frames fit a question."""

    question: Words
    """The question."""
    options: Options = Field(default_factory=list)
    """Answers to choose from."""
    keyframes: int = Field(ge=0, le=1_000_000)
    """Number of keyframes."""


class Budget(_Reply):
    """Reply of `POST /v1/budget`."""

    max_frames: int
    """Largest number of frames, the keyframes included."""
    unknown_words: list[str]
    """Words of the question that the model does not know."""


class ServedProfile(_Reply):
    """Reply of `GET /v1/profile`: the model profile of the service."""

    name: str
    """Name of the profile."""
    notice: str
    """A limitation of the model that users should know; empty if there is none."""
    k: int
    """Largest number of keyframes (DKS)."""
    tau: float
    """Similarity threshold τ (DKS)."""
    selector: SelectorName = "dks"
    """How keyframes are selected."""
    redundancy: Redundancy = "fixed"
    """When two frames are alike."""
    max_frames: int
    """Largest number of frames of a question."""
    dfm: DfmSpec
    """Settings of DFM. The reply contains only the fields that the profile sets, because their defaults depend on each
    other."""
    hico: HicoSpec | None = None
    """Clips that the model reads instead of keyframes and merged frames; null for these."""
    encoders: EncoderPair
    """Identity of the encoders whose vectors the model reads."""


class EmbedBody(_Request):
    """Request of `POST /v1/embed/text`."""

    texts: list[Words] = Field(min_length=1, max_length=_MAX_TEXTS)
    """The texts."""
    encoder: Literal["frame", "patch"] = "frame"
    """The frame encoder (keyframes and search) or the patch encoder (patch relevance, standing questions)."""
    deadline_seconds: Seconds | None = None
    """Longest time of the request, the wait in the queue included; the service's own limit if null."""


class Embedded(_Reply):
    """Reply of `POST /v1/embed/text`."""

    encoder: str
    """Name of the encoder."""
    vectors: list[list[float]]
    """One vector of unit norm for each text; each number is exactly the encoder's float32."""
    timings: dict[str, float]
    """Seconds: `queue` (the wait in the queue) and `total`."""


class Problem(BaseModel):
    """An error, under the key `error` of a reply. Further fields hold numbers that explain it, such as `max_frames`."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    type: str
    """Kind of the error: the class of `index.errors` in snake case, or OpenAI's `invalid_request_error`."""
    message: str
    """One sentence: what happened and what to do."""
    code: str
    """Code of the error, such as `budget_exceeded`."""
    param: str | None = None
    """The parameter of the request that is invalid, such as `messages[0].content`; null if there is none."""


def code_of(kind: type[Exception]) -> str:
    """Code of a class of errors: its name in snake case, such as `budget_exceeded`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def problem_of(error: Exception, **numbers: int | float | None) -> Problem:
    """The reply for an error, with `numbers` as further fields.

    An error of Sightline is reported with its message, without credentials. Of any other error the reply says only that
    it happened; the details are in the log.
    """
    if isinstance(error, SightlineError):
        code, message = code_of(type(error)), mask_url(str(error))
    else:
        code, message = "internal_error", "the service failed to process the request; see its log"
    return Problem(type=code, message=message, code=code, **{k: v for k, v in numbers.items() if v is not None})
