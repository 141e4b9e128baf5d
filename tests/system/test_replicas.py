"""Two model services behind HAProxy, with the configuration of the guide: no request needs the replica of another."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from index.errors import ServiceUnavailable
from index.store import Store
from pipeline.demo.render import questions, render
from pipeline.service.client import ServiceClient
from tests.support.kafka_server import free_ports
from tests.support.model_service import client, events, until
from tests.support.processes import ROOT, Process, environment
from tests.support.tools import need

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

SEED, MINUTES = 3, 1.0


def configuration(port: int, replicas: list[int], orders: int) -> str:
    """The guide's, with other ports; replies name the replica, and the balancer takes orders at the port `orders`."""
    guide = (ROOT / "docs/guides/model-service.md").read_text()
    text = guide[guide.index("```text\ndefaults\n") + len("```text\n") :].partition("```")[0]
    for old, new in zip((8765, 8766, 8767), (port, *replicas), strict=True):
        assert text.count(f"127.0.0.1:{old}") == 1
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    own = f"global\n    stats socket ipv4@127.0.0.1:{orders} level admin\n"
    return own + text + "    http-response set-header x-replica %s\n"


class Balanced:
    """Running replicas, and the address of the balancer before them."""

    def __init__(self, replicas: dict[str, subprocess.Popen[bytes]], url: str, store: str, orders: int) -> None:
        self.replicas, self.url, self.store, self.orders = replicas, url, store, orders

    def order(self, text: str) -> str:
        """The balancer's answer to a command of its own."""
        with socket.create_connection(("127.0.0.1", self.orders), timeout=60) as opened:
            opened.sendall(text.encode() + b"\n")
            return opened.makefile().read()

    def requests(self, replica: str) -> int:
        """How many requests a replica has not answered yet."""
        rows = [row.split(",") for row in self.order("show stat").splitlines()]
        return next(int(row[4]) for row in rows if row[:2] == ["replicas", replica])

    def reply(self, method: str, path: str, body: object = None) -> httpx.Response:
        """The reply to a request over a connection of its own."""
        with client(self.url) as opened:
            return opened.request(method, path, json=body)


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    """A camera of rendered footage in a store that two services with `micro` serve."""
    need("haproxy")
    folder = tmp_path_factory.mktemp("replicas")
    render(SEED, MINUTES, 1, folder / "footage")
    command = [sys.executable, "-m", "pipeline.cli"]
    done = subprocess.run(
        [*command, "ingest", "footage", "--store", "store"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    port, orders, *ports = free_ports(4)
    (folder / "haproxy.cfg").write_text(configuration(port, ports, orders))
    running: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("wb") as log:
            for each in ports:
                served = [*command, "model-service", "--store", "store", "--port", str(each)]
                running.append(
                    subprocess.Popen(served, cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT)
                )
            running.append(subprocess.Popen(["haproxy", "-f", "haproxy.cfg"], cwd=folder, stdout=log, stderr=log))
        replicas = {"first": running[0], "second": running[1]}
        found = Balanced(replicas, f"http://127.0.0.1:{port}", str(folder / "store"), orders)

        def both_ready() -> bool:
            try:
                replies = [found.reply("GET", "/readyz") for _ in range(2)]
            except httpx.TransportError:
                return False
            return {reply.headers.get("x-replica") for reply in replies if reply.is_success} == {"first", "second"}

        until(both_ready, seconds=900)
        yield found
    finally:
        for process in running:
            process.kill()
            process.wait(60)


def test_requests_in_turn_to_different_replicas_have_the_same_answers(balanced: Balanced, sightline: Process) -> None:
    window = Store.open(balanced.store).window(["camera-1"])
    frames = {"stream_id": "camera-1", "captured_at": window.captured_at.tolist(), "keyframes": [0, 20, 40]}
    request = {"question": "What was at the door?", "frames": [frames], "stream": False}
    whole = [balanced.reply("POST", "/v1/answer", request) for _ in range(2)]
    assert {reply.headers["x-replica"] for reply in whole} == {"first", "second"}
    assert whole[0].json()["text"] == whole[1].json()["text"] != ""
    for _ in range(2):
        with (
            client(balanced.url) as opened,
            opened.stream("POST", "/v1/answer", json={**request, "stream": True}) as one,
        ):
            name, data = list(events(one.iter_lines()))[-1]
        assert (name, data["text"]) == ("answer", whole[0].json()["text"])
    asked = questions(SEED, 0, MINUTES)[0]
    command = ("ask", asked.text, "--store", balanced.store, "--stream", "camera-1", "--json")
    remote, local = sightline(*command, "--service", balanced.url), sightline(*command)
    assert remote.returncode == 0, remote.stderr
    assert '"answer"' in remote.stdout
    assert [line for line in remote.stdout.splitlines() if '"answer":' in line] == [
        line for line in local.stdout.splitlines() if '"answer":' in line
    ]


def test_a_replica_that_is_killed_takes_its_own_answer_with_it_and_no_other(balanced: Balanced) -> None:
    window = Store.open(balanced.store).window(["camera-1"])
    keyframe = np.arange(len(window.captured_at)) % 30 == 0

    def ask() -> str:
        with ServiceClient(balanced.url, deadline_seconds=600) as through:
            *_, last = through.answer("What was at the door?", (), window, keyframe)
        assert last.answer is not None
        return last.answer.text

    first = balanced.replicas["first"]
    before = ask()
    balanced.order("disable health replicas/first")  # else the balancer may leave it out before it is asked
    first.send_signal(signal.SIGSTOP)  # it holds what it is asked until it is killed
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(ask) for _ in range(2)]
        try:
            # The requests go to the replicas in turn, so one of two is held. What is not held has an answer.
            until(lambda: sum(not each.done() for each in pending) == balanced.requests("first") >= 1, seconds=150)
            held = {each for each in pending if not each.done()}
        finally:
            first.kill()
            first.wait(60)
        balanced.order("enable health replicas/first")
        for each in pending:
            if each in held:
                with pytest.raises(ServiceUnavailable):
                    each.result(300)
            else:
                assert each.result(300) == before
    assert [ask() for _ in range(3)] == [before] * 3  # by the replica that is left
    assert balanced.reply("GET", "/readyz").headers["x-replica"] == "second"
