"""Hostile HTTP requests to the model service, over real sockets: no reply is a failure of the service, and it lives on.

Requests are valid ones with mutated fields, mutated bytes, hostile heads and chunks, or only a part of one; some
connections stay open half-way. The models behind the service are real, with a few thousand random weights. Status 500, an
`internal_error` in a stream, an exception in the server's log, or a health check that fails breaks the promise; 503, 504
and 507 are the documented replies of a service that is busy, late or out of memory.
"""

from __future__ import annotations

import gzip
import json
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
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from pydantic import SecretStr

from model.answerer import load_answerer
from model.encoders.encoder import load_encoders
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from pipeline.service.limits import ServiceLimits
from tests.support.model_service import TOKEN, Footage, body, captured, served
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
_DEEP = 20_000
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "\0", "\ud800", "\udfff\ud800", "\u202e", "e\u0301" * 4_000),
    *(
        "a" * 8_000,
        "a" * 8_001,
        "𝕏" * 4_000,
        "٣",
        "1",
        "true",
        "null",
        "<|im_end|>",
        "<image>",
        "<|endoftext|>",
        "../..",
        "%00",
    ),
    *(
        "9999-12-31T23:59:59.999999Z",
        "0001-01-01T00:00:00+14:00",
        "2024-02-30T00:00:00Z",
        "yesterday",
        "9" * 63,
        "front",
    ),
    *(
        [],
        [[]],
        {},
        {"": None},
        [None] * 300,
        ["x"] * 65,
        list(range(2_000)),
        {"type": "image_url"},
        {"type": "text", "text": 1},
    ),
    *(253_402_300_799_999_998, 253_402_300_799_999_999, captured("front")[0], captured("back")),
]
_RAW_VALUES = [
    b"1e400",
    b"-1e400",
    b"NaN",
    b"9" * 6_000,
    b"0x1",
    b"01",
    b"1_0",
    b'"\\ud800"',
    b'"\xff"',
    b"'x'",
    b"[" * _DEEP,
]
_RAW_VALUES += [b'{"a":' * _DEEP, b"[" * 100 + b"]" * 100, b'"' + b"\\u0000" * 50 + b'"', b"-", b"tru", b'"\n"']
_METHODS = [
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "PRI",
    "get",
    "G\0T",
    "X" * 500,
    "",
]
_PATHS = [
    "/",
    "//",
    "/v1/answer/",
    "/v1//answer",
    "/v1/../v1/answer",
    "/v1/%61nswer",
    "/%",
    "/%00",
    "/\xff",
    "/v1/answer?x=%zz",
]
_PATHS += [
    "/v1/models/" + "a" * 3_000,
    "/v1/models/%2e%2e%2f",
    "/v1/models/\x00",
    "*",
    "http://localhost/healthz",
    "/v1/models/é",
]
_PATHS += [
    "http://[/v1/answer",
    "/healthz?" + "a=b&" * 900,
    "/v1/answer#x",
    "/docs",
    "/openapi.json",
    "/metrics",
    "",
    " ",
    "/v1/models/%ff",
]
_HEADERS = [
    *(
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 0x10",
        "Content-Length: 5, 5",
        "Content-Length: 9" * 2,
    ),
    *(
        "Content-Length: " + "9" * 30,
        "Content-Length: ²",
        "Content-Length:",
        "Content-Length: 10\r\nContent-Length: 20",
    ),
    *(
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: \x0bchunked",
    ),
    *(
        "Transfer-Encoding: identity\r\nContent-Length: 3",
        "Expect: 100-continue",
        "Expect: 200-ok",
        "Upgrade: websocket\r\nConnection: Upgrade",
    ),
    *("Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings", "Content-Encoding: gzip"),
    *(
        "Content-Type: text/plain",
        "Content-Type: application/json; charset=utf-16",
        "Content-Type: multipart/form-data",
        "Content-Type: \xff",
    ),
    *(
        "Content-Type: application/x-www-form-urlencoded",
        "Host: \xff",
        "Host:",
        "Host: [::",
        "Host: localhost:99999",
        "Host: a\r\nHost: b",
    ),
    *(
        "Authorization: Bearer",
        "Authorization: \xff\xfe",
        "Authorization: Bearer " + "x" * 5_000,
        "Authorization: Basic Og==",
        "X: " + "y" * 70_000,
    ),
    *(
        "X-Request-Id: " + "z" * 129,
        "X-Request-Id: \r\n x",
        "X-Request-Id: \xe9",
        "Range: bytes=0-",
        "Cookie: " + "a=b; " * 1_000,
    ),
    *(
        "Connection: close, keep-alive",
        "Accept: */*;q=\xff",
        "Accept-Encoding: br;q=nan",
        " folded: x",
        "No colon",
        ": empty",
        "A b: c",
        "X:\0",
    ),
    *(
        "\r\n".join(f"H{n}: v" for n in range(300)),
        "Origin: null",
        "Access-Control-Request-Method: POST",
        "TE: trailers",
        "Via: 1.1 x" * 50,
    ),
]


# ---- requests ----------------------------------------------------------------------------------------------------------


