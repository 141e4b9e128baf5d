"""How an answer is written: as our own events, or in OpenAI's shape. One form a request; nothing here waits or reads."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any, Protocol

from index.records import rfc3339
from pipeline.service.engine import Done
from pipeline.service.schemas import AnswerDone, Problem, TokenText

__all__ = ["AnswerForm", "ChatForm", "Form"]


def _event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event. JSON has no raw line breaks, so one `data:` line is enough."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


class Form(Protocol):
    """`piece`, then `end` or `error`, for a stream; `whole` for one JSON."""

    def piece(self, text: str) -> bytes: ...

    def end(self, done: Done) -> bytes: ...

    def error(self, problem: Problem) -> bytes: ...

    def whole(self, done: Done) -> dict[str, Any]: ...


class AnswerForm:
    """`POST /v1/answer`: events `token`, `answer`, `error`."""

    def piece(self, text: str) -> bytes:
        return _event(TokenText(text=text).model_dump(), "token")

    def end(self, done: Done) -> bytes:
        return _event(self.whole(done), "answer")

    def error(self, problem: Problem) -> bytes:
        return _event({"error": problem.model_dump()}, "error")

    def whole(self, done: Done) -> dict[str, Any]:
        answer = done.answer
        return AnswerDone(
            text=answer.text,
            option=answer.option,
            probabilities=list(answer.probabilities),
            usage=done.usage,
            timings={"queue": done.queue_seconds, **answer.timings},
        ).model_dump()


class ChatForm:
    """`POST /v1/chat/completions`: chunks and `[DONE]`, or one completion.

    What OpenAI has no place for stands under `sightline`, in the last chunk with a choice or beside the choices.
    """

    def __init__(self, model: str, *, limit: int, usage: bool, notices: list[str]) -> None:
        self.model, self.limit, self.usage, self.notices = model, limit, usage, notices
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._begun = False

    def piece(self, text: str) -> bytes:
        role = {} if self._begun else {"role": "assistant"}
        self._begun = True
        return _event(self._chunk([{"index": 0, "delta": {**role, "content": text}, "finish_reason": None}]))

    def end(self, done: Done) -> bytes:
        begin = b"" if self._begun else self.piece("")
        last = self._chunk([{"index": 0, "delta": {}, "finish_reason": self._reason(done)}])
        written = begin + _event({**last, "sightline": self._beside(done)})
        if self.usage:
            written += _event({**self._chunk([]), "usage": self._usage(done)})
        return written + b"data: [DONE]\n\n"

    def error(self, problem: Problem) -> bytes:
        return _event({"error": problem.model_dump()})

    def whole(self, done: Done) -> dict[str, Any]:
        message = {"role": "assistant", "content": done.answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason(done)}
        return {
            **self._chunk([choice]),
            "object": "chat.completion",
            "usage": self._usage(done),
            "sightline": self._beside(done),
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _reason(self, done: Done) -> str:
        chosen = done.answer.option is not None
        return "length" if not chosen and done.usage.completion_tokens >= self.limit else "stop"

    @staticmethod
    def _usage(done: Done) -> dict[str, int]:
        prompt, completion = done.usage.prompt_tokens, done.usage.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _beside(self, done: Done) -> dict[str, Any]:
        rows = done.rows
        keyframes = [
            {"stream_id": rows.stream_ids[int(rows.stream_index[i])], "captured_at": rfc3339(int(rows.captured_at[i]))}
            for i in rows.keyframe.nonzero()[0].tolist()
        ]
        answer = AnswerForm().whole(done)
        return {
            "keyframes": keyframes,
            "option": answer["option"],
            "probabilities": answer["probabilities"],
            "usage": answer["usage"],
            "timings": answer["timings"],
            "notices": self.notices,
        }
