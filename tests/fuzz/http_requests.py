"""Hostile requests: valid ones with mutated fields or bytes, hostile heads and chunks, or only a part of one."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

from tests.support.model_service import TOKEN, body, captured

__all__ = ["request"]

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
