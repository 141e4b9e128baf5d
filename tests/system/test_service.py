"""`sightline model-service` as a process, with the shipped weights: the same answers, SIGTERM in the middle, load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.store import Store
from pipeline.demo.render import questions, render
from tests.support import gated_command
from tests.support.gate import Gate
from tests.support.model_service import client, metric, until
from tests.support.processes import Process, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

SEED = 3
MINUTES = 1.0
TOKEN = "a-token-of-twenty-or-so"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two cameras of rendered footage, ingested with `micro`."""
    folder = tmp_path_factory.mktemp("micro")
    render(SEED, MINUTES, 2, folder / "footage")
    command = [sys.executable, "-m", "pipeline.cli", "ingest", "footage", "--store", "store"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(folder / "store")


class Served:
    """A running `sightline model-service` and where it listens."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


@pytest.fixture
def start(store: str, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """`start("--waiting", "4", …)` runs the command until it listens; killed at the end of the test.

    With `gate` its answers wait there.
    """
    running: list[subprocess.Popen[str]] = []

    def run(*options: str, gate: Gate | None = None, **variables: str) -> Served:
        plain = [sys.executable, "-m", "pipeline.cli"]
        command = plain if gate is None else gated_command.command("before-answers", gate)
        process = subprocess.Popen(
            [*command, "model-service", "--store", store, "--port", "0", *options],
            cwd=tmp_path,
            env=environment(tmp_path, **variables),
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "stderr").open("w"),
            text=True,
        )
        running.append(process)
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(600)
        assert lines, "the service did not start in ten minutes"
        assert lines[0].startswith("listening on http://127.0.0.1:"), (tmp_path / "stderr").read_text()
        return Served(process, lines[0].removeprefix("listening on ").strip())

    yield run
    for process in running:
        process.kill()
        process.wait(60)


def test_the_same_answers_both_ways(
    store: str, start: Callable[..., Served], sightline: Process, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    service = start("--token-file", str(token))
    asked = questions(SEED, 0, MINUTES)[:3]
    assert asked
    for number, question in enumerate(asked):
        command = ["ask", question.text, "--store", store, "--stream", "camera-1", "--json"]
        if number % 2 == 0:
            command += [part for option in question.options for part in ("--option", option)]
        local = sightline(*command)
        remote = sightline(*command, "--service", service.url, SIGHTLINE_SERVICE_TOKEN_FILE=str(token))
        assert (local.returncode, remote.returncode) == (0, 0), local.stderr + remote.stderr
        here, there = json.loads(local.stdout), json.loads(remote.stdout)
        for name in ("answer", "option", "keyframes", "frames", "window_frames", "visual_tokens", "notices"):
            assert there[name] == here[name]
        assert there["probabilities"] == pytest.approx(here["probabilities"], abs=1e-5)
    with client(service.url, TOKEN) as opened:
        assert metric(opened, "sightline_answer_seconds_count") == len(asked)
    denied = sightline("ask", "what ?", "--store", store, "--service", service.url, SIGHTLINE_SERVICE_TOKEN="x" * 20)
    assert denied.returncode == 1
    assert "x" * 20 not in denied.stderr
    assert service.end() == 0
    assert (tmp_path / "stderr").read_text() == ""


def _request(store: str) -> dict[str, Any]:
    """A question about everything in the store, every tenth frame a keyframe."""
    frames = []
    for summary in Store.open(store).streams():
        times = Store.open(store).window([summary.stream_id]).captured_at.tolist()
        frames.append(
            {"stream_id": summary.stream_id, "captured_at": times, "keyframes": list(range(0, len(times), 10))}
        )
    return {"question": "What was at the door?", "frames": frames, "stream": False}


def _terminated_with_a_queue(
    service: Served, request: dict[str, Any], count: int, stopping: Callable[[], None]
) -> list[httpx.Response | httpx.TransportError]:
    """Ask `count` times at once, send SIGTERM while one waits at its gate and the others in the queue, call `stopping`,
    and return what each one got."""

    def ask(opened: httpx.Client) -> httpx.Response | httpx.TransportError:
        try:
            return opened.post("/v1/answer", json=request)
        except httpx.TransportError as error:
            return error

    def admitted() -> bool:
        text = opened.get("/metrics").text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        names = ("sightline_answer_seconds_count", "sightline_requests_running", "sightline_queue_depth")
        over, running, waiting = (float(values[name]) for name in names)
        return (over, running, waiting) == (0, 1, count - 1)

    with client(service.url) as opened, ThreadPoolExecutor(count) as pool:
        replies = [pool.submit(ask, opened) for _ in range(count)]
        until(admitted)
        service.process.send_signal(signal.SIGTERM)
        stopping()
        return [reply.result(600) for reply in replies]


def test_sigterm_finishes_what_was_admitted(store: str, start: Callable[..., Served], tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    service = start("--stop-seconds", "600", gate=gate)

    def stopping() -> None:
        """Let the answers go on once the service refuses others."""
        until(lambda: not _admits(service))
        gate.open()

    replies = _terminated_with_a_queue(service, _request(store), 12, stopping)
    assert service.process.wait(300) == 0
    assert [reply.status_code for reply in replies if isinstance(reply, httpx.Response)] == [200] * 12
    assert (
        len({reply.text for reply in replies if isinstance(reply, httpx.Response) and reply.json()["text"] == ""}) == 0
    )
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/healthz", trust_env=False, timeout=60)


def _admits(service: Served) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", trust_env=False, timeout=60).is_success
    except httpx.TransportError:
        return False


def test_a_stop_does_not_wait_longer_than_it_may(store: str, start: Callable[..., Served], tmp_path: Path) -> None:
    service = start("--stop-seconds", "0", gate=Gate(tmp_path / "gate"))
    replies = _terminated_with_a_queue(service, _request(store), 12, lambda: None)
    assert service.process.wait(300) == 0
    refused = [reply for reply in replies if isinstance(reply, httpx.Response) and reply.status_code == 503]
    assert refused  # those that still waited were told
    assert {reply.json()["error"]["code"] for reply in refused} == {"service_unavailable"}
    assert len([reply for reply in replies if isinstance(reply, httpx.Response)]) == 12


def test_others_are_only_let_in_with_a_token(store: str, sightline: Process) -> None:
    refused = sightline("model-service", "--store", store, "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "token" in refused.stderr
    short = sightline("model-service", "--store", store, "--host", "0.0.0.0", SIGHTLINE_SERVICE_TOKEN="short")
    assert short.returncode == 2
    assert refused.stderr.count("\n") == short.stderr.count("\n") == 1


def test_many_clients_lose_nothing(profile: str, sightline: Process) -> None:
    done = sightline("bench", "service", "--clients", "8", "--seconds", "3", "--minutes", "1.5", "--profile", profile)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["wrong"], report["exit_code"]) == ({}, 0, 0)
    assert report["requests"] == report["answered"] >= 8
    assert report["deepest_queue"] >= 1
    assert set(report["rss_bytes"]) == {"start", "middle", "end", "most"}
