"""Hostile HTTP requests to the model service, over real sockets: no reply is a failure of the service, and it lives on.

Requests are valid ones with mutated fields, mutated bytes, hostile heads and chunks, or only a part of one; some
connections stay open half-way. The models behind the service are real, with a few thousand random weights. Status 500, an
`internal_error` in a stream, an exception in the server's log, or a health check that fails breaks the promise; 503, 504
and 507 are the documented replies of a service that is busy, late or out of memory.
"""

from __future__ import annotations

import logging
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from pydantic import SecretStr

from model.answerer import load_answerer
from model.encoders.encoder import load_encoders
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from pipeline.service.limits import ServiceLimits
from tests.fuzz.http_requests import request
from tests.support.model_service import TOKEN, Footage, served
from tests.support.tiny_models import make_checkpoints, make_profile

__all__ = ["HttpResult", "fuzz_http"]

_LIMITS = ServiceLimits(
    waiting=4,
    deadline_seconds=20.0,
    max_body_bytes=2**17,
    head_seconds=0.3,
    body_seconds=0.3,
    connections=64,
    stop_seconds=5.0,
)
_HALF_OPEN = 40
"""Most connections that are left open half-way at once."""

_MAY_FAIL = frozenset({503, 504, 507})


# ---- the driver --------------------------------------------------------------------------------------------------------


class _Exceptions(logging.Handler):
    """Keeps what servers log about exceptions."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message and the exception."""
        self.seen.append(f"{record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage())


@dataclass(slots=True)
class HttpResult:
    """What became of all requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How many of each kind got which status, or `closed` without a reply, or `no reply` to a part of a request."""
    health_checks: int = 0
    """Health checks, all of which must be answered."""
    slowest_health: float = 0.0
    """Seconds of the slowest one."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of each case that broke a promise."""
    seconds: float = 0.0
    """Seconds that all took."""


@contextmanager
def _service(folder: Path) -> Iterator[tuple[str, int]]:
    profile = make_profile(make_checkpoints(folder))
    answerer = load_answerer(profile, load_encoders(profile, "cpu"), "cpu")
    service = ModelService(ServiceEngine(answerer, Footage()), token=SecretStr(TOKEN), limits=_LIMITS)
    with served(service) as url:
        yield url, urlsplit(url).port or 0


def fuzz_http(folder: Path, *, seed: int, cases: int, first: int = 0) -> HttpResult:
    """Send `cases` requests; see `HttpResult` for what is counted. Each depends on the seed and its number alone."""
    result, began, log = HttpResult(), time.monotonic(), _Exceptions()
    logging.getLogger("uvicorn.error").addHandler(log)
    try:
        with ExitStack() as stack:
            url, port = stack.enter_context(_service(folder))
            half: list[socket.socket] = []
            for number in range(first, first + cases):
                rng = random.Random(f"{seed}/{number}")
                kind, raw = request(rng)
                problem, outcome = _case(rng, port, kind, raw, half)
                result.outcomes[f"{kind}: {outcome}"] += 1
                if log.seen:
                    problem = f"the server logged {log.seen.pop()[:300]}"
                    log.seen.clear()
                if problem is None and number % 10 == 0:
                    problem = _healthy(url, result)
                if problem:
                    result.failures.append((number, f"{kind} {raw[:300]!r}: {problem}"))
                while len(half) > _HALF_OPEN:
                    half.pop(0).close()
            for each in half:
                each.close()
            if problem := _healthy(url, result):
                result.failures.append((first + cases, problem))
    finally:
        logging.getLogger("uvicorn.error").removeHandler(log)
    result.seconds = time.monotonic() - began
    return result


def _healthy(url: str, result: HttpResult) -> str | None:
    """What is wrong with the health check, None if it is answered at once."""
    began = time.monotonic()
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/healthz", timeout=5) as reply:
            status = reply.status
    except OSError as error:
        return f"/healthz: {error}"
    result.health_checks += 1
    result.slowest_health = max(result.slowest_health, time.monotonic() - began)
    return None if status == 200 else f"/healthz: {status}"


def _case(rng: random.Random, port: int, kind: str, raw: bytes, half: list[socket.socket]) -> tuple[str | None, str]:
    """Send one request. What is wrong with the reply, and how it ended."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    try:
        connection.sendall(raw)
        if kind == "half":
            match rng.randrange(4):
                case 0:
                    half.append(connection.dup())
                    return None, "left open"
                case 1:  # a reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return None, "reset"
                case 2:
                    connection.shutdown(socket.SHUT_WR)
        reply = HTTPResponse(connection, method="HEAD" if raw.startswith(b"HEAD") else "POST")
        reply.begin()
        text = b"" if reply.status in (100, 101) else reply.read(2**20)
    except TimeoutError:
        return "no reply within 30 s", "no reply"
    except (HTTPException, OSError):  # closed without a reply, as HTTP/1.1 allows for what is no request
        return ("closed without a reply to a valid head" if kind == "fields" else None), "closed"
    finally:
        with suppress(OSError):
            connection.close()
    problem = None
    if reply.status >= 500 and reply.status not in _MAY_FAIL:
        problem = f"status {reply.status}: {text[:200]!r}"
    elif b"internal_error" in text:
        problem = f"internal error in a stream: {text[-200:]!r}"
    return problem, str(reply.status)
