"""A confined process that reads one file, as its parent sees it; the fork server starts it.

There is one fork server a process, started when the first file is decoded, and another one for files that a GPU
decodes. One that died is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from index.errors import DecodeFailed
from ingest.decoding.confinement import Posture
from ingest.decoding.protocol import ENDED, ERRORS, FAILED, HEADER, INT, LENGTH, MAX_BODY_BYTES

__all__ = ["DecoderProcess", "MessageReader"]

_START_SECONDS = 60.0
_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "CUDA_VISIBLE_DEVICES")
"""Of the parent's environment; everything else, credentials included, stays with the parent."""


class _ForkServer:
    """The running server: its process and the socket on which children are asked for."""

    def __init__(self, *, gpu: bool) -> None:
        root = str(Path(__file__).parents[2])
        environment = {name: value for name, value in os.environ.items() if name in _KEPT}
        environment["PYTHONPATH"] = os.pathsep.join([root, *[p for p in sys.path if p]])
        self.socket, theirs = socket.socketpair()
        self.lock = threading.Lock()
        self.owner = os.getpid()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ingest.decoding.fork_server", str(theirs.fileno()), *["gpu"] * gpu],
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
_servers: dict[bool, _ForkServer] = {}
"""The running servers, by whether a GPU decodes."""


def _running(*, gpu: bool) -> _ForkServer:
    with _starting:
        server = _servers.get(gpu)
        if server is not None and server.owner != os.getpid():
            server.socket.close()  # a copy that came with a fork: the server is the other process's
            server = None
        if server is not None and server.process.poll() is not None:
            server.close()
            server = None
        if server is None:
            server = _servers[gpu] = _ForkServer(gpu=gpu)
        return server


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

    Args:
        order: `task`, a name in `ingest.decoding.fork_server`; `limits`, the fields of `DecodeLimits`; and what the
            task needs. The task `decode` alone uses a GPU, and not for single pictures.
        source: descriptor of the file.
        memory: descriptor of the shared memory.

    Raises:
        DecodeFailed: the fork server cannot be started.
    """

    pid: int
    """Process id, for messages and tests; end the process by `kill`, since only the server may reap it."""

    def __init__(self, order: dict[str, Any], *, source: int, memory: int) -> None:
        self.cpu_seconds: float | None = None
        """CPU seconds of all its threads, once it has ended; None before, and where the fork server was killed."""
        body = json.dumps(order).encode()
        footage = order["task"] == "decode" and not order.get("pictures")
        gpu = footage and order["limits"].get("decoder", "software") != "software"
        child_in, self.stdin = os.pipe()
        self.stdout, child_out = os.pipe()
        self.stderr, child_err = os.pipe()
        self._control: socket.socket
        self._status: int | None = None
        self._lock = threading.Lock()
        try:
            for attempt in (1, 2):
                server = _running(gpu=gpu)
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


class MessageReader:
    """The messages of a confined process (`ingest.decoding.protocol`), read within bounds: a hostile file may control
    the process. A context manager that ends the process.

    Args:
        process: the process.
        name: name of its file in error messages, without credentials.
        stall_seconds: longest wait for a message.
    """

    def __init__(self, process: DecoderProcess, *, name: str, stall_seconds: float) -> None:
        self.process, self.name, self.stall_seconds = process, name, stall_seconds
        os.set_blocking(process.stdout, False)
        self._poll = select.poll()
        self._poll.register(process.stdout, select.POLLIN)

    def receive(self) -> tuple[bytes, bytes]:
        """Kind and body of the next message.

        Raises:
            DecodeFailed: the process ended, sent nothing for too long, or announced a body that is too long.
        """
        kind, length = HEADER.unpack(self._read(HEADER.size))
        if length > MAX_BODY_BYTES:
            self.raise_invalid()
        return kind, self._read(length)

    def _read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        buffer = bytearray()
        while len(buffer) < count:
            if not self._poll.poll(self.stall_seconds * 1000):
                self.process.close()
                raise DecodeFailed(
                    f"{self.name}: the decoder sent nothing for {self.stall_seconds:g} s and was stopped; "
                    "the file is damaged or its disk does not respond"
                )
            got = os.read(self.process.stdout, count - len(buffer))
            if not got:
                self._raise_exit()
            buffer += got
        return bytes(buffer)

    def _raise_exit(self) -> NoReturn:
        """Raise the reason why the process ended."""
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            why = "used more CPU time than its limit"
        elif code < 0:
            why = f"was killed by {signal.Signals(-code).name}"
        else:
            tail = os.read(self.process.stderr, 65536).decode(errors="replace").strip()
            why = f"stopped with exit code {code} ({tail.splitlines()[-1] if tail else 'no message'})"
        raise DecodeFailed(f"{self.name}: the decoder {why}; this file is incomplete, other files are not affected")

    def raise_reported(self, kind: bytes, body: bytes) -> NoReturn:
        """Raise the error that a message of the kind FAILED reports; any other kind is invalid here."""
        if kind != FAILED:
            self.raise_invalid()
        try:
            values = json.loads(body)
            error, message = ERRORS[values["type"]], str(values["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self.raise_invalid()
        raise error(f"{self.name}: {message}")

    def raise_invalid(self) -> NoReturn:
        """End the process and raise DecodeFailed for a message that it must not send."""
        self.process.close()
        raise DecodeFailed(
            f"{self.name}: the decoder sent an invalid message and was stopped; do not trust the file, it may be "
            "malicious"
        )

    def __enter__(self) -> MessageReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close()
