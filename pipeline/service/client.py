"""Client of the model service, which `sightline ask --service URL` uses. Imports no torch.

`ServiceClient` has the methods of an answerer (`max_frames`, `unknown_words`, `notice`), and its `encoders` encode
texts at the service, so that `Asker` works in the same way with and without a service. Replies are limited in size and
time: a hostile or defective service can neither exhaust the memory nor block the caller.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, SecretStr, ValidationError

from index.errors import (
    DeadlineExceeded,
    ServiceBusy,
    ServiceDenied,
    ServiceError,
    ServiceUnavailable,
    SightlineError,
    UsageError,
    mask_url,
    validation_message,
)
from index.records import EncoderIdentity
from index.window import Window
from model.answers import GREEDY, Answer, AnswerPiece, Sampling
from model.encoders.encoder import Encoders
from pipeline.service.schemas import (
    AnswerBody,
    AnswerDone,
    Budget,
    BudgetBody,
    EmbedBody,
    Embedded,
    ServedProfile,
    StreamFrames,
    code_of,
)

__all__ = ["ServiceClient", "references"]

ModelType = TypeVar("ModelType", bound=BaseModel)

_MAX_REPLY_BYTES = 32 * 2**20
_READ_BYTES = 64 * 2**10
_BALANCER_STATUSES = (502, 503, 504)
"""Of a load balancer whose servers do not answer; a page of its own comes with them."""
_SLACK_SECONDS = 10.0  # so that the service's own deadline, whose error is more precise, comes first


class _TextEncoder:
    """An encoder of the service, for texts only; frames are encoded by `ingest`."""

    def __init__(self, client: ServiceClient, which: Literal["frame", "patch"], profile: ServedProfile) -> None:
        self._client, self._which = client, which
        self.identity: EncoderIdentity = getattr(profile.encoders, which)
        self.patches = profile.encoders.patches

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]], clips: NDArray[np.int64] | None = None) -> NoReturn:
        """Raise UsageError: a model service does not encode frames."""
        raise UsageError(f"a model service does not encode frames ({len(frames)} were given); ingest without --service")

    def frame_features(self, frames: Sequence[NDArray[np.uint8]]) -> NoReturn:
        """Raise UsageError, as `encode_frames`."""
        self.encode_frames(frames)

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of texts, float32[n, D] of unit norm, equal to the bit to those of the service's encoder."""
        body = _body(EmbedBody, texts=list(texts), encoder=self._which)
        return np.asarray(self._client.post("/v1/embed/text", body, Embedded).vectors, np.float32)

    def text_features(self, texts: Sequence[str]) -> NoReturn:
        """Raise UsageError: a model service merges frames itself."""
        raise UsageError(f"a model service merges frames itself ({len(texts)} texts were given); ask it with --service")

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the model of the service does not know, in their order, each once."""
        return self._client.unknown_words(text)


class ServiceClient:
    """A connection to one model service.

    Args:
        url: address of the service, `http://host:port`.
        token: bearer token of the service, if it requires one.
        deadline_seconds: longest time of one question, the wait for room in the service's queue included.
        transport: transport of httpx, for tests.

    Raises:
        UsageError: the URL is not http(s), or contains credentials.
        ServiceUnavailable: the service is not reachable.
        ServiceDenied: the token is missing or wrong.
    """

    def __init__(
        self,
        url: str,
        token: SecretStr | None = None,
        *,
        deadline_seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.display_url, self.deadline_seconds = mask_url(url).rstrip("/"), deadline_seconds
        try:
            parsed = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL:
            raise UsageError(f"--service {self.display_url}: not a URL; give http://host:port") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise UsageError(
                f"--service {self.display_url}: give http://host:port without credentials, and the token in "
                "SIGHTLINE_SERVICE_TOKEN or SIGHTLINE_SERVICE_TOKEN_FILE"
            )
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        # trust_env=False: questions must not pass through a web proxy of the environment.
        self._http = httpx.Client(
            base_url=parsed,
            headers=headers,
            timeout=httpx.Timeout(30.0, connect=10.0, read=deadline_seconds + _SLACK_SECONDS),
            transport=transport,
            trust_env=False,
        )
        self._budget: tuple[str, Budget] | None = None
        try:
            self.profile = self._get("/v1/profile", ServedProfile)
        except BaseException:
            self.close()
            raise
        self.encoders = Encoders(
            _TextEncoder(self, "frame", self.profile), _TextEncoder(self, "patch", self.profile), self.profile.encoders
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- methods of an answerer ------------------------------------------------------------------------------------

    @property
    def notice(self) -> str:
        """A limitation of the model that users should know; empty if there is none."""
        return self.profile.notice

    def max_frames(self, k: int, question: str = "", options: tuple[str, ...] = ()) -> int:
        """Largest number of frames with `k` keyframes, as `Answerer.max_frames`. Raises BudgetExceeded."""
        body = _body(BudgetBody, question=question, options=list(options), keyframes=k)
        budget = self.post("/v1/budget", body, Budget)
        self._budget = (question, budget)
        return budget.max_frames

    def unknown_words(self, question: str) -> list[str]:
        """Words of the question that the model does not know, as `Answerer.unknown_words`."""
        if self._budget is None or self._budget[0] != question:
            self.max_frames(0, question)
        assert self._budget is not None
        return self._budget[1].unknown_words

    def answer(
        self,
        question: str,
        options: tuple[str, ...],
        window: Window,
        keyframe: NDArray[np.bool_],
        sampling: Sampling = GREEDY,
        footage_seconds: float | None = None,
        max_new_tokens: int | None = None,
    ) -> Iterator[AnswerPiece]:
        """Answer a question from the frames of `window`, whose keyframes are marked in `keyframe`, bool[N].

        `footage_seconds` is the length of the footage that they were sampled from. An open answer has at most
        `max_new_tokens` tokens, and at most as many as the service allows.

        Raises:
            SightlineError: an error of the service, as the same class that this process would raise.
            ServiceUnavailable: the connection was lost before the answer was complete.
        """
        body = _body(
            AnswerBody,
            question=question,
            options=list(options),
            frames=references(window, keyframe),
            temperature=sampling.temperature,
            seed=sampling.seed,
            footage_seconds=footage_seconds,
            max_new_tokens=max_new_tokens,
        )
        until = time.monotonic() + self.deadline_seconds
        while True:
            body.deadline_seconds = max(0.001, until - time.monotonic())
            try:
                yield from self._answer_once(body, until)
                return
            except ServiceBusy as busy:  # nothing has been yielded: the service refuses before it starts
                if time.monotonic() + busy.retry_after >= until:
                    raise
                time.sleep(busy.retry_after)

    def _answer_once(self, body: AnswerBody, until: float) -> Iterator[AnswerPiece]:
        try:
            with self._http.stream("POST", "/v1/answer", **_json(body)) as response:
                self._raise_for_status(response)
                for name, data in _events(response):
                    if time.monotonic() > until + _SLACK_SECONDS:
                        raise DeadlineExceeded(f"{self.display_url}: no answer within {self.deadline_seconds:g} s")
                    if name == "token":
                        yield AnswerPiece(str(data["text"]))
                    elif name == "answer":
                        done = AnswerDone.model_validate(data)
                        answer = Answer(
                            done.text,
                            done.option,
                            tuple(done.probabilities),
                            done.usage.visual_tokens,
                            done.usage.prompt_tokens,
                            done.timings,
                            done.usage.completion_tokens,
                        )
                        yield AnswerPiece("", answer)
                        return
                    elif name == "error":
                        raise _error_of(data, 500, self.display_url)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValidationError, ValueError, KeyError, TypeError):
            raise self._invalid_reply() from None
        raise ServiceUnavailable(
            f"{self.display_url}: the connection was closed before the answer was complete; ask again"
        )

    # ---- requests ------------------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[ModelType]) -> ModelType:
        return self._request("GET", path, kind, {})

    def post(self, path: str, body: BaseModel, kind: type[ModelType]) -> ModelType:
        """Send one JSON request and validate the reply. Raises as `answer`."""
        return self._request("POST", path, kind, _json(body))

    def _request(self, method: str, path: str, kind: type[ModelType], content: dict[str, Any]) -> ModelType:
        until = time.monotonic() + self.deadline_seconds
        while True:
            try:
                with self._http.stream(method, path, **content) as response:
                    self._raise_for_status(response)
                    return kind.model_validate_json(_bounded(response))
            except ServiceBusy as busy:
                if time.monotonic() + busy.retry_after >= until:
                    raise
                time.sleep(busy.retry_after)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            except ValidationError:
                raise self._invalid_reply() from None

    def _raise_for_status(self, response: httpx.Response) -> None:
        """Raise the error that a reply describes, unless its status is 200."""
        if response.status_code == 200:
            return
        try:
            data = json.loads(_bounded(response))
        except ValueError:
            if response.status_code in _BALANCER_STATUSES:
                raise ServiceUnavailable(
                    f"{self.display_url}: a load balancer answered {response.status_code}: no replica of the model "
                    "service is ready, or one ended before it had answered; ask again"
                ) from None
            raise self._invalid_reply() from None
        error = _error_of(data, response.status_code, self.display_url)
        if isinstance(error, ServiceBusy):
            after = response.headers.get("retry-after", "1")
            error.retry_after = min(60, max(1, int(after))) if after.isdigit() else 1
        raise error

    def _unreachable(self, error: httpx.HTTPError) -> SightlineError:
        if isinstance(error, httpx.ReadTimeout):
            return DeadlineExceeded(f"{self.display_url}: no answer within {self.deadline_seconds:g} s")
        reason = mask_url((str(error).splitlines() or [""])[0]) or type(error).__name__
        return ServiceUnavailable(f"{self.display_url}: the model service is not reachable ({reason}); is it running?")

    def _invalid_reply(self) -> SightlineError:
        return ServiceUnavailable(
            f"{self.display_url}: invalid reply; not a model service, or another version of Sightline"
        )


def _body(kind: type[ModelType], **fields: Any) -> ModelType:
    """Validate the body of a request. Raises UsageError for what the service would refuse."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise UsageError(validation_message(error)) from None


