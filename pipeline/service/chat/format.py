"""OpenAI's chat completions as the format of an answer. Pure functions of the answer."""

from __future__ import annotations

import time
import uuid
from typing import Any

from index.records import rfc3339
from pipeline.service.answers.finished import FinishedAnswer
from pipeline.service.answers.format import AnswerFormat, event_of
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
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return event_of(self._chunk([{"index": 0, "delta": {**role, "content": text}, "finish_reason": None}]))

    def end(self, done: FinishedAnswer) -> bytes:
        """The last events of a complete answer."""
        begin = b"" if self._begun else self.piece("")
        last = self._chunk([{"index": 0, "delta": {}, "finish_reason": self._reason(done)}])
        written = begin + event_of({**last, "sightline": self._extension(done)})
        if self.usage:
            written += event_of({**self._chunk([]), "usage": self._usage(done)})
        return written + b"data: [DONE]\n\n"

    def error(self, problem: Problem) -> bytes:
        """The event for an error after the stream has begun."""
        return event_of({"error": problem.model_dump()})

    def whole(self, done: FinishedAnswer) -> dict[str, Any]:
        """The complete answer as one JSON object."""
        message = {"role": "assistant", "content": done.answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason(done)}
        return {
            **self._chunk([choice]),
            "object": "chat.completion",
            "usage": self._usage(done),
            "sightline": self._extension(done),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _reason(self, done: FinishedAnswer) -> str:
        chosen = done.answer.option is not None
        limited = self.limit is not None and done.usage.completion_tokens >= self.limit
        return "length" if limited and not chosen else "stop"

    @staticmethod
    def _usage(done: FinishedAnswer) -> dict[str, int]:
        prompt, completion = done.usage.prompt_tokens, done.usage.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _extension(self, done: FinishedAnswer) -> dict[str, Any]:
        rows = done.rows
        keyframes = [
            {"stream_id": rows.stream_ids[int(rows.stream_index[i])], "captured_at": rfc3339(int(rows.captured_at[i]))}
            for i in rows.keyframe.nonzero()[0].tolist()
        ]
        answer = AnswerFormat().whole(done)
        return {
            "keyframes": keyframes,
            "option": answer["option"],
            "probabilities": answer["probabilities"],
            "usage": answer["usage"],
            "timings": answer["timings"],
            "notices": [*done.notices, *self.notices],
        }
