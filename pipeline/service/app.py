"""The model service: routes over one engine and one admission queue.

    POST /v1/answer             an answer from given frames, as server-sent events or JSON
    POST /v1/budget             largest number of frames of a question
    POST /v1/embed/text         vectors of texts
    POST /v1/chat/completions   OpenAI's format; `sightline: {streams, start, end}` names the footage, all if absent
    GET  /v1/models  /v1/models/{model}
    GET  /v1/profile  /metrics  /docs  /openapi.json  /healthz  /readyz

Does not know the process that it runs in, nor the location of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic, time
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from index.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EmptyWindow,
    OutOfMemory,
    ServiceBusy,
    ServiceUnavailable,
    SightlineError,
    UnknownFrame,
    UnknownStream,
    UsageError,
)
from pipeline.http.reference_page import reference_page
from pipeline.service.admission import Admission, QueuedRequest, RequestCancelled
from pipeline.service.answers.finished import FinishedAnswer, frame_references
from pipeline.service.answers.format import AnswerFormat, ReplyFormat
from pipeline.service.answers.reply import reply_with
from pipeline.service.chat.errors import chat_problem, invalid_parameter, is_chat_path, unknown_model
from pipeline.service.chat.format import ChatFormat
from pipeline.service.chat.models import ModelList, ServedModel
from pipeline.service.chat.replies import COMPLETION
from pipeline.service.chat.schemas import ChatBody
from pipeline.service.engine import ServiceEngine
from pipeline.service.guard import RequestGuard
from pipeline.service.limits import ServiceLimits
from pipeline.service.metrics import ServiceMetrics
from pipeline.service.request_stream import RequestStream, unless_disconnected
from pipeline.service.schemas import (
    AnswerBody,
    Budget,
    BudgetBody,
    EmbedBody,
    Embedded,
    Problem,
    ServedProfile,
    code_of,
    problem_of,
)

__all__ = ["ModelService"]

_log = structlog.get_logger("sightline.service")
_STATUS: dict[type[SightlineError], int] = {
    UsageError: 422,
    BudgetExceeded: 422,
    UnknownStream: 404,
    UnknownFrame: 404,
    EmptyWindow: 404,
    ServiceBusy: 429,
    ServiceUnavailable: 503,
    DeadlineExceeded: 504,
    OutOfMemory: 507,
}


class ModelService:
    """The routes over one engine and one queue. `app` is the complete ASGI application.

    Args:
        engine: the model and the store.
        token: bearer token that clients must send; without it only loopback names are answered.
        limits: limits of requests.
    """

    def __init__(
        self, engine: ServiceEngine, *, token: SecretStr | None = None, limits: ServiceLimits | None = None
    ) -> None:
        self.engine, self.limits = engine, limits or ServiceLimits()
        self.admission = Admission(waiting=self.limits.waiting, translate=engine.translate_error)
        self.metrics = ServiceMetrics(
            depth=lambda: self.admission.depth, running=lambda: self.admission.running, capacity=self.limits.waiting
        )
        self.created = int(time())
        self.routes = self._routes()
        self.app = RequestGuard(
            self.routes,
            token=token,
            max_body_bytes=self.limits.max_body_bytes,
            max_held_bytes=max(self.limits.max_held_bytes, self.limits.max_body_bytes),
            body_seconds=self.limits.body_seconds,
        )

    @property
    def ready(self) -> bool:
        """Whether the service accepts requests: it is not stopping and its GPU has not failed."""
        return self.admission.accepting and not self.engine.broken

    def drain(self) -> None:
        """Refuse new requests; admitted ones continue. A signal handler may call it."""
        self.admission.drain()

    def stop(self) -> bool:
        """Wait up to `limits.stop_seconds` for the admitted requests, cancel the rest; returns whether all finished."""
        return self.admission.stop(self.limits.stop_seconds)

    def close(self) -> None:
        """Cancel what still runs, after the server has stopped."""
        self.admission.stop(0.0)

    # ---- routes ------------------------------------------------------------------------------------------------

    def _routes(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
            """Stop the admission queue when the server shuts down."""
            yield
            await asyncio.to_thread(self.admission.stop, 0.0)

        # FastAPI's own pages would load scripts from other hosts.
        app = FastAPI(title="Sightline model service", docs_url=None, redoc_url=None, lifespan=lifespan)
        app.add_exception_handler(SightlineError, self._sightline_error)
        app.add_exception_handler(RequestCancelled, self._disconnected)
        app.add_exception_handler(RequestValidationError, self._invalid)
        app.add_exception_handler(HTTPException, self._http_error)
        app.get("/healthz")(self.healthz)
        app.get("/readyz")(self.readyz)
        app.get("/metrics")(self.metrics_text)
        app.get("/docs", include_in_schema=False)(self.docs)
        app.get("/v1/profile", response_model_exclude_unset=True)(self.profile)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{model:path}")(self.model)
        app.post("/v1/budget")(self.budget)
        app.post("/v1/answer", response_model=None)(self.answer)
        app.post("/v1/embed/text")(self.embed_text)
        app.post("/v1/chat/completions", response_model=None, responses=COMPLETION)(self.chat)
        return app

    async def healthz(self) -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    async def readyz(self) -> JSONResponse:
        """Whether the service accepts requests; status 503 if it does not."""
        state = "broken" if self.engine.broken else "ready" if self.ready else "stopping"
        return JSONResponse({"status": state}, 200 if self.ready else 503)

    async def metrics_text(self) -> Response:
        """Metrics in the Prometheus text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def docs(self) -> Response:
        """The routes and the fields of their requests, as a page without scripts."""
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(reference_page(self.routes.openapi()), media_type="text/html; charset=utf-8", headers=headers)

    async def profile(self) -> ServedProfile:
        """The model profile of the service."""
        return self.engine.profile

    async def models(self) -> ModelList:
        """The list of models in OpenAI's format; it has one entry, the profile."""
        return ModelList(data=[self._model()])

    async def model(self, model: str) -> JSONResponse:
        """The profile in OpenAI's format; status 404 for any other name."""
        entry = self._model()
        return JSONResponse(entry.model_dump()) if model == entry.id else _problem(404, unknown_model(entry.id))

    def _model(self) -> ServedModel:
        return ServedModel(id=self.engine.answerer.profile.name, created=self.created)

    async def budget(self, body: BudgetBody) -> Budget:
        """The largest number of frames of a question, and its unknown words."""
        return await asyncio.to_thread(self.engine.budget, body.question, body.options, body.keyframes)

    async def answer(self, request: Request, body: AnswerBody) -> Response:
        """Answer a question from the frames that the request refers to."""
        rows = frame_references(body.frames, body.footage_seconds)
        try:
            await asyncio.to_thread(self.engine.check, rows, body.question, body.options)
        except BudgetExceeded as error:
            return self._refused(
                error,
                frames=len(rows),
                keyframes=rows.keyframes,
                max_frames=self.engine.answerer.profile.max_frames,
                max_tokens=self.engine.answerer.language.max_context,
            )

        def work(job: QueuedRequest) -> Iterator[str | FinishedAnswer]:
            """Answer the question, as a job."""
            return self.engine.answer(job, body.question, body.options, rows, body.max_new_tokens, body.sampling)

        return await self._answered(request, "answer", work, body.deadline_seconds, AnswerFormat(), stream=body.stream)

    async def embed_text(self, request: Request, body: EmbedBody) -> Embedded:
        """Encode texts as vectors."""
        submitted = self._submit("embed", lambda _: self.engine.embed(body.texts, body.encoder), body.deadline_seconds)
        pieces = self._pieces("embed", submitted)

        async def collect() -> list[Any]:
            """All items of the job."""
            return [piece async for piece in pieces]

        (vectors,) = await unless_disconnected(request, collect())
        return Embedded(
            encoder=getattr(self.engine.answerer.encoders.pair, body.encoder).name,
            vectors=vectors.tolist(),
            timings={"queue": submitted.job.waited, "total": monotonic() - submitted.began},
        )

    async def chat(self, request: Request, body: ChatBody) -> Response:
        """Answer a question about footage that the service selects, in OpenAI's format."""
        profile, scope = self.engine.answerer.profile, body.footage
        if body.model != profile.name:
            return _problem(404, unknown_model(profile.name))
        form = ChatFormat(
            profile.name,
            limit=min(body.limit or profile.language_model.max_new_tokens, profile.language_model.max_new_tokens),
            usage=body.wants_usage,
            notices=[*([self.engine.answerer.notice] if self.engine.answerer.notice else []), *body.notices],
        )
        work = partial(
            self.engine.answer_about,
            question=body.question,
            options=scope.options,
            max_new_tokens=body.limit,
            where=scope.model_dump(exclude={"options"}),
            sampling=body.sampling,
        )
        return await self._answered(request, "chat", work, body.deadline_seconds, form, stream=bool(body.stream))

    # ---- one request -------------------------------------------------------------------------------------------

    def _submit(
        self, route: str, work: Callable[[QueuedRequest], Iterator[Any]], seconds: float | None
    ) -> RequestStream:
        """Submit the job of a request. Raises ServiceBusy, ServiceUnavailable."""
        try:
            if self.engine.broken:
                raise ServiceUnavailable("the GPU of the service has failed; restart the service")
            return RequestStream(
                self.admission,
                work,
                seconds=min(seconds or self.limits.deadline_seconds, self.limits.deadline_seconds),
            )
        except SightlineError as error:
            self.metrics.requests.labels(route, code_of(type(error))).inc()
            raise

    async def _pieces(self, route: str, submitted: RequestStream) -> AsyncGenerator[Any]:
        """The items of the job, with metrics. The job is cancelled when the iteration ends, in whatever way."""
        outcome, first = "cancelled", True
        try:
            async for item in submitted:
                if first and route != "embed":
                    self.metrics.first_token_seconds.observe(monotonic() - submitted.began)
                    self.metrics.queue_seconds.observe(submitted.job.waited)
                first = False
                if isinstance(item, FinishedAnswer):
                    self._count(item, submitted)
                yield item
            outcome = "ok"
        except SightlineError as error:
            outcome = code_of(type(error))
            raise
        finally:
            submitted.cancel()
            self.metrics.requests.labels(route, outcome).inc()

    def _count(self, done: FinishedAnswer, submitted: RequestStream) -> None:
        metrics, usage, decode = self.metrics, done.usage, done.answer.timings.get("decode", 0.0)
        metrics.answer_seconds.observe(monotonic() - submitted.began)
        metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels("completion").inc(usage.completion_tokens)
        metrics.patch_bytes.inc(usage.patch_bytes)
        if done.answer.option is None and usage.completion_tokens and decode > 0:
            metrics.tokens_a_second.observe(usage.completion_tokens / decode)

    async def _answered(
        self,
        request: Request,
        route: str,
        work: Callable[[QueuedRequest], Iterator[Any]],
        seconds: float | None,
        form: ReplyFormat,
        *,
        stream: bool,
    ) -> Response:
        """Run a job and reply in the format `form`. An error before the first item determines the status of the
        reply."""
        submitted = self._submit(route, work, seconds)
        return await reply_with(
            request,
            self._pieces(route, submitted),
            form,
            stream=stream,
            cancel=submitted.cancel,
            seconds_left=lambda: submitted.seconds_left,
        )

    # ---- errors ------------------------------------------------------------------------------------------------

    def _refused(self, error: SightlineError, path: str = "", **numbers: int | float | None) -> JSONResponse:
        status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
        problem = problem_of(error, **numbers)
        if is_chat_path(path):
            own, problem = chat_problem(error, **numbers)
            status = own or status
        response = _problem(status, problem)
        if isinstance(error, ServiceBusy):
            response.headers["Retry-After"] = str(error.retry_after)
        elif status == 503:
            response.headers["Retry-After"] = str(max(1, round(self.limits.stop_seconds)))
        if status >= 500:
            _log.warning("refused", code=code_of(type(error)), status=status)
        return response

    async def _sightline_error(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SightlineError)
        return self._refused(error, request.url.path)

    async def _disconnected(self, _: Request, error: Exception) -> Response:
        return Response(status_code=499)  # not received by the client, which has closed the connection

    async def _invalid(self, request: Request, error: Exception) -> JSONResponse:
        """The first invalid fields and why; never their values, which may be secret."""
        assert isinstance(error, RequestValidationError)
        if is_chat_path(request.url.path):
            return _problem(400, invalid_parameter(error.errors()))
        found = error.errors()[:5]
        message = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in found)
        problem = Problem(type="invalid_request_error", message=message[:1_000], code="invalid_request")
        return _problem(422, problem)

    async def _http_error(self, _: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        problem = Problem(type="invalid_request_error", message=str(error.detail), code=f"http_{error.status_code}")
        response = _problem(error.status_code, problem)
        response.headers.update(error.headers or {})
        return response


def _problem(status: int, problem: Problem) -> JSONResponse:
    return JSONResponse({"error": problem.model_dump()}, status)
