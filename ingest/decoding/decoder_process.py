"""A confined process that decodes one file, as its parent sees it; the fork server starts it.

There is one fork server a process, started when the first file is decoded. One that died is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from index.errors import DecodeFailed
from ingest.decoding.confinement import Posture
from ingest.decoding.protocol import ENDED, INT, LENGTH

__all__ = ["DecoderProcess"]

_START_SECONDS = 60.0
_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
"""Of the parent's environment; everything else, credentials included, stays with the parent."""


class _ForkServer:
    """The running server: its process and the socket on which children are asked for."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        environment = {name: value for name, value in os.environ.items() if name in _KEPT}
        environment["PYTHONPATH"] = os.pathsep.join([root, *[p for p in sys.path if p]])
        self.socket, theirs = socket.socketpair()
        self.lock = threading.Lock()
        self.owner = os.getpid()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ingest.decoding.fork_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        self.socket.settimeout(_START_SECONDS)
        try:
            (length,) = LENGTH.unpack(_exactly(self.socket, LENGTH.size))
            self.posture = Posture(json.loads(_exactly(self.socket, length)))
        except (OSError, EOFError, ValueError, struct.error) as error:
            self.process.kill()
            tail = (self.process.communicate()[1] or b"").decode(errors="replace").strip().splitlines()
            self.socket.close()
            raise DecodeFailed(
                f"the decoder's process could not be started ({tail[-1] if tail else error}); check the installation "
                "of av"
            ) from None
        self.socket.settimeout(None)

    def request(self, order: bytes, descriptors: Sequence[int]) -> None:
        with self.lock:
            socket.send_fds(self.socket, [LENGTH.pack(len(order))], list(descriptors))
            self.socket.sendall(order)

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.communicate()


_starting = threading.Lock()
_server: _ForkServer | None = None


def _running() -> _ForkServer:
    global _server
    with _starting:
        if _server is not None and _server.owner != os.getpid():
            _server.socket.close()  # a copy that came with a fork: the server is the other process's
            _server = None
        if _server is not None and _server.process.poll() is not None:
            _server.close()
            _server = None
        if _server is None:
            _server = _ForkServer()
        return _server


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise EOFError("the process ended")
        data += more
    return data


class DecoderProcess:
    """One child of the fork server. Its pipes are `stdin` (to it), `stdout` and `stderr` (from it), all descriptors.

    Raises:
        DecodeFailed: the fork server cannot be started.
    """

    pid: int
    """Process id, for messages and tests; end the process by `kill`, since only the server may reap it."""

    def __init__(self, order: dict[str, Any], *, source: int, memory: int) -> None:
        self.cpu_seconds: float | None = None
        """CPU seconds of all its threads, once it has ended; None before, and where the fork server was killed."""
        body = json.dumps(order).encode()
        child_in, self.stdin = os.pipe()
        self.stdout, child_out = os.pipe()
        self.stderr, child_err = os.pipe()
        self._control: socket.socket
        self._status: int | None = None
        self._lock = threading.Lock()
        try:
            for attempt in (1, 2):
                server = _running()
                self._control, theirs = socket.socketpair()
                with theirs:
                    try:
                        server.request(body, [source, memory, child_in, child_out, child_err, theirs.fileno()])
                        sent = True
                    except OSError:
                        sent = False
                try:
                    if not sent:
                        raise EOFError
                    (self.pid,) = INT.unpack(_exactly(self._control, INT.size))
                    break
                except (OSError, EOFError):  # the server was killed, by the system's memory killer for instance
                    self._control.close()
                    if attempt == 2:
                        raise DecodeFailed("the decoder's fork server ended twice; is there memory left?") from None
                    server.process.wait()
        except BaseException:
            for descriptor in (self.stdin, self.stdout, self.stderr):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (child_in, child_out, child_err):
                os.close(descriptor)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, as `subprocess.Popen` has it; None while the process runs."""
        return self._ended(block=False)

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        code = self._ended(block=True)
        return -9 if code is None else code

    def _ended(self, *, block: bool) -> int | None:
        with self._lock:
            if self._status is None:
                try:
                    data = self._control.recv(ENDED.size, 0 if block else socket.MSG_DONTWAIT)
                    data += _exactly(self._control, ENDED.size - len(data))
                    status, self.cpu_seconds = ENDED.unpack(data)
                    self._status = os.waitstatus_to_exitcode(status)
                except BlockingIOError:
                    return None
                except (OSError, EOFError):
                    self._status = -9  # the server was killed, and its children with it
            return self._status

    def kill(self) -> None:
        """End the process now. May be called from another thread, and more than once."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kill the process if it runs, wait for it, close the pipes."""
        self.kill()
        self.wait()
        self._control.close()
        for descriptor in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(descriptor)
