"""A real Apache Flink on loopback for the system tests: two task managers, one of which may be killed, and a job server.

Without Java or Maven the tests are skipped; with CI set they fail (`tests.support.tools.need`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gate import Gate
from tests.support.kafka_server import free_ports
from tests.support.tools import need

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "flink" / "cluster.sh"


def until(condition: Callable[[], Any], what: str, seconds: float = 600) -> Any:
    """What the condition gives once it is true; fails when it is not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


def portable(port: int, command: Path = ROOT / "infra" / "beam_worker.sh", **more: str) -> list[str]:
    """Beam's options for the job server on `port`, with Python workers as processes; `more` is of their environment."""
    worker = {
        "command": str(command),
        "env": {"BEAM_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **more},
    }
    return [
        f"--job_endpoint=localhost:{port}",
        "--environment_type=PROCESS",
        f"--environment_config={json.dumps(worker)}",
    ]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int, name: str) -> list[int]:
    """The processes with `name` in their command line that a process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == pid and name in stat.with_name("cmdline").read_text():
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


class Cluster:
    """Job manager, two task managers and job server; the script runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rest, self.jobs = free_ports(2)

    def script(self, *arguments: object) -> None:
        done = subprocess.run([str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def start(self) -> Cluster:
        self.script("start", self.folder, self.rest, self.jobs)
        return self

    def stop(self) -> None:
        self.script("stop", self.folder)

    def add(self, name: str) -> None:
        """One more task manager."""
        self.script("task-manager", self.folder, name)

    def ask(self, path: str) -> Any:
        """An answer of Flink's REST API."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.rest}{path}", timeout=30) as answer:
            return json.load(answer)

    def managers(self) -> set[str]:
        return {str(manager["id"]) for manager in self.ask("/taskmanagers")["taskmanagers"]}

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def kill(self, name: str) -> int:
        """SIGKILL a task manager; its process, which is gone when this returns."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), f"{name} dies", 30)
        return pid

    def running(self, job: str) -> dict[str, int]:
        """How many subtasks of the job run on each task manager."""
        found: dict[str, int] = {}
        for vertex in self.ask(f"/jobs/{job}")["vertices"]:
            for manager in self.ask(f"/jobs/{job}/vertices/{vertex['id']}/taskmanagers")["taskmanagers"]:
                name, count = manager["taskmanager-id"], manager["status-counts"]["RUNNING"]
                if count:
                    found[name] = found.get(name, 0) + count
        return found

    def beam(self, gate: Gate, victim: str) -> list[str]:
        """Beam's options for a job on this cluster, with a worker process in each task manager.

        The worker of the task manager `victim` waits at `gate`; see `tests.support.gated_beam_worker`.
        """
        command = self.folder / "gated_beam_worker.sh"
        command.write_text('#!/bin/sh\nexec "$BEAM_PYTHON" -m tests.support.gated_beam_worker "$@"\n')
        command.chmod(0o755)
        return [
            f"--flink_master=127.0.0.1:{self.rest}",
            *portable(self.jobs, command, GATE=str(gate.folder), GATE_VICTIM=victim),
            "--parallelism=2",
            "--environment_cache_millis=60000",  # else each stage starts its workers anew
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need("java", "mvn", "curl")
    made = Cluster(tmp_path_factory.mktemp("flink"))
    try:
        yield made.start()
    finally:
        made.stop()
