"""OpenAI's chat completions as the format of an answer. Pure functions of the answer."""

from __future__ import annotations

import time
import uuid
from typing import Any

from index.records import rfc3339
from pipeline.service.answers.finished import FinishedAnswer
from pipeline.service.answers.format import event_of
from pipeline.service.chat.replies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatKeyframe,
    ChatMessage,
    ChatUsage,
    FinishReason,
    SightlineExtension,
)
from pipeline.service.schemas import Problem

__all__ = ["ChatFormat"]


class ChatFormat:
    """Format of `POST /v1/chat/completions`: chunks and `[DONE]`, or one completion.

    Fields that OpenAI's format does not have are under `sightline`: in the last chunk with a choice, or beside the
    choices of a completion.

    Args:
        model: name of the profile.
        limit: largest number of tokens of an open answer, None if unknown; an answer of that length has the finish
            reason `length`.
        usage: whether the stream ends with the number of tokens.
        notices: remarks about the answer.
    """

    def __init__(self, model: str, *, limit: int | None, usage: bool, notices: list[str]) -> None:
        self.model, self.limit, self.usage, self.notices = model, limit, usage, notices
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._begun = False

    def piece(self, text: str) -> bytes:
        """The event for the next part of the answer."""
        delta = ChatDelta(content=text) if self._begun else ChatDelta(role="assistant", content=text)
        self._begun = True
        return self._chunk([ChatChunkChoice(delta=delta, finish_reason=None)])

    def end(self, done: FinishedAnswer) -> bytes:
        """The last events of a complete answer."""
        begin = b"" if self._begun else self.piece("")
        last = ChatChunkChoice(delta=ChatDelta(), finish_reason=self._reason(done))
        written = begin + self._chunk([last], sightline=self._extension(done))
        if self.usage:
            written += self._chunk([], usage=self._usage(done))
        return written + b"data: [DONE]\n\n"

    def error(self, problem: Problem) -> bytes:
        """The event for an error after the stream has begun."""
        return event_of({"error": problem.model_dump()})

    def whole(self, done: FinishedAnswer) -> dict[str, Any]:
        """The complete answer as one JSON object."""
        choice = ChatChoice(message=ChatMessage(content=done.answer.text), finish_reason=self._reason(done))
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[choice],
            usage=self._usage(done),
            sightline=self._extension(done),
        ).model_dump()

    def _chunk(self, choices: list[ChatChunkChoice], **more: Any) -> bytes:
        """The event of a chunk. Fields that were not given are absent, as in OpenAI's replies."""
        chunk = ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices, **more)
        written = chunk.model_dump(exclude_unset=True)
        written["object"] = chunk.object
        for choice in written["choices"]:
            choice["index"] = 0
        return event_of(written)

    def _reason(self, done: FinishedAnswer) -> FinishReason:
        chosen = done.answer.option is not None
        limited = self.limit is not None and done.usage.completion_tokens >= self.limit
        return "length" if limited and not chosen else "stop"

    @staticmethod
    def _usage(done: FinishedAnswer) -> ChatUsage:
        prompt, completion = done.usage.prompt_tokens, done.usage.completion_tokens
        return ChatUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

    def _extension(self, done: FinishedAnswer) -> SightlineExtension:
        rows, answer = done.rows, done.answer
        keyframes = [
            ChatKeyframe(
                stream_id=rows.stream_ids[int(rows.stream_index[i])], captured_at=rfc3339(int(rows.captured_at[i]))
            )
            for i in rows.keyframe.nonzero()[0].tolist()
        ]
        return SightlineExtension(
            keyframes=keyframes,
            option=answer.option,
            probabilities=list(answer.probabilities),
            usage=done.usage,
            timings={"queue": done.queue_seconds, **answer.timings},
            notices=[*done.notices, *self.notices],
        )
