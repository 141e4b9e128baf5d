"""A real Apache Kafka on loopback for the system tests: started, killed, started again with the same data.

Without Java or Maven the tests are skipped; with CI set they fail (`tests.support.tools.need`).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from index.errors import KafkaProblem
from ingest.kafka.clients import make_topics
from ingest.kafka.settings import KafkaSettings
from tests.support.tools import need

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "kafka" / "broker.sh"


_SHARES = 8


def _candidates() -> Iterator[int]:
    """Ports below those that the system gives to connections (from 32768), each once; every test process has a share."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
    share = range(10_000 + worker, 32_000, _SHARES)
    begin = random.SystemRandom().randrange(len(share))
    return cycle([*share[begin:], *share[:begin]])


_ports = _candidates()


def free_ports(count: int) -> list[int]:
    """Free ports of the loopback interface, which no connection and no other test takes before a server has them."""
    found: list[int] = []
    while len(found) < count:
        port = next(_ports)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Broker:
    """One broker and its data. `extra` are lines of its properties, `{port}` in them its port."""

    def __init__(self, folder: Path, *, extra: str = "", **environment: str) -> None:
        self.folder, self.environment = folder, environment
        self.port, self.controller = free_ports(2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "extra.properties").write_text(extra.format(port=self.port))
        self.log = folder / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def settings(self, **more: Any) -> KafkaSettings:
        """Settings of a client. A busy machine keeps no member of a group silent for a session."""
        return KafkaSettings(**{"servers": self.servers, "session_seconds": 60, "connect_seconds": 60, **more})

    def start(self) -> Broker:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(SCRIPT), "start", str(self.port), str(self.controller), str(self.folder)],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        return self

    def wait(self, settings: KafkaSettings) -> None:
        """Until it answers with the three topics made; fails with its log when it ends before."""
        deadline = time.monotonic() + 900  # the first time Maven fetches the jars
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"the broker ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                make_topics(settings)
                return
            except (OSError, KafkaProblem):
                time.sleep(0.2)
        pytest.fail(f"the broker does not answer:\n{self.log.read_text()[-3000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the process with the signal; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout=300)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A plaintext broker for the tests of one module; each test takes topics of its own by a prefix."""
    need("java", "mvn")
    server = Broker(tmp_path_factory.mktemp("kafka")).start()
    try:
        server.wait(server.settings(prefix="ready", partitions=1))
        yield server
    finally:
        server.close()
