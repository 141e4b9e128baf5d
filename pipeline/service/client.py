"""The other side of the model service: what `sightline ask --service URL` asks. Needs no torch.

`ServiceClient` stands where an answerer stands (`max_frames`, `unknown_words`, `notice`), and its `encoders` where the
encoders stand, so that a question takes the same way with and without a service.
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
from model.answers import Answer, AnswerPiece
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

M = TypeVar("M", bound=BaseModel)

_MOST_REPLY_BYTES = 32 * 2**20
_PIECE_BYTES = 64 * 2**10
_SLACK_SECONDS = 10.0  # the service's own deadline comes first and says more


class _TextEncoder:
    """An encoder of the service. It encodes texts; frames are encoded where footage is ingested."""

    def __init__(self, client: ServiceClient, which: Literal["frame", "patch"], profile: ServedProfile) -> None:
        self._client, self._which = client, which
        self.identity: EncoderIdentity = getattr(profile.encoders, which)
        self.patches = profile.encoders.patches

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> NoReturn:
        raise UsageError(f"a model service does not encode frames ({len(frames)} were given); ingest without --service")

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32[n, D] of unit norm, to the bit what the service's encoder gave."""
        body = _body(EmbedBody, texts=list(texts), encoder=self._which)
        return np.asarray(self._client.post("/v1/embed/text", body, Embedded).vectors, np.float32)

    def text_features(self, texts: Sequence[str]) -> NoReturn:
        raise UsageError(f"a model service merges frames itself ({len(texts)} texts were given); ask it with --service")


