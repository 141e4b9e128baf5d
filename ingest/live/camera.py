"""The thread of one camera: runs the process that reads it, restarts it after failures, and passes on its segments.

The thread does not rely on the process: one that sends no message for too long is killed, whether or not its own
watchdog works. After a failure the camera is connected to again after a pause that doubles each time, with jitter, so
that a hundred cameras behind one switch do not reconnect at the same moment. Threads of cameras never wait for each
other.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from index.records import from_micros
from ingest.live.config import CameraConfig, LiveSettings
from ingest.live.status import CameraState, StatusRegistry
from ingest.segments.names import NamedSegment, parse_name

__all__ = ["CameraThread", "backoff_seconds"]

_log = structlog.get_logger(__name__)
_GRACE_SECONDS = 5.0  # that a process has beyond its own watchdog
_STABLE_SECONDS = 30.0  # of a connection, after which the pauses start small again
_POLL_MS = 100
_MAX_SEGMENT_BYTES = 256 * 2**20
_MAX_LINE_BYTES = 2**20
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")  # variables that the process inherits


def backoff_seconds(attempt: int, first: float, largest: float, *, jitter: float | None = None) -> float:
    """The pause after failed attempt number `attempt`: doubles from `first` up to `largest`, minus up to half of it.

    Args:
        attempt: counts from 1.
        first: the pause after the first attempt, in seconds, before jitter.
        largest: the longest pause in seconds.
        jitter: in [0, 1), the share of that half to subtract; random when None.
    """
    whole = min(largest, first * 2.0 ** min(attempt - 1, 30))
    return whole * (1.0 - 0.5 * (random.random() if jitter is None else jitter))


class CameraThread:
    """Reads one camera until `ask_to_stop` is called.

    Args:
        camera: its URL and stream.
        settings: the time-outs and limits.
        folder: where its process writes the segments.
        status: receives the camera's state and counters.
        on_segment: called in this thread with each segment whose file is complete, its size in bytes and its frames.
        newest: UTC microseconds of the stream's newest frame; all frames get later times.
        lock: a descriptor that the process inherits, so that `folder` stays locked until the process has ended.

    Attributes:
        newest: as above, updated with each segment.
        process: the running process; None in between.
    """

    def __init__(
        self,
        camera: CameraConfig,
        settings: LiveSettings,
        folder: Path,
        status: StatusRegistry,
        on_segment: Callable[[NamedSegment, int, int], None],
        *,
        newest: int | None = None,
        lock: int | None = None,
    ) -> None:
        self.camera, self.settings, self.folder, self.status = camera, settings, folder, status
        self.newest = newest
        self._on_segment, self._lock = on_segment, lock
        self.process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._counted: dict[str, int] = {}
        status.add(CameraState(stream=camera.stream, url=camera.shown))
        self._thread = threading.Thread(target=self._run, name=f"camera {camera.stream}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Ask the camera to close its open segment and to end; `join` waits for that."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, at most `timeout` seconds."""
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attempt, connections = 0, 0
        while not self._stop.is_set():
            self.status.change(self.camera.stream, state="connecting")
            began, opened, why, stalled = time.monotonic(), False, "", False
            try:
                opened, why, stalled = self._connect(first=connections == 0)
            except Exception as error:  # an error of one camera must not end the others
                why = f"{type(error).__name__}: {error}"
            if self._stop.is_set():
                return
            connections += opened
            attempt = 1 if opened and time.monotonic() - began > _STABLE_SECONDS else attempt + 1
            pause = backoff_seconds(attempt, self.settings.backoff_seconds, self.settings.backoff_most_seconds)
            state = "stalled" if stalled else "failed"
            self.status.change(self.camera.stream, state=state, why=why)
            _log.warning(
                "camera is not live", stream=self.camera.stream, state=state, why=why, next_try=round(pause, 1)
            )
            self._stop.wait(pause)

    def _connect(self, *, first: bool) -> tuple[bool, str, bool]:
        """Run one process from start to end.

        Returns:
            Whether the camera was live, why the process ended, and whether it ended because nothing was received.
        """
        self._counted = {}
        process = self.process = self._start_process()
        assert process.stdout is not None  # pipes were asked for
        descriptor = process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        buffer, opened, why, stalled = b"", False, "", False
        last_message = time.monotonic()
        closing: float | None = None
        try:
            while True:
                limit = self.settings.stall_seconds if opened else self.settings.connect_seconds * 2
                if closing is None and self._stop.is_set() and process.stdin is not None:
                    process.stdin.close()  # has the process close its segment and end
                    closing = time.monotonic()
                if closing is not None and time.monotonic() - closing > _GRACE_SECONDS:
                    return opened, "its process did not end when asked to", False
                if time.monotonic() - last_message > limit + _GRACE_SECONDS:
                    return (
                        opened,
                        f"its process sent no message for {limit + _GRACE_SECONDS:.0f} s and was killed",
                        True,
                    )
                if not poll.poll(_POLL_MS):
                    continue
                received = os.read(descriptor, 65536)
                if not received:
                    return opened, why or f"its process ended with exit code {process.wait()}", stalled
                last_message = time.monotonic()
                *lines, buffer = (buffer + received).split(b"\n")
                if len(buffer) > _MAX_LINE_BYTES:
                    return opened, "its process sent an invalid message", False
                for line in lines:
                    event = json.loads(line)
                    if event["event"] == "open":
                        if not (opened or first):
                            self.status.count(self.camera.stream, reconnects=1)
                        opened = True
                    elif event["event"] == "error":
                        why, stalled = str(event["message"]), event["type"] == "SourceStalled"
                    self._handle(event)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None

    def _handle(self, event: dict[str, Any]) -> None:
        stream, kind = self.camera.stream, event["event"]
        if kind == "confined":
            report = _log.warning if {"landlock", "seccomp"}.intersection(event["missing"]) else _log.debug
            report("confinement of the camera's process", stream=stream, posture=str(event["why"]))
        elif kind == "open":
            shape = {name: event[name] for name in ("codec", "width", "height")}
            self.status.change(stream, state="live", why=None, **shape)
            _log.info("camera is live", stream=stream, **shape)
        elif kind == "beat":
            counts = {name: int(event[name]) for name in ("frames", "dropped", "skipped", "late")}
            self.status.count(stream, **{name: n - self._counted.get(name, 0) for name, n in counts.items()})
            self._counted = counts
            newest = None if event["newest"] is None else from_micros(event["newest"])
            self.status.change(stream, newest=newest, drift_seconds=float(event["drift"]))
        elif kind == "segment":
            segment = parse_name(str(event["name"]))
            if segment is None or segment.stream != stream:
                raise ValueError("its process sent an invalid segment name")
            self.newest = max(self.newest or 0, segment.end - 1)
            self.status.count(stream, segments=1)
            self._on_segment(segment, int(event["bytes"]), int(event["frames"]))

    def _start_process(self) -> subprocess.Popen[bytes]:
        settings = self.settings
        order = {
            "url": self.camera.url,
            "stream": self.camera.stream,
            "transport": self.camera.transport,
            "folder": str(self.folder),
            "newest": self.newest,
            "connect": settings.connect_seconds,
            "stall": settings.stall_seconds,
            "seconds": settings.segment_seconds,
            "max_bytes": _MAX_SEGMENT_BYTES,
            "memory_bytes": settings.memory_bytes,
            "policy": settings.policy.model_dump(mode="json"),
        }
        root = str(Path(__file__).parents[2])
        environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
        environment["PYTHONPATH"] = os.pathsep.join([root, *[path for path in sys.path if path]])
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ingest.live.camera_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            pass_fds=[] if self._lock is None else [self._lock],
        )
        assert process.stdin is not None  # pipes were asked for
        process.stdin.write(
            json.dumps(order).encode() + b"\n"
        )  # not an argument, where other users could read the password
        process.stdin.flush()
        return process
