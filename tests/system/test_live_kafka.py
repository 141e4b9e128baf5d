"""Cameras through RTSP, `record --publish`, Kafka and two consumers into one store: every second exactly once.

LIVE_CAMERAS cameras for LIVE_SECONDS; 8 for 180 is the long trial. LIVE_PROFILE=micro takes the shipped encoders in
place of ones that only count, and LIVE_REPORT names a file for the figures.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from index.store import Store
from tests.support.kafka_server import Broker, broker
from tests.support.live import (
    RtspServer,
    emitted,
    footage,
    kept,
    live,
    long_footage,
    rtsp,
    seconds_kept,
    seconds_stored,
)
from tests.support.processes import environment

__all__ = ["broker", "footage", "long_footage", "rtsp"]
pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
CAMERAS = int(os.environ.get("LIVE_CAMERAS", "4"))
SECONDS = float(os.environ.get("LIVE_SECONDS", "40"))
PROFILE = os.environ.get("LIVE_PROFILE", "")
REPORT = os.environ.get("LIVE_REPORT", "")
SEGMENT = 5 if SECONDS < 100 else 10


class _Consumer:
    """`sightline consume`, or the same with encoders that only count."""

    def __init__(self, home: Path, store: Path, kafka: dict[str, Any]) -> None:
        home.mkdir()
        self.log = home / "log"
        command = [sys.executable, "-m", "tests.support.kafka_worker"]  # it logs everything
        order = {"store": str(store), "group": "live", "kafka": kafka}
        arguments, settings = [json.dumps(order)], {}
        if PROFILE:
            command = [sys.executable, "-m", "pipeline.cli", "--debug"]
            arguments = ["consume", "--group", "live", "--store", str(store), "--profile", PROFILE, "--json"]
            settings = {
                f"SIGHTLINE_KAFKA_{name.upper()}": json.dumps(value) if isinstance(value, list) else str(value)
                for name, value in kafka.items()
            }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=home,
                env=environment(home, **settings),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def settled(self) -> bool:
        """Whether it has, or had, partitions."""
        return " settled " in self.log.read_text()

    def stop(self) -> dict[str, Any]:
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, self.log.read_text()[-3000:]
        report: dict[str, Any] = emitted(out)
        return report

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _stored(store: Path) -> int:
    try:
        return sum(summary.frames for summary in Store.open(str(store)).streams())
    except Exception:  # the first worker may be making it
        return 0


def test_every_second_of_every_camera_is_stored_once(
    tmp_path: Path, broker: Broker, rtsp: RtspServer, long_footage: Path
) -> None:
    kafka = {"servers": broker.servers, "session_seconds": 60, "prefix": "live", "partitions": 8}
    kafka |= {"objects": [str(tmp_path / "tape")]}
    names = [f"cam-{i + 1}" for i in range(CAMERAS)]
    for name in names:
        rtsp.order("mount", f"/{name}", "h264", long_footage)
    urls = [rtsp.url(name) for name in names]
    store, tape = tmp_path / "store", tmp_path / "tape"
    where = {"SIGHTLINE_KAFKA_PREFIX": "live", "SIGHTLINE_KAFKA_PARTITIONS": "8"}
    arguments = ("record", *urls, "--to", tape, "--publish", "--servers", broker.servers, "--seconds", SEGMENT)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers: list[_Consumer] = []
    try:
        with live(tmp_path / "record", *arguments, "--json", **where) as running:
            for name in names:
                running.until_state(name, "live")
            workers += [_Consumer(tmp_path / f"worker-{i}", store, kafka) for i in range(2)]
            running.until("both workers have partitions", lambda: all(map(_Consumer.settled, workers)))
            began = time.monotonic()
            running.until("the time is over", lambda: time.monotonic() - began > SECONDS, SECONDS + 600)
            state = running.state()
            sent = emitted(running.stop())
            took = time.monotonic() - began
        segments = {name: kept(tape, name) for name in names}
        expected = {name: seconds_kept(tape, segments[name]) for name in names}
        total, deadline = sum(map(len, expected.values())), time.monotonic() + 900
        while _stored(store) < total and time.monotonic() < deadline:
            assert all(worker.process.poll() is None for worker in workers), workers[0].log.read_text()[-3000:]
            time.sleep(1)
        reports = [worker.stop() for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert state is not None
    assert all(camera.reconnects == 0 and camera.dropped == 0 for camera in state.cameras)
    count = sum(map(len, segments.values()))
    assert {name: sent[name] for name in ("kept", "sent", "refused", "expired")} == {
        "kept": count,
        "sent": count,
        "refused": 0,
        "expired": 0,
    }
    assert sent["footage"]["stored"]["segments"] == count
    assert sent["footage"]["dropped"]["segments"] == sent["waiting_segments"] == 0
    assert {name: total["segments"] for name, total in sent["cameras"].items()} == {
        name: len(found) for name, found in segments.items()
    }
    assert all(total["dropped"] == 0 for total in sent["cameras"].values())
    for name in names:
        found = seconds_stored(store, name)
        assert found == expected[name], name
        assert [b - a for a, b in pairwise(found)] == [1] * (len(found) - 1), name
        assert len(found) >= SECONDS - 2, name
    assert sum(report["dead_letters"] for report in reports) == 0
    assert sum(report["frames"] for report in reports) == total
    assert Store.open(str(store)).verify() == []
    if REPORT:
        late = sorted(second for report in reports for second in report["late_seconds"])
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        figures = {
            "cameras": CAMERAS,
            "seconds": round(took, 1),
            "segment_seconds": SEGMENT,
            "profile": PROFILE or "counting",
            "segments": sent["sent"],
            "frames_stored": total,
            "cpu_seconds_of_record_and_consumers": round(cpu, 1),
            "late_frames": sum(camera.late for camera in state.cameras),
            "segment_end_to_stored_seconds": {f"p{p}": round(late[len(late) * p // 100], 2) for p in (50, 95)},
            # A frame waits for its segment's end: on average half a segment, at most a whole one.
            "capture_to_searchable_seconds": {
                "p50": round(_percentile(late, SEGMENT, 50), 2),
                "p95": round(_percentile(late, SEGMENT, 95), 2),
            },
        }
        Path(REPORT).write_text(json.dumps(figures, indent=1) + "\n")


def _percentile(late: list[float], segment: float, p: int) -> float:
    """Of single frames: each second of a segment is as late as its segment and its own distance from the end."""
    every = sorted(each + second + 0.5 for each in late for second in range(int(segment)))
    return every[len(every) * p // 100]
