"""Helpers of the tests of live cameras: RTSP servers, a proxy for network faults, and the commands that read cameras."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from index.errors import SourceNotFound
from index.second_grid import EARLY_MICROS, seconds_of
from index.store import Store
from ingest.live.status import CameraState, LiveStatus, read_status
from ingest.live.supervisor import STATUS_FILE
from ingest.segments.names import NamedSegment, parse_name
from pipeline.demo.render import render
from tests.support.kafka_server import free_ports
from tests.support.processes import ROOT, environment
from tests.support.tools import need

SCRIPT = ROOT / "infra" / "rtsp" / "server.sh"
FAST = {
    "SIGHTLINE_LIVE_BACKOFF_SECONDS": "0.3",
    "SIGHTLINE_LIVE_BACKOFF_MOST_SECONDS": "1",
    # A camera that a busy machine keeps waiting has not failed.
    "SIGHTLINE_LIVE_STALL_SECONDS": "60",
    "SIGHTLINE_LIVE_CONNECT_SECONDS": "60",
}


class RtspServer:
    """An RTSP server whose cameras play files; see infra/rtsp/server.py."""

    def __init__(self) -> None:
        need("rtsp")
        (self.port,) = free_ports(1)
        self.process = subprocess.Popen(
            [str(SCRIPT), "start", str(self.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def order(self, *words: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer == "ok", answer or f"the server ended with {self.process.wait()}"

    def url(self, path: str, port: int | None = None) -> str:
        return f"rtsp://127.0.0.1:{port or self.port}/{path}"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Proxy:
    """A TCP proxy on loopback whose network can `hold` (packets stop, connections stay) and be `cut` (both end)."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.holding, self._cut, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._pairs: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self.port = self._server.getsockname()[1]
        self.accepted = 0
        self.newest = time.time()
        """When bytes last went through, in seconds since 1970."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._server.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            self.accepted += 1
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self._pairs += [near, far]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.holding.is_set() and not self._closed.is_set():
                    time.sleep(0.02)
                sink.sendall(data)
                self.newest = time.time()
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every connection, and each that comes until `mend`."""
        self._cut.set()
        for each in self._pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._pairs.clear()

    def mend(self) -> None:
        self._cut.clear()
        self.holding.clear()

    def close(self) -> None:
        self._closed.set()
        self.cut()
        self._server.close()


class Live:
    """`sightline watch` or `record` as a process, and the status of its cameras."""

    def __init__(self, home: Path, *arguments: object, **more: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.folder = home, home / "live"
        self.log = home / "live.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "--debug", *map(str, arguments), "--folder", str(self.folder)],
                cwd=home,
                env=environment(home, **{**FAST, **more}),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def state(self) -> LiveStatus | None:
        with suppress(SourceNotFound):
            state = read_status(self.folder / STATUS_FILE)
            return state if state.pid == self.process.pid else None  # not the file of an earlier process
        return None

    def camera(self, stream: str) -> CameraState | None:
        state = self.state()
        return next((c for c in state.cameras if c.stream == stream), None) if state else None

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 300.0) -> Any:
        """Wait until `condition` is true and return its value; fail with the log after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode} before {what}:\n{self.log.read_text()[-3000:]}")
            if found := condition():
                return found
            time.sleep(0.1)
        pytest.fail(f"not {what} within {seconds:.0f} s: {self.state()}\n{self.log.read_text()[-3000:]}")

    def until_state(self, stream: str, state: str, seconds: float = 300.0) -> CameraState:
        def there() -> CameraState | None:
            camera = self.camera(stream)
            return camera if camera is not None and camera.state == state else None

        found: CameraState = self.until(f"{stream} is {state}", there, seconds)
        return found

    def until_segments(self, stream: str, count: int, seconds: float = 300.0) -> None:
        self.until(
            f"{stream} has {count} segments", lambda: (c := self.camera(stream)) and c.segments >= count, seconds
        )

    def stop(self) -> str:
        """End it as an operator would, and its standard output."""
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, self.log.read_text()[-3000:]
        return out

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def live(home: Path, *arguments: object, **more: str) -> Iterator[Live]:
    running = Live(home, *arguments, **more)
    try:
        yield running
    finally:
        running.close()


def kept(folder: Path, stream: str) -> list[NamedSegment]:
    """The segments of a stream in a folder, in order."""
    return sorted(s for path in (folder / stream).rglob("*.mp4") if (s := parse_name(path.as_posix())) is not None)


def seconds_stored(store: Path, stream: str) -> list[int]:
    """The UTC second of every stored frame of a stream, ascending."""
    frames = Store.open(str(store)).window([stream])
    return [int(second) for second in seconds_of(frames.captured_at)]


def seconds_kept(folder: Path, segments: list[NamedSegment]) -> list[int]:
    """The UTC seconds of which segments contain a frame, by the timestamps in their files."""
    import av

    found: set[int] = set()
    for segment in segments:
        with av.open(str(folder / segment.name)) as file:
            shown = [float(packet.pts * packet.time_base) for packet in file.demux(video=0) if packet.size]
        found.update((segment.start + round((at - min(shown)) * 1e6) + EARLY_MICROS) // 1_000_000 for at in shown)
    return sorted(found)


def ffmpeg(*arguments: object) -> subprocess.Popen[bytes]:
    """Start ffmpeg; it runs until it ends or is killed."""
    need("ffmpeg")
    return subprocess.Popen(
        ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def convert(source: Path, target: Path, *arguments: str, loops: int = 0) -> Path:
    """Convert a file by ffmpeg. Returns the new file."""
    done = ffmpeg("-stream_loop", loops, "-i", source, *arguments, target)
    assert done.wait(timeout=600) == 0
    return target


def make_footage(folder: Path) -> Path:
    """Half a minute of a rendered camera: H.264 of 10 frames a second with an intra frame every two seconds."""
    path = folder / "camera-1.mp4"
    if not path.exists():
        render(11, 0.5, 1, folder)
    return path


def emitted(text: str) -> Any:
    return json.loads(text)


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_footage(tmp_path_factory.mktemp("footage"))


@pytest.fixture(scope="session")
def long_footage(footage: Path) -> Path:
    """The same footage, repeated to five minutes."""
    return convert(footage, footage.with_name("long.mp4"), "-c", "copy", loops=9)


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    server = RtspServer()
    try:
        yield server
    finally:
        server.close()