def _json(body: BaseModel) -> dict[str, Any]:
    return {"content": body.model_dump_json(exclude_none=True), "headers": {"Content-Type": "application/json"}}


def references(window: Window, keyframe: NDArray[np.bool_]) -> list[StreamFrames]:
    """References to the frames of a window, stream by stream in the order of the window."""
    found = []
    for index in np.unique(window.stream_index).tolist():
        rows = np.flatnonzero(window.stream_index == index)
        found.append(
            StreamFrames(
                stream_id=window.stream_ids[index],
                captured_at=window.captured_at[rows].tolist(),
                keyframes=np.flatnonzero(keyframe[rows]).tolist(),
            )
        )
    return found


def _bounded(response: httpx.Response) -> bytes:
    held = bytearray()
    for part in response.iter_bytes(_READ_BYTES):
        held += part
        if len(held) > _MAX_REPLY_BYTES:
            raise ValueError("the reply is too large")
    return bytes(held)


def _events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event. Raises ValueError if the reply is too large or not JSON."""
    held, total = b"", 0
    for part in response.iter_bytes():
        total += len(part)
        if total > _MAX_REPLY_BYTES:
            raise ValueError("the reply is too large")
        *whole, held = (held + part).split(b"\n\n")
        for event in whole:
            fields = dict(line.split(": ", 1) for line in event.decode().split("\n") if ": " in line)
            if "data" in fields:
                yield fields.get("event", "message"), json.loads(fields["data"])


def _subclasses(kind: type[SightlineError]) -> Iterator[type[SightlineError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _subclasses(below)


def _error_of(data: Any, status: int, shown: str) -> SightlineError:
    """The error that a reply describes, as its class in `index.errors`."""
    problem = data.get("error") if isinstance(data, dict) else None
    if not isinstance(problem, dict) or not isinstance(problem.get("message"), str):
        return ServiceUnavailable(
            f"{shown}: invalid reply with status {status}; not a model service, or another version of Sightline"
        )
    message = mask_url(problem["message"])
    kind = {code_of(kind): kind for kind in _subclasses(SightlineError)}.get(str(problem.get("code")))
    if kind is ServiceDenied:
        message += "; set SIGHTLINE_SERVICE_TOKEN or SIGHTLINE_SERVICE_TOKEN_FILE"
    if kind is not None:
        return kind(message)
    return UsageError(message) if 400 <= status < 500 else ServiceError(f"{shown}: {message}")
