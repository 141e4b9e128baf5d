"""`ask` with a service beside `ask` without one, and what the client makes of a service that misbehaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import SecretStr

from index.errors import (
    BudgetExceeded,
    IdentityMismatch,
    ServiceBusy,
    ServiceDenied,
    ServiceError,
    ServiceUnavailable,
    SightlineError,
    UnknownFrame,
    UnknownStream,
    UsageError,
)
from index.store import Store
from pipeline.questions.asker import Asker
from pipeline.service.answers.finished import FrameReferences
from pipeline.service.app import ModelService
from pipeline.service.client import ServiceClient
from pipeline.service.schemas import ServedProfile
from pipeline.service.store_frames import StoreFrames, make_service
from tests.support.command import FRAMES, Command
from tests.support.model_service import served

QUESTION = "what colour was the zebra at the gate ?"
TOKEN = "a-token-of-twenty-or-so"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def service(filled: str, profile: str) -> ModelService:
    return make_service(filled, profile, "cpu", token=SecretStr(TOKEN))


@pytest.fixture(scope="module")
def url(service: ModelService) -> Iterator[str]:
    with served(service) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[ServiceClient]:
    with ServiceClient(url, SecretStr(TOKEN)) as opened:
        yield opened


@pytest.mark.parametrize("options", [None, ["red", "blue", "green"]])
@pytest.mark.parametrize("where", [{}, {"streams": ["back"]}, {"k": 3, "tau": 1.0, "max_frames": 9, "fill": True}])
def test_the_same_answer_both_ways(
    filled: str, profile: str, client: ServiceClient, options: list[str] | None, where: dict[str, Any]
) -> None:
    here, there = list[str](), list[str]()
    local = Asker(filled, profile, "cpu").ask(QUESTION, options=options, on_text=here.append, **where)
    remote = Asker(filled, service=client).ask(QUESTION, options=options, on_text=there.append, **where)
    assert here == there
    timings = remote.timings_seconds.keys()
    assert timings == local.timings_seconds.keys() | {"queue"}
    same: dict[str, Any] = {"timings_seconds": {}, "probabilities": {}}
    assert remote.model_copy(update=same) == local.model_copy(update=same)
    assert remote.probabilities == pytest.approx(local.probabilities, abs=1e-6)
    assert any("zebra" in notice for notice in remote.notices)


def test_the_command_asks_the_service(
    sightline: Command, filled: str, profile: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = sightline("ask", QUESTION, "--store", filled, "--profile", profile, "--json").data
    denied = sightline("ask", QUESTION, "--store", filled, "--service", url)
    assert denied.code == 1
    assert "SIGHTLINE_SERVICE_TOKEN" in denied.err
    assert denied.err.count("\n") == 1
    monkeypatch.setenv("SIGHTLINE_SERVICE_TOKEN", TOKEN)
    remote = sightline("ask", QUESTION, "--store", filled, "--service", url, "--json").data
    for name in ("answer", "keyframes", "frames", "window_frames", "visual_tokens", "notices"):
        assert remote[name] == local[name]
    assert remote["frames"] == FRAMES
    assert "queue" in remote["timings_seconds"]
    monkeypatch.setenv("SIGHTLINE_SERVICE", url)
    assert sightline("ask", QUESTION, "--store", filled, "--json").data["answer"] == local["answer"]
    other = sightline("ask", QUESTION, "--store", filled, "--profile", "edge")
    assert other.code == 2
    assert "the service runs tiny" in other.err


def test_errors_are_those_of_this_process(filled: str, client: ServiceClient) -> None:
    asker = Asker(filled, service=client)
    with pytest.raises(UnknownStream, match="roof"):
        asker.ask(QUESTION, streams=["roof"])
    with pytest.raises(BudgetExceeded, match="there is room for"):
        client.max_frames(1_000, QUESTION)
    with pytest.raises(UsageError, match="8000 characters"):
        asker.ask("x" * 8_001)
    with pytest.raises(UsageError, match="does not encode frames"):
        client.encoders.frame.encode_frames([])


def test_frames_that_were_forgotten_in_between(store: str, profile: str) -> None:
    local = make_service(store, profile, "cpu", token=None)
    with served(local) as url, ServiceClient(url) as client:
        asker = Asker(store, service=client)
        selection = asker.select(QUESTION)
        Store.open(store).forget("back")
        with pytest.raises(SightlineError, match=r"back.*no such"):
            asker.answer(QUESTION, selection)
        assert asker.ask(QUESTION).frames == len(asker.store.window())


@pytest.mark.parametrize(
    ("at", "status", "code"),
    [
        (0, 404, "unknown_frame"),
        (253_402_300_799_999_998, 404, "unknown_frame"),
        (253_402_300_799_999_999, 422, "invalid_request"),
        (10**400, 422, "invalid_request"),
    ],
    ids=["first", "last", "too late", "400 digits"],
)
def test_extreme_times_of_frames(url: str, at: int, status: int, code: str) -> None:
    body = {"question": QUESTION, "frames": [{"stream_id": "back", "captured_at": [at]}], "stream": False}
    reply = httpx.post(f"{url}/v1/answer", json=body, headers=AUTHORIZED, timeout=60, trust_env=False)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("start", "end", "status"),
    [
        ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", 200),
        ("0001-01-01T00:00:00Z", None, 200),
        (None, "0001-01-01T00:00:00.000001Z", 404),
        ("9999-12-31T23:59:59.999999Z", None, 404),
        ("0001-01-01T00:00:00+00:01", None, 400),
        (None, "9999-12-31T23:59:59-00:01", 400),
    ],
)
def test_extreme_windows(url: str, start: str | None, end: str | None, status: int) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTION}],
        "sightline": {"start": start, "end": end},
    }
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=AUTHORIZED, timeout=60, trust_env=False)
    assert reply.status_code == status, reply.text


def test_vectors_and_patches_of_named_frames_are_the_stores(filled: str, profile: str) -> None:
    frames = StoreFrames(Asker(filled, profile, "cpu"))
    window = Store.open(filled).window()
    keep = np.arange(len(window)) % 3 != 1
    rows = FrameReferences(
        window.stream_ids, window.stream_index[keep], window.captured_at[keep], np.zeros(keep.sum(), np.bool_)
    )
    part = slice(2, 17)
    features = frames.features(rows, part)
    np.testing.assert_array_equal(features, Store.open(filled).frame_features(window)[keep][part])
    assert np.abs(np.linalg.norm(features, axis=1) - 1).max() > 0.1  # not of unit norm
    expected = Store.open(filled).patches(window)[keep][part]
    got = np.zeros_like(expected)
    frames.patches(rows, part, got)
    np.testing.assert_array_equal(got, expected)
    shifted = FrameReferences(rows.stream_ids, rows.stream_index, rows.captured_at + 1, rows.keyframe)
    with pytest.raises(UnknownFrame, match=r"no such frame \(6 in all\)"):
        frames.features(shifted, part)
    with pytest.raises(UnknownFrame, match=r"no such frame \(6 in all\)"):
        frames.patches(shifted, part, got)


def test_a_client_needs_no_torch(filled: str, url: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pipeline.cli.main import main\n"
        f"sys.argv = ['sightline', 'ask', {QUESTION!r}, '--store', {filled!r}, '--service', {url!r}, '--json']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(__file__).parents[3]), "SIGHTLINE_SERVICE_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == FRAMES


# ---- services that misbehave -----------------------------------------------------------------------------------

Handler = Callable[[httpx.Request], httpx.Response]


def against(handler: Handler, profile: ServedProfile, **more: Any) -> ServiceClient:
    """A client of a service whose answers come from `handler`; its profile is a true one."""

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/profile":
            return httpx.Response(200, json=profile.model_dump(exclude_unset=True))
        return handler(request)

    return ServiceClient("http://model.example", transport=httpx.MockTransport(reply), **more)


def ask(client: ServiceClient, filled: str) -> str:
    window = Store.open(filled).window(["front"])
    return "".join(piece.text for piece in client.answer(QUESTION, (), window, window.captured_at == 0))


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (httpx.Response(200, text='event: token\ndata: {"text": "re"}\n\n'), ServiceUnavailable, "before the answer"),
        (httpx.Response(200, text="event: answer\ndata: {}\n\n"), ServiceUnavailable, "not a model service"),
        (httpx.Response(200, text="data: {\n\n"), ServiceUnavailable, "not a model service"),
        (httpx.Response(502, text="<html>"), ServiceUnavailable, "a load balancer answered 502"),
        (httpx.Response(500, json=["odd"]), ServiceUnavailable, "status 500"),
        (httpx.Response(500, json={"error": {"code": "new", "message": "odd"}}), ServiceError, "odd"),
        (httpx.Response(401, json={"error": {"code": "service_denied", "message": "no"}}), ServiceDenied, "TOKEN"),
    ],
)
def test_odd_replies(
    service: ModelService, filled: str, reply: httpx.Response, error: type[Exception], says: str
) -> None:
    with against(lambda _: reply, service.engine.profile) as client, pytest.raises(error, match=says):
        ask(client, filled)


def test_a_busy_service_is_asked_again_until_the_time_is_up(
    service: ModelService, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("pipeline.service.client.time.sleep", waits.append)
    busy = {"error": {"code": "service_busy", "message": "2 wait"}}
    tries = 0

    def handler(_: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        if tries < 3:
            return httpx.Response(429, json=busy, headers={"Retry-After": "7"})
        usage = dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "visual_tokens", "frames", "keyframes", "patch_bytes"), 1
        )
        done: dict[str, Any] = {"text": "red", "option": None, "probabilities": [], "usage": usage, "timings": {}}
        return httpx.Response(
            200, text=f'event: token\ndata: {{"text": "red"}}\n\nevent: answer\ndata: {json.dumps(done)}\n\n'
        )

    with against(handler, service.engine.profile) as client:
        assert ask(client, filled) == "red"
    assert (tries, waits) == (3, [7, 7])
    tries = -100
    with (
        against(handler, service.engine.profile, deadline_seconds=5) as client,
        pytest.raises(ServiceBusy, match="2 wait"),
    ):
        ask(client, filled)
    assert (tries, waits) == (-99, [7, 7])


def test_nobody_there(filled: str) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused http://user:hunter2@model.example")

    with pytest.raises(ServiceUnavailable, match="is it running") as error:
        ServiceClient("http://model.example", transport=httpx.MockTransport(refuse))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "wrong", ["model.example", "ftp://model.example", "http://", "http://me:hunter2@model.example"]
)
def test_a_url_that_cannot_be_one(wrong: str) -> None:
    with pytest.raises(UsageError) as error:
        ServiceClient(wrong)
    assert "hunter2" not in str(error.value)


def test_vectors_of_other_encoders(service: ModelService, filled: str) -> None:
    pair = service.engine.profile.encoders
    other = pair.model_copy(update={"frame": pair.frame.model_copy(update={"name": "another"})})
    with (
        against(lambda _: httpx.Response(500), service.engine.profile.model_copy(update={"encoders": other})) as client,
        pytest.raises(IdentityMismatch, match="another"),
    ):
        Asker(filled, service=client)
