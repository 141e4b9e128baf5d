"""The format of an answer: events, or one JSON object. Pure functions of the answer."""

from __future__ import annotations

import json
from typing import Any, Protocol

from pipeline.service.answers.finished import FinishedAnswer
from pipeline.service.schemas import AnswerDone, Problem, TokenText

__all__ = ["AnswerFormat", "ReplyFormat", "event_of"]


def event_of(data: Any, name: str | None = None) -> bytes:
    """One server-sent event. JSON contains no raw line breaks, so one `data:` line is enough."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


class ReplyFormat(Protocol):
    """Serializes one answer: `piece`, then `end` or `error`, as server-sent events; `whole` as one JSON object."""

    def piece(self, text: str) -> bytes:
        """The event for the next part of the answer."""

    def end(self, done: FinishedAnswer) -> bytes:
        """The last events of a complete answer."""

    def error(self, problem: Problem) -> bytes:
        """The event for an error after the stream has begun."""

    def whole(self, done: FinishedAnswer) -> dict[str, Any]:
        """The complete answer as one JSON object."""


class AnswerFormat:
    """Format of `POST /v1/answer`: events `token`, `answer`, `error`."""

    def piece(self, text: str) -> bytes:
        """The event for the next part of the answer."""
        return event_of(TokenText(text=text).model_dump(), "token")

    def end(self, done: FinishedAnswer) -> bytes:
        """The last events of a complete answer."""
        return event_of(self.whole(done), "answer")

    def error(self, problem: Problem) -> bytes:
        """The event for an error after the stream has begun."""
        return event_of({"error": problem.model_dump()}, "error")

    def whole(self, done: FinishedAnswer) -> dict[str, Any]:
        """The complete answer as one JSON object."""
        answer = done.answer
        return AnswerDone(
            text=answer.text,
            option=answer.option,
            probabilities=list(answer.probabilities),
            usage=done.usage,
            timings={"queue": done.queue_seconds, **answer.timings},
        ).model_dump()
