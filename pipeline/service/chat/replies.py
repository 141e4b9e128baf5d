"""Replies of `/v1/chat/completions`: OpenAI's completion, and what it does not have under `sightline`.

A streamed reply has `ChatChunk` objects, then `[DONE]`. Imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.service.schemas import Problem, Usage

__all__ = [
    "COMPLETION",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatDelta",
    "ChatError",
    "ChatKeyframe",
    "ChatMessage",
    "ChatUsage",
    "FinishReason",
    "SightlineExtension",
]

FinishReason = Literal["stop", "length"]
"""Why an answer ends."""


class _Reply(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class ChatMessage(_Reply):
    """The answer as a message."""

    role: Literal["assistant"] = "assistant"
    """Author of the message."""
    content: str
    """The answer."""
    refusal: None = None
    """Always null."""


class ChatChoice(_Reply):
    """The answer; there is one."""

    index: int = 0
    """Always 0."""
    message: ChatMessage
    """The answer."""
    logprobs: None = None
    """Always null."""
    finish_reason: FinishReason
    """`length` where an open answer has as many tokens as allowed."""


class ChatUsage(_Reply):
    """Numbers of tokens."""

    prompt_tokens: int
    """Tokens of the question and of its frames."""
    completion_tokens: int
    """Tokens of the answer."""
    total_tokens: int
    """Their sum."""


class ChatKeyframe(_Reply):
    """A frame that the answer rests on."""

    stream_id: str
    """The stream."""
    captured_at: str
    """Capture time, RFC 3339 UTC."""


class SightlineExtension(_Reply):
    """What OpenAI's format does not have."""

    keyframes: list[ChatKeyframe]
    """The keyframes."""
    option: int | None
    """Index of the chosen option; null for an open question."""
    probabilities: list[float]
    """Probability of each option; empty for an open question."""
    usage: Usage
    """Resources that the question used."""
    timings: dict[str, float]
    """Time of each stage, in seconds."""
    notices: list[str]
    """Remarks that limit the trust in the answer."""


class _Answered(_Reply):
    id: str
    """Id of the answer."""
    created: int
    """When it was begun, in seconds since 1970."""
    model: str
    """Name of the profile."""


class ChatCompletion(_Answered):
    """A complete answer."""

    object: Literal["chat.completion"] = "chat.completion"
    """Kind of the object."""
    choices: list[ChatChoice]
    """The answer."""
    usage: ChatUsage
    """Numbers of tokens."""
    sightline: SightlineExtension
    """What OpenAI's format does not have."""


class ChatDelta(_Reply):
    """A part of the answer."""

    role: Literal["assistant"] | None = None
    """Author of the message; in the first part only."""
    content: str | None = None
    """The part; absent in the last chunk."""


class ChatChunkChoice(_Reply):
    """The answer of a chunk; there is at most one."""

    index: int = 0
    """Always 0."""
    delta: ChatDelta
    """The next part."""
    finish_reason: FinishReason | None
    """Why the answer ends; null until it does."""


class ChatChunk(_Answered):
    """A part of a streamed answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    """Kind of the object."""
    choices: list[ChatChunkChoice]
    """The next part; empty in the chunk with the numbers of tokens."""
    usage: ChatUsage | None = None
    """Numbers of tokens, in the last chunk of a request that wants them; absent in all others."""
    sightline: SightlineExtension | None = None
    """What OpenAI's format does not have, in the last chunk with a choice; absent in all others."""


class ChatError(_Reply):
    """An error in OpenAI's format."""

    error: Problem
    """The error."""


COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletion,
        "description": "A completion, or with `stream` its chunks as events, of which the last is `[DONE]`.",
        # Some generators of clients know only the first one.
        "content": {"application/json": {}, "text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""How a route documents its replies, as FastAPI takes them."""
