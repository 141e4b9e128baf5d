"""The model service over a real socket: failures of one request, tokens, bodies, addresses."""

from __future__ import annotations

import asyncio
import json
import socket
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr

from index.errors import UsageError
from model.answerer import Answerer, AnswerRequest
from pipeline.http.hosts import is_loopback
from pipeline.service.app import ModelService
from pipeline.service.engine import ServiceEngine
from pipeline.service.guard import RequestGuard
from pipeline.service.server import check_address
from pipeline.service.token import read_token
from tests.support.model_service import (
    LENGTHS,
    QUESTION,
    TOKEN,
    WAIT,
    Footage,
    Holds,
    Memory,
    Serve,
    body,
    captured,
    events,
    metric,
    served,
)

# ---- failures of one request -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError("cannot allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("first", [[], ["begun "]])
def test_out_of_memory_fails_one_request(serve: Serve, error: Exception, first: list[str]) -> None:
    alive: list[weakref.ref[Memory]] = []

    def script(request: AnswerRequest) -> Iterator[str]:
        if alive:
            yield f"free {alive[0]() is None}"
            return
        held = Memory()
        alive.append(weakref.ref(held))
        yield from first
        raise error

    opened = serve(script)
    with opened.stream("POST", "/v1/answer", json=body()) as response:
        if first:  # the status is out already, so the error is an event
            (_, token), (name, told) = events(response.iter_lines())
            assert (response.status_code, token["text"], name) == (200, "begun ", "error")
        else:
            assert response.status_code == 507
            told = json.loads(response.read())
    assert told["error"]["code"] == "out_of_memory"
    assert "GiB" not in told["error"]["message"]
    assert opened.post("/v1/answer", json=body(stream=False)).json()["text"] == "free True"
    assert opened.get("/readyz").status_code == 200


def test_an_unforeseen_error_tells_nothing_and_harms_nobody_else(serve: Serve) -> None:
    calls = 0

    def script(request: AnswerRequest) -> Iterator[str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("cannot open s3://key:hunter2@bucket/patches")
        yield "fine"

    opened = serve(script)
    failed = opened.post("/v1/answer", json=body())
    assert failed.status_code == 500
    assert "hunter2" not in failed.text
    assert "log" in failed.json()["error"]["message"]
    assert opened.post("/v1/answer", json=body(stream=False)).json()["text"] == "fine"


def test_a_broken_gpu_is_said_and_nothing_more_is_taken(serve: Serve) -> None:
    if not hasattr(torch, "AcceleratorError"):
        pytest.skip("this torch has no AcceleratorError")

    def script(request: AnswerRequest) -> Iterator[str]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        yield ""

    opened = serve(script)
    assert opened.post("/v1/answer", json=body()).status_code == 500
    assert opened.get("/readyz").json() == {"status": "broken"}
    refused = opened.post("/v1/answer", json=body())
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert opened.get("/healthz").status_code == 200


def test_too_large_for_the_budget_is_refused_with_the_numbers(serve: Serve, footage: Footage) -> None:
    opened = serve()
    long = [{"stream_id": "front", "captured_at": list(range(501)), "keyframes": []}]
    refused = opened.post("/v1/answer", json={"question": QUESTION, "frames": long})
    told = refused.json()["error"]
    assert refused.status_code == 422
    assert (told["code"], told["frames"], told["max_frames"], told["max_tokens"]) == ("budget_exceeded", 501, 500, 400)
    crowd = [{"stream_id": "front", "captured_at": list(range(40)), "keyframes": list(range(40))}]
    refused = opened.post("/v1/answer", json={"question": QUESTION, "frames": crowd})
    assert refused.status_code == 422
    assert refused.json()["error"]["keyframes"] == 40
    assert "has room for 400" in refused.json()["error"]["message"]


def test_a_frame_that_is_not_in_the_store(serve: Serve) -> None:
    frames = [{"stream_id": "front", "captured_at": [5], "keyframes": []}]
    refused = serve().post("/v1/answer", json={"question": QUESTION, "frames": frames})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_frame")


def _frames(**changed: Any) -> dict[str, Any]:
    return {"frames": [{"stream_id": "front", "captured_at": captured("front"), "keyframes": [0], **changed}]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": "  "},
        {"question": "x" * 8001},
        {"options": ["red", "red"]},
        {"options": ["red", " "]},
        {"options": ["o"] * 65},
        {"secret-field": "hunter2"},
        {"deadline_seconds": 0},
        {"deadline_seconds": float(10**9)},
        _frames(captured_at=[2, 1]),
        _frames(captured_at=[1, 1]),
        _frames(captured_at=[2**63]),
        _frames(captured_at=[-1]),
        _frames(captured_at=["hunter2"]),
        _frames(keyframes=[99]),
        _frames(keyframes=[1, 0]),
        _frames(stream_id="x" * 129),
        {"frames": _frames()["frames"] * 2},
    ],
)
def test_what_does_not_validate_is_refused_without_its_value(serve: Serve, wrong: dict[str, Any]) -> None:
    refused = serve().post("/v1/answer", json={**body(), **wrong})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_request")
    assert "hunter2" not in refused.text