class ServiceClient:
    """One model service.

    Args:
        url: where it listens, `http://host:port`.
        token: its token, if it wants one.
        deadline_seconds: longest time of one question, waiting for room at the service included.

    Raises:
        UsageError: not an http(s) URL, or one with credentials in it.
        ServiceUnavailable, ServiceDenied: it cannot be reached, or wants another token.
    """

    def __init__(
        self,
        url: str,
        token: SecretStr | None = None,
        *,
        deadline_seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.shown, self.deadline_seconds = mask_url(url).rstrip("/"), deadline_seconds
        try:
            parsed = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL:
            raise UsageError(f"--service {self.shown}: not a URL; give http://host:port") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise UsageError(
                f"--service {self.shown}: give http://host:port without credentials; a token goes into "
                "SIGHTLINE_SERVICE_TOKEN or SIGHTLINE_SERVICE_TOKEN_FILE"
            )
        headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
        # The service is on one's own network: a proxy for the web would only see questions that are not its business.
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
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what an answerer has ------------------------------------------------------------------------------------

    @property
    def notice(self) -> str:
        return self.profile.notice

    def max_frames(self, k: int, question: str = "", options: tuple[str, ...] = ()) -> int:
        """As `Answerer.max_frames`. Raises BudgetExceeded."""
        body = _body(BudgetBody, question=question, options=list(options), keyframes=k)
        budget = self.post("/v1/budget", body, Budget)
        self._budget = (question, budget)
        return budget.max_frames

    def unknown_words(self, question: str) -> list[str]:
        """As `Answerer.unknown_words`."""
        if self._budget is None or self._budget[0] != question:
            self.max_frames(0, question)
        assert self._budget is not None
        return self._budget[1].unknown_words

    def answer(
        self, question: str, options: tuple[str, ...], window: Window, keyframe: NDArray[np.bool_]
    ) -> Iterator[AnswerPiece]:
        """The answer from the frames of `window`, of which `keyframe` (bool[N]) marks the keyframes.

        Raises:
            SightlineError: what the service refused it with, as the class it would have been in this process.
            ServiceUnavailable: the connection broke before the answer was whole.
        """
        body = _body(AnswerBody, question=question, options=list(options), frames=references(window, keyframe))
        until = time.monotonic() + self.deadline_seconds
        while True:
            body.deadline_seconds = max(0.001, until - time.monotonic())
            try:
                yield from self._answer_once(body, until)
                return
            except ServiceBusy as busy:  # nothing has been yielded: the service refuses before it begins
                if time.monotonic() + busy.retry_after >= until:
                    raise
                time.sleep(busy.retry_after)

    def _answer_once(self, body: AnswerBody, until: float) -> Iterator[AnswerPiece]:
        try:
            with self._http.stream("POST", "/v1/answer", **_json(body)) as response:
                self._refuse(response)
                for name, data in _events(response):
                    if time.monotonic() > until + _SLACK_SECONDS:
                        raise DeadlineExceeded(f"{self.shown}: no answer within {self.deadline_seconds:g} s")
                    if name == "token":
                        yield AnswerPiece(str(data["text"]))
                    elif name == "answer":
                        done = AnswerDone.model_validate(data)
                        told = (done.usage.visual_tokens, done.usage.prompt_tokens, done.timings)
                        yield AnswerPiece("", Answer(done.text, done.option, tuple(done.probabilities), *told))
                        return
                    elif name == "error":
                        raise _typed(data, 500, self.shown)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except (ValidationError, ValueError, KeyError, TypeError):
            raise self._foreign() from None
        raise ServiceUnavailable(f"{self.shown}: the connection closed before the answer was whole; ask again")

    # ---- plumbing ------------------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[M]) -> M:
        return self._whole("GET", path, kind, {})

    def post(self, path: str, body: BaseModel, kind: type[M]) -> M:
        """One JSON request and its reply. Raises as `answer`."""
        return self._whole("POST", path, kind, _json(body))

    def _whole(self, method: str, path: str, kind: type[M], content: dict[str, Any]) -> M:
        until = time.monotonic() + self.deadline_seconds
        while True:
            try:
                with self._http.stream(method, path, **content) as response:
                    self._refuse(response)
                    return kind.model_validate_json(_bounded(response))
            except ServiceBusy as busy:
                if time.monotonic() + busy.retry_after >= until:
                    raise
                time.sleep(busy.retry_after)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            except ValidationError:
                raise self._foreign() from None

    def _refuse(self, response: httpx.Response) -> None:
        """Raise what the service said, unless it said 200."""
        if response.status_code == 200:
            return
        try:
            data = json.loads(_bounded(response))
        except ValueError:
            raise self._foreign() from None
        error = _typed(data, response.status_code, self.shown)
        if isinstance(error, ServiceBusy):
            after = response.headers.get("retry-after", "1")
            error.retry_after = min(60, max(1, int(after))) if after.isdigit() else 1
        raise error

    def _unreachable(self, error: httpx.HTTPError) -> SightlineError:
        if isinstance(error, httpx.ReadTimeout):
            return DeadlineExceeded(f"{self.shown}: no answer within {self.deadline_seconds:g} s")
        reason = mask_url((str(error).splitlines() or [""])[0]) or type(error).__name__
        return ServiceUnavailable(f"{self.shown}: the model service cannot be reached ({reason}); is it running?")

    def _foreign(self) -> SightlineError:
        return ServiceUnavailable(f"{self.shown}: the reply is not that of a model service of this version")


def _body(kind: type[M], **fields: Any) -> M:
    """A request's body. Raises UsageError: what the service would refuse."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise UsageError(validation_message(error)) from None


def _json(body: BaseModel) -> dict[str, Any]:
    return {"content": body.model_dump_json(exclude_none=True), "headers": {"Content-Type": "application/json"}}


def references(window: Window, keyframe: NDArray[np.bool_]) -> list[StreamFrames]:
    """The window's frames by name, stream by stream in the window's order."""
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
    for part in response.iter_bytes(_PIECE_BYTES):
        held += part
        if len(held) > _MOST_REPLY_BYTES:
            raise ValueError("the reply is too large")
    return bytes(held)


def _events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each server-sent event. Raises ValueError: a reply that is too large or no JSON."""
    held, total = b"", 0
    for part in response.iter_bytes():
        total += len(part)
        if total > _MOST_REPLY_BYTES:
            raise ValueError("the reply is too large")
        *whole, held = (held + part).split(b"\n\n")
        for event in whole:
            fields = dict(line.split(": ", 1) for line in event.decode().split("\n") if ": " in line)
            if "data" in fields:
                yield fields.get("event", "message"), json.loads(fields["data"])


def _kinds(kind: type[SightlineError]) -> Iterator[type[SightlineError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _typed(data: Any, status: int, shown: str) -> SightlineError:
    """The error that a reply describes, as the class it has in `index.errors`."""
    problem = data.get("error") if isinstance(data, dict) else None
    if not isinstance(problem, dict) or not isinstance(problem.get("message"), str):
        return ServiceUnavailable(f"{shown}: status {status}, not from a model service of this version")
    message = mask_url(problem["message"])
    kind = {code_of(kind): kind for kind in _kinds(SightlineError)}.get(str(problem.get("code")))
    if kind is ServiceDenied:
        message += "; set SIGHTLINE_SERVICE_TOKEN or SIGHTLINE_SERVICE_TOKEN_FILE"
    if kind is not None:
        return kind(message)
    return UsageError(message) if 400 <= status < 500 else ServiceError(f"{shown}: {message}")
