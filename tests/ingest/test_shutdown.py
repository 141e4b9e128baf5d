"""The deadline of a process that was asked to stop, and the watchdog of a thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ingest import shutdown
from ingest.shutdown import Watchdog, commit_under_way

ROOT = Path(__file__).parents[2]
_PROGRAM = """
import contextlib, signal, sys, time
from ingest.shutdown import commit_under_way, limit_stop
limit_stop(stop_seconds=1, commit_seconds=3)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
print("ready", flush=True)
with commit_under_way() if "commit" in sys.argv else contextlib.nullcontext():
    if "spin" in sys.argv:
        while True:
            pass
    # The main thread waits in a library, where Python runs no signal handler.
    import ctypes
    while True:
        ctypes.CDLL(None).poll(None, 0, 100_000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "least", "most"), [(["spin"], 0.9, 3), (["library"], 0.9, 3), (["commit"], 2.9, 6)]
)
def test_a_process_that_does_not_stop_is_ended(
    number: signal.Signals, arguments: list[str], least: float, most: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        began = time.monotonic()
        _, err = process.communicate(timeout=300)
        assert least < time.monotonic() - began < most + 60  # other work on the machine only adds time
    finally:
        process.kill()
    assert process.returncode == 1
    assert err.startswith("sightline: did not stop within ")
    assert len(err.splitlines()) == 1


def test_commits_are_counted_by_block() -> None:
    with commit_under_way(), commit_under_way():
        pass
    with pytest.raises(ValueError, match="x"), commit_under_way():
        raise ValueError("x")


def test_a_thread_that_stands_still_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    reported = threading.Event()

    def report(reason: str) -> None:
        reasons.append(reason)
        reported.set()

    now = [1000.0]
    monkeypatch.setattr(shutdown, "time", SimpleNamespace(monotonic=lambda: now[0]))  # a pause of the machine is none
    with Watchdog("the test", 2.0, report) as watchdog:
        for _ in range(20):
            watchdog.beat()
            now[0] += 1.9
            time.sleep(0.05)
        assert reasons == []
        now[0] += 0.2
        assert reported.wait(300)
        time.sleep(1)
    assert len(reasons) == 1
    assert reasons[0].startswith("the test stands still for ")