# ---- tokens, bodies, stopping ------------------------------------------------------------------------------------


def test_every_route_but_health_wants_the_token(serve: Serve) -> None:
    opened = serve(token=TOKEN)
    assert opened.get("/v1/profile").status_code == 200
    with httpx.Client(base_url=opened.base_url, trust_env=False, timeout=WAIT) as stranger:
        for path in ("/metrics", "/v1/profile", "/v1/models", "/openapi.json", "/no/such/route"):
            refused = stranger.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "service_denied")
            assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/answer", "/v1/embed/text", "/v1/chat/completions", "/v1/budget"):
            assert stranger.post(path, json=body()).status_code == 401
        for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer é"):
            refused = stranger.get("/v1/profile", headers={b"Authorization": wrong.encode("latin-1")})
            assert refused.status_code == 401
            assert TOKEN not in refused.text
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/readyz").status_code == 200


def test_without_a_token_only_loopback_names_are_answered(serve: Serve) -> None:
    opened = serve()
    for host in ("localhost", "localhost:80", "127.0.0.1:1", "[::1]:80"):
        assert opened.get("/v1/profile", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1"):
        assert opened.get("/v1/profile", headers={"Host": host}).status_code == 421


def test_a_body_that_is_too_large_is_refused(serve: Serve) -> None:
    opened = serve(max_body_bytes=2_048)
    big = b'{"question": "' + b"x" * 100_000 + b'"}'
    declared = opened.post("/v1/answer", content=big, headers={"Content-Type": "application/json"})
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "body_too_large")

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(big), 1_000):
            yield big[start : start + 1_000]

    undeclared = opened.post("/v1/answer", content=chunks(), headers={"Content-Type": "application/json"})
    assert undeclared.status_code == 413
    assert "2048" in undeclared.json()["error"]["message"]
    assert opened.post("/v1/answer", json=body(stream=False)).status_code == 200


def test_no_more_of_a_body_is_held_than_may_be() -> None:
    """The application never sees a body that is too large, and the gate stops reading one without an end."""
    read = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application must not be called")

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 2**20
        return {"type": "http.request", "body": b"x" * 2**20, "more_body": True}

    said: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        said.append(message)

    gate = RequestGuard(app, token=None, max_body_bytes=1_000)
    scope = {"type": "http", "path": "/v1/answer", "headers": [(b"host", b"localhost")]}
    asyncio.run(gate(scope, receive, send))
    assert said[0]["status"] == 413
    assert read < 2**24


def test_a_body_that_does_not_arrive_is_not_waited_for(answerer: Answerer, footage: Footage) -> None:
    service = ModelService(ServiceEngine(answerer, footage))
    service.app.bodies.seconds = 0.2
    with served(service) as url:
        port = httpx.URL(url).port
        with socket.create_connection(("127.0.0.1", port or 0), timeout=WAIT) as slow:
            slow.sendall(b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_draining_finishes_what_runs_and_refuses_new(serve: Serve) -> None:
    script = Holds()
    opened = serve(script)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(opened.post, "/v1/answer", json=body(stream=False))
        assert script.began.wait(WAIT)
        opened.service.drain()  # type: ignore[attr-defined]
        refused = opened.post("/v1/answer", json=body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert opened.get("/readyz").status_code == 503
        assert opened.get("/healthz").status_code == 200
        script.go.set()
        assert running.result(WAIT).json()["text"] == "held"


def test_metrics_say_what_happened(serve: Serve) -> None:
    opened = serve()
    opened.post("/v1/answer", json=body(stream=False))
    text = opened.get("/metrics").text
    assert metric(opened, "sightline_patch_read_bytes_total") == LENGTHS["front"] * 16 * 24 * 2
    assert metric(opened, "sightline_time_to_first_token_seconds_count") == 1
    assert metric(opened, "sightline_tokens_per_second_count") == 1
    assert metric(opened, "process_resident_memory_bytes") > 0
    assert metric(opened, "sightline_queue_capacity") == 64
    assert 'sightline_requests_total{outcome="ok",route="answer"} 1.0' in text
    assert 'sightline_tokens_total{kind="prompt"}' in text


# ---- where it listens, and the token -----------------------------------------------------------------------------


def test_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil"))
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", SecretStr(TOKEN))
    with pytest.raises(UsageError, match="a token is required"):
        check_address("0.0.0.0", None)


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    found = read_token(file, SecretStr("another-token-altogether"))
    assert found is not None
    assert found.get_secret_value() == TOKEN
    assert TOKEN not in repr(found)
    assert read_token(None, None) is None
    assert read_token(None, SecretStr(TOKEN)) is not None
    for wrong in ("short", "", f"{TOKEN} and more", f"{TOKEN}\x00", "x" * 5000):
        file.write_text(wrong)
        with pytest.raises(UsageError) as refused:
            read_token(file, None)
        assert wrong.strip() == "" or wrong not in str(refused.value)
    with pytest.raises(UsageError, match="not readable"):
        read_token(tmp_path / "none", None)
