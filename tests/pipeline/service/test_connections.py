"""The model service over a real socket: connections that send nothing, half a request, or too much; request ids; `/docs`."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest
import structlog
from structlog.typing import EventDict

from model.answerer import AnswerRequest
from tests.support.model_service import QUESTION, TOKEN, WAIT, Holds, Serve, body, until

HALF = {
    "nothing": b"",
    "half a head": b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\n",
    "half a body": b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
}


def connect(opened: httpx.Client, sent: bytes = b"") -> socket.socket:
    """A raw connection to a service, on which `sent` was sent."""
    made = socket.create_connection(("127.0.0.1", opened.base_url.port or 0), timeout=WAIT)
    made.sendall(sent)
    return made


def closed(connection: socket.socket) -> bool:
    """Whether the service ends the connection within the socket's timeout."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF)
def test_half_open_connections_keep_nobody_out(serve: Serve, sent: bytes) -> None:
    opened = serve(connections=20, head_seconds=3600)  # none of them ends by itself
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(opened, sent))
        for path in ("/healthz", "/readyz", "/v1/profile") * 3:
            assert httpx.get(opened.base_url.join(path), trust_env=False, timeout=WAIT).status_code == 200
        assert opened.post("/v1/answer", json=body(stream=False)).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nX: "])
def test_a_head_that_does_not_arrive_is_not_waited_for(serve: Serve, sent: bytes) -> None:
    opened = serve(head_seconds=0.3)
    with connect(opened, sent) as first:
        assert closed(first)
    with connect(opened, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as second:
        assert second.recv(4096).startswith(b"HTTP/1.1 200")
        second.sendall(sent or b"G")  # half of a second request on the same connection
        assert closed(second)
    assert opened.get("/healthz").status_code == 200


def test_a_head_that_drips_is_not_waited_for(serve: Serve) -> None:
    opened = serve(head_seconds=0.5)
    began = time.monotonic()
    with connect(opened, b"GET /healthz HTTP/1.1\r\nX-Long: ") as slow, suppress(ConnectionError):
        while time.monotonic() - began < 200:
            slow.sendall(b"x")
            time.sleep(0.05)
    assert time.monotonic() - began < 100


def test_where_every_request_has_arrived_health_is_answered_and_others_get_503(serve: Serve) -> None:
    script = Holds()
    opened = serve(script, connections=3)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(opened.post, "/v1/answer", json=body(stream=False)) for _ in range(3)]
        assert script.began.wait(WAIT)
        until(lambda: opened.service.admission.depth == 2)  # type: ignore[attr-defined]
        with httpx.Client(base_url=opened.base_url, trust_env=False, timeout=WAIT) as fourth:
            assert fourth.get("/healthz").json() == {"status": "ok"}
            refused = fourth.get("/v1/profile")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        script.go.set()
        assert [reply.result(WAIT).status_code for reply in asked] == [200] * 3


def test_all_bodies_together_are_bounded(serve: Serve) -> None:
    opened = serve(max_body_bytes=2_048, max_held_bytes=4_096)
    head = b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n"
    with ExitStack() as stack:
        parts = [stack.enter_context(connect(opened, head + b"x" * 1_500)) for _ in range(3)]
        for part in parts:
            part.settimeout(0.5)
        answered = []
        for part in parts:
            try:
                answered.append(part.recv(4096)[:12])
            except TimeoutError:
                answered.append(b"waits")
        assert sorted(answered) == [b"HTTP/1.1 503", b"waits", b"waits"]
    assert opened.post("/v1/answer", json=body(stream=False)).status_code == 200  # what was held is free again


# ---- request ids and documentation -------------------------------------------------------------------------------


def test_every_reply_has_the_clients_request_id_or_a_new_one(serve: Serve) -> None:
    opened = serve(token=TOKEN)
    for path, status in (("/healthz", 200), ("/v1/profile", 200), ("/no/such", 404)):
        reply = opened.get(path, headers={"X-Request-Id": "mine-1"})
        assert (reply.status_code, reply.headers["x-request-id"]) == (status, "mine-1")
    refused = opened.get("/v1/profile", headers={"Authorization": "wrong", "X-Request-Id": "mine-2"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine-2")
    for wrong in ("", "a b", "x" * 129, "é", "a\tb"):
        given = opened.get("/healthz", headers={b"X-Request-Id": wrong.encode("latin-1")}).headers["x-request-id"]
        assert given.startswith("req-")
    stream = opened.post("/v1/answer", json=body(), headers={"X-Request-Id": "mine-3"})
    assert stream.headers["x-request-id"] == "mine-3"


def test_the_log_of_a_failure_has_the_request_id(serve: Serve) -> None:
    def script(request: AnswerRequest) -> Iterator[str]:
        raise RuntimeError("broken")
        yield ""

    seen: list[EventDict] = []

    def keep(_: object, __: str, event: EventDict) -> EventDict:
        seen.append(dict(event))
        raise structlog.DropEvent

    opened = serve(script)
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep], cache_logger_on_first_use=False)
    try:
        failed = opened.post("/v1/answer", json=body(stream=False), headers={"X-Request-Id": "mine-4"})
    finally:
        structlog.configure(**before)
    assert failed.status_code == 500
    assert [event["request_id"] for event in seen] == ["mine-4"] * len(seen)
    assert any("broken" in str(event.get("details")) for event in seen)


def test_the_page_of_documentation_names_every_route_and_field_and_needs_no_other_host(serve: Serve) -> None:
    opened = serve(token=TOKEN)
    page = httpx.get(opened.base_url.join("/docs"), trust_env=False, timeout=WAIT)  # without the token
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    schema = opened.get("/openapi.json").json()
    for path in schema["paths"]:
        assert f"</b> {path}<" in page.text
    for field in ("frames[].keyframes", "sightline.streams", "messages[].content", "question"):
        assert f"<code>{field}</code>" in page.text
    assert "<script" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert QUESTION not in page.text
