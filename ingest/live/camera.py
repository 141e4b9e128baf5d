"""One camera kept alive: a process that reads it, a thread that starts it anew, and what becomes of its segments.

The thread trusts the process with nothing: one that says nothing for too long is killed, whatever its own watchdog did.
A camera that cannot be read is tried again after pauses that double, with jitter, so that a hundred cameras behind one
switch do not come back in the same moment. No camera's thread ever waits for another's.
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
from ingest.live.status import CameraState, StateBoard
from ingest.segments.names import NamedSegment, parse_name

__all__ = ["CameraThread", "pause_before"]

_log = structlog.get_logger(__name__)
_GRACE = 5.0  # seconds that a process has beyond its own watchdog
_SETTLED = 30.0  # seconds of a good connection after which pauses begin small again
_MOST_BYTES = 256 * 2**20


def pause_before(attempt: int, first: float, most: float, *, chance: float | None = None) -> float:
    """Seconds to wait before try `attempt` (from 1): doubling from `first` up to `most`, less up to a half of it.

    Args:
        chance: in [0, 1), drawn when None.
    """
    whole = min(most, first * 2.0 ** min(attempt - 1, 30))
    return whole * (1.0 - 0.5 * (random.random() if chance is None else chance))


class CameraThread:
    """Reads `camera` until `stop`; `on_segment` is called in its thread with each segment that lies whole in `folder`.

    Args:
        newest: UTC microseconds of the stream's newest stored frame; nothing is given a time before it.
        lock: a descriptor that its process inherits, so that the folder is not free before that has ended.
    """

    def __init__(
        self,
        camera: CameraConfig,
        settings: LiveSettings,
        folder: Path,
        board: StateBoard,
        on_segment: Callable[[NamedSegment, int, int], None],
        *,
        newest: int | None = None,
        lock: int | None = None,
    ) -> None:
        self.camera, self.settings, self.folder, self.board = camera, settings, folder, board
        self.on_segment, self.newest, self._lock = on_segment, newest, lock
        self.process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._counted: dict[str, int] = {}
        board.add(CameraState(stream=camera.stream, url=camera.shown))
        self._thread = threading.Thread(target=self._run, name=f"camera {camera.stream}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Ask it to close what it has and end; `join` waits for that."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        attempt, connections = 0, 0
        while not self._stop.is_set():
            self.board.change(self.camera.stream, state="connecting")
            began, opened, why, stalled = time.monotonic(), False, "", False
            try:
                opened, why, stalled = self._once(first=connections == 0)
            except Exception as error:  # whatever it is, it is this camera's alone
                why = f"{type(error).__name__}: {error}"
            if self._stop.is_set():
                return
            connections += opened
            attempt = 1 if opened and time.monotonic() - began > _SETTLED else attempt + 1
            pause = pause_before(attempt, self.settings.backoff_seconds, self.settings.backoff_most_seconds)
            state = "stalled" if stalled else "failed"
            self.board.change(self.camera.stream, state=state, why=why)
            _log.warning(
                "camera is not live", stream=self.camera.stream, state=state, why=why, next_try=round(pause, 1)
            )
            self._stop.wait(pause)

    def _once(self, *, first: bool) -> tuple[bool, str, bool]:
        """One process from start to end: whether it was live, why it ended, and whether because nothing came."""
        self._counted = {}
        process = self.process = self._started()
        assert process.stdout is not None  # pipes were asked for
        descriptor = process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        buffer, opened, why, stalled = b"", False, "", False
        heard = time.monotonic()
        closing: float | None = None
        try:
            while True:
                limit = self.settings.stall_seconds if opened else self.settings.connect_seconds * 2
                if closing is None and self._stop.is_set() and process.stdin is not None:
                    process.stdin.close()  # it closes its segment and ends
                    closing = time.monotonic()
                if closing is not None and time.monotonic() - closing > _GRACE:
                    return opened, "did not end when asked", False
                if time.monotonic() - heard > limit + _GRACE:
                    return opened, f"its process said nothing for {limit + _GRACE:.0f} s and was stopped", True
                if not poll.poll(100):
                    continue
                got = os.read(descriptor, 65536)
                if not got:
                    return opened, why or f"its process ended with exit code {process.wait()}", stalled
                heard = time.monotonic()
                *lines, buffer = (buffer + got).split(b"\n")
                if len(buffer) > 1 << 20:
                    return opened, "its process said something that cannot be", False
                for line in lines:
                    event = json.loads(line)
                    if event["event"] == "open":
                        if not (opened or first):
                            self.board.count(self.camera.stream, reconnects=1)
                        opened = True
                    elif event["event"] == "error":
                        why, stalled = str(event["message"]), event["type"] == "SourceStalled"
                    self._take(event)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None

    def _take(self, event: dict[str, Any]) -> None:
        stream, kind = self.camera.stream, event["event"]
        if kind == "open":
            shape = {name: event[name] for name in ("codec", "width", "height")}
            self.board.change(stream, state="live", why=None, **shape)
            _log.info("camera is live", stream=stream, **shape)
        elif kind == "beat":
            counts = {name: int(event[name]) for name in ("frames", "dropped", "late")}
            self.board.count(stream, **{name: n - self._counted.get(name, 0) for name, n in counts.items()})
            self._counted = counts
            newest = None if event["newest"] is None else from_micros(event["newest"])
            self.board.change(stream, newest=newest, drift_seconds=float(event["drift"]))
        elif kind == "segment":
            segment = parse_name(str(event["name"]))
            if segment is None or segment.stream != stream:
                raise ValueError("its process named a segment that cannot be")
            self.newest = max(self.newest or 0, segment.end - 1)
            self.board.count(stream, segments=1)
            self.on_segment(segment, int(event["bytes"]), int(event["frames"]))

    def _started(self) -> subprocess.Popen[bytes]:
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
            "max_bytes": _MOST_BYTES,
            "memory_bytes": settings.memory_bytes,
            "policy": settings.policy.model_dump(mode="json"),
        }
        root = str(Path(__file__).parents[2])
        keep = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
        environment = {name: value for name, value in os.environ.items() if name in keep}
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
        process.stdin.write(json.dumps(order).encode() + b"\n")  # not as an argument: others could read the password
        process.stdin.flush()
        return process
