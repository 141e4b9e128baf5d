"""A desk as a process of its own, over rendered footage that the micro profile knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import ROOT, environment

WAIT = 400.0


def rendered_store(folder: Path, minutes: float = 1.0) -> Path:
    """A store with `camera-1` and `camera-2`, rendered with seed 7."""
    from index.store import Store
    from ingest.file_ingest import ingest_sources
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile
    from pipeline.demo.render import render

    render(7, minutes, 2, folder / "footage", lambda *_: None)
    encoders = load_encoders(load_profile("micro"), "cpu")
    store = Store.create(folder / "store", encoders.pair)
    ingest_sources([folder / "footage"], store=store, encoders=encoders)
    return folder / "store"


@dataclass(frozen=True, slots=True)
class RunningDesk:
    """A process of `sightline serve`."""

    url: str
    """Its address."""
    http: httpx.Client
    """A client below the API."""
    process: subprocess.Popen[str]
    """The process."""

    def events(self, method: str, path: str, **options: Any) -> list[tuple[str, Any]]:
        """The events of a reply until it ends."""
        found: list[tuple[str, Any]] = []
        with self.http.stream(method, path, **options) as reply:
            assert reply.status_code == 200, reply.read()
            name = ""
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    found.append((name, json.loads(line.removeprefix("data: "))))
        return found


@contextmanager
def running_desk(store: Path | str, state: Path, *arguments: str) -> Iterator[RunningDesk]:
    """`sightline serve` on a free port of loopback, ended with SIGTERM; its exit code must be 0."""
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--store", str(store), "--state", str(state)]
    process = subprocess.Popen(
        [*command, "--port", "0", *arguments],
        cwd=state.parent,
        env=environment(state.parent, HOME=str(state.parent)),
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("the desk is at http://"), line
        url = line.split(";")[0].removeprefix("the desk is at ").strip()
        with httpx.Client(base_url=f"{url}/api/v1", timeout=WAIT, trust_env=False) as client:
            yield RunningDesk(url, client, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def until_ended(desk: RunningDesk, job: str) -> Any:
    """A job when it has ended."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        found = desk.http.get(f"/jobs/{job}").json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"job {job} did not end")


def command_environment(home: Path) -> dict[str, str]:
    """The environment of a process that a client of MCP starts."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