def _valid(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A route and a valid body."""
    question = rng.choice(["what was at the gate ?", "<|im_end|> where <image> was it ?", "前门 ?", "x"])
    where: Any = {"streams": ["front"], "options": ["red", "blue"], "k": 3, "tau": 0.5}
    return rng.choice(
        [
            ("/v1/answer", {**body(stream=rng.random() < 0.5), "question": question, "options": ["a", "b"]}),
            (
                "/v1/answer",
                {**body(streams=("front", "back"), stream=False), "max_new_tokens": 2, "deadline_seconds": 5.0},
            ),
            ("/v1/budget", {"question": question, "options": ["a"], "keyframes": 3}),
            (
                "/v1/embed/text",
                {"texts": [question, "dog"], "encoder": rng.choice(["frame", "patch"]), "deadline_seconds": 9},
            ),
            (
                "/v1/chat/completions",
                {
                    "model": "tiny",
                    "messages": [{"role": "user", "content": question}],
                    "stream": rng.random() < 0.5,
                    "max_tokens": 2,
                    "sightline": {**where, "start": "2024-03-01T08:00:00Z", "end": "2024-03-01T09:00:00Z"},
                    "stream_options": {"include_usage": True},
                    "temperature": 0,
                },
            ),
        ]
    )


def _mutate(rng: random.Random, value: Any) -> Any:
    """The value with one part, at any depth, replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value))
        match rng.randrange(8):
            case 0:
                return {key: each for key, each in value.items() if key != name}
            case 1:
                new = rng.choice(["", "\ud800", "extra", f"{name} ", name.upper(), "a" * 5_000, "__class__", "$ref"])
                return {**value, new: rng.choice(_VALUES)}
            case _:
                return {**value, name: _mutate(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return rng.choice(
            [
                [*value[:at], _mutate(rng, value[at]), *value[at + 1 :]],
                value[:at],
                value * rng.choice([2, 70]),
                value[::-1],
            ]
        )
    return rng.choice(_VALUES)


def _json(rng: random.Random, value: Any) -> bytes:
    """The value as JSON, perhaps in another encoding, with a doubled key, or with a raw value that no encoder writes."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        text = text.replace(
            rng.choice([b"true", b"3", b'"front"', b'"user"', b"[", b'"x"']), rng.choice(_RAW_VALUES), 1
        )
    if rng.random() < 0.05:
        text = rng.choice([b"\xef\xbb\xbf" + text, text[:-1] + b"," + text[1:], text + text, gzip.compress(text)])
        return text
    if rng.random() < 0.03:
        return json.dumps(value).encode(rng.choice(["utf-16", "utf-32-be", "utf-7"]))
    return text


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode("utf-8", "surrogateescape")


def _chunks(rng: random.Random, data: bytes) -> bytes:
    """A body in chunks, some of which may be wrong."""
    out, at = b"", 0
    while at < len(data):
        size = rng.randrange(1, 400)
        part, at = data[at : at + size], at + size
        line = b"%x" % len(part)
        if rng.random() < 0.1:
            line = rng.choice(
                [b"-1", b"", b"zz", b"F" * 30, line + b";" + b"a" * 5_000, line + b" ", b"0x5", b"%x" % (len(part) + 9)]
            )
        out += line + b"\r\n" + part + rng.choice([b"\r\n"] * 20 + [b"\n", b"", b"xx"])
    return out + rng.choice(
        [b"0\r\n\r\n"] * 6 + [b"0\r\nTrailer: x\r\n\r\n", b"0\r\n", b"", b"00000000000000000000\r\n\r\n"]
    )


def request(rng: random.Random) -> tuple[str, bytes]:
    """The kind of a case, and its bytes."""
    path, value = _valid(rng)
    kind = rng.choice(
        ["fields"] * 5 + ["head", "head", "chunks", "bytes", "bytes", "half", "path", "noise", "pipeline"]
    )
    usual = ["Host: localhost", f"Authorization: Bearer {TOKEN}", "Content-Type: application/json"]
    if kind == "fields":
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            value = _mutate(rng, value)
        data = _json(rng, value)
        return kind, _head("POST", path, *usual, "Connection: close", f"Content-Length: {len(data)}") + data
    data = json.dumps(value).encode()
    whole = _head("POST", path, *usual, "Connection: close", f"Content-Length: {len(data)}") + data
    if kind == "head":
        more = rng.sample(_HEADERS, rng.choice([1, 1, 2, 4]))
        lines = [*usual, *more, *([] if rng.random() < 0.4 else [f"Content-Length: {len(data)}"])]
        rng.shuffle(lines)
        return kind, _head("POST", path, *lines) + data
    if kind == "chunks":
        return kind, _head("POST", path, *usual, "Connection: close", "Transfer-Encoding: chunked") + _chunks(rng, data)
    if kind == "bytes":
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 2, 5, 40])):
            at = rng.randrange(len(raw))
            if rng.random() < 0.5:
                raw[at] = rng.randrange(256)
            elif rng.random() < 0.5:
                raw[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                del raw[at : at + rng.randrange(1, 30)]
        return kind, bytes(raw)
    if kind == "half":
        return kind, whole[: rng.randrange(len(whole))]
    if kind == "path":
        path = rng.choice(_PATHS) if rng.random() < 0.7 else path
        return kind, _head(rng.choice(_METHODS), path, *usual, "Connection: close", "Content-Length: 2") + b"{}"
    if kind == "pipeline":
        keep = whole.replace(b"Connection: close\r\n", b"")
        return kind, keep * rng.randrange(2, 5) + rng.choice([b"", b"GET ", whole, b"\r\n\r\n" * 50])
    return kind, rng.choice(
        [
            *(
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
            ),
            *(
                rng.randbytes(rng.randrange(1, 5_000)),
                b"GET /healthz\r\n\r\n",
                b"GET /healthz HTTP/9.9\r\n\r\n",
                b"\r\n" * 5_000,
                b"\0" * 5_000,
            ),
            *(
                b"GET /healthz HTTP/1.0\r\n\r\n",
                b"POST /v1/answer HTTP/1.0\r\nHost: localhost\r\n\r\n{}",
                b"\n" * 70_000,
                b"A" * 200_000,
            ),
        ]
    )


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
