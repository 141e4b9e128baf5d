"""The fork server: a clean process with the decoder's libraries loaded, which forks one confined process a file.

`python -m ingest.decoding.fork_server FD [gpu]` runs it; FD is a stream socket to the process that asks
(`ingest.decoding.decoder_process`). Starting Python and loading FFmpeg costs a third of the time in which a segment of
ten seconds is decoded; a fork costs a few milliseconds.

The server confines itself before it serves (no network, no files, no capabilities; see `ingest.decoding.confinement`),
and each child adds the filter of system calls, which a process that forks cannot have. A request is a JSON order with
six descriptors: the file, the shared memory, the child's stdin, stdout and stderr, and a socket of its own. On that
socket the server writes the child's pid, later its wait status and the CPU seconds that it used; when its other end is
closed for writing, the child is killed. When the asking process ends, the server and all its children end.

With `gpu` the children decode on a GPU (`ingest.decoding.gpu.device`). Such a server is not confined, as its children
must reach the driver; it reads no file. Each child confines itself, to what the driver needs, before it starts the GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any, NoReturn

import av

from ingest.decoding.confinement import Posture, filter_system_calls, isolate, load_submodules
from ingest.decoding.gpu import device
from ingest.decoding.protocol import DESCRIPTORS, ENDED, INT, LENGTH
from ingest.decoding.worker import Task, run_order

__all__ = ["main"]

_TASKS = {
    "decode": ("ingest.decoding.worker", "decode_file"),
    "cut": ("ingest.segments.cutter", "cut_file"),
    "clip": ("ingest.segments.joiner", "write_clip"),
    "encode": ("ingest.segments.transcoder", "encode_clip"),
    "probe": ("ingest.segments.transcoder", "probe_file"),
}
"""Module and function of each task. They are imported by name, since this package must not depend on others."""


@dataclass(slots=True)
class _Server:
    requests: socket.socket
    isolated: Posture
    """The layers that hold in this process, and so in its children."""
    tasks: dict[str, Task]
    """What children can do, by name; loaded before the server confined itself."""
    gpu_problem: str | None
    """None for a server without a GPU; else the empty string, or why the driver cannot be used."""
    started: bool = False
    """Whether this process is a child that tried to start the GPU."""
    children: dict[int, tuple[int, socket.socket]] = field(default_factory=dict)
    """By descriptor of the child's socket: its pid and the socket."""

    def serve(self) -> None:
        """Fork, kill and reap until the asking process closes its end."""
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self.requests, select.POLLIN)
        poll.register(woken, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self.requests.fileno():
                    if not self._fork(poll):
                        return
                elif descriptor == woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(woken, 4096)
                elif descriptor in self.children:  # its other end was closed: the child is to stop
                    os.kill(self.children[descriptor][0], signal.SIGKILL)
                    poll.unregister(descriptor)
            self._reap(poll)

    def _fork(self, poll: select.poll) -> bool:
        """Start what the next request asks for. False when there will be no more."""
        order, descriptors = self._request()
        if order is None:
            return False
        pid = os.fork()
        if pid == 0:
            self._run_child(order, descriptors)
        mine = socket.socket(fileno=descriptors.pop())
        for descriptor in descriptors:
            os.close(descriptor)
        self.children[mine.fileno()] = (pid, mine)
        poll.register(mine, select.POLLIN)
        with contextlib.suppress(OSError):  # nobody waits for it any more: the poll says so next
            mine.sendall(INT.pack(pid))
        return True

    def _request(self) -> tuple[Any, list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self.requests, LENGTH.size, DESCRIPTORS)
        while 0 < len(data) < LENGTH.size:
            data += self.requests.recv(LENGTH.size - len(data))
        if not data:
            return None, []
        body, (length,) = b"", LENGTH.unpack(data)
        while len(body) < length:
            more = self.requests.recv(length - len(body))
            if not more:
                return None, []
            body += more
        return json.loads(body), list(descriptors)

    def _run_child(self, order: Any, descriptors: list[int]) -> NoReturn:
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            source, memory, stdin, stdout, stderr, own = descriptors
            os.close(own)
            self.requests.close()
            for _, other in self.children.values():
                other.close()
            for target, descriptor in enumerate((stdin, stdout, stderr)):
                os.dup2(descriptor, target)
                os.close(descriptor)
            if self.gpu_problem == "":
                self._start_gpu()
            order["gpu_problem"] = self.gpu_problem
            code = run_order(order, source, memory, task=self.tasks[order["task"]], confine=self._confine)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(code)

    def _start_gpu(self) -> None:
        """Confine this child to what the driver needs, and start the GPU."""
        self.isolated = isolate(readable=device.readable(), writable=device.writable(), devices=device.devices())
        self.gpu_problem, self.started = device.start(), True

    def _confine(self) -> Posture:
        """Add the last layer, in a child; all the layers that hold then.

        What only the start of the GPU needed is taken away again, and everything where it failed.
        """
        layers = dict(self.isolated.layers)
        if self.started:
            left = ([device.DRIVER], device.devices()) if self.gpu_problem == "" else ([], [])
            layers["landlock"] = isolate(readable=left[0], devices=left[1]).layers["landlock"]
        return Posture({**layers, **filter_system_calls(devices=self.gpu_problem == "").layers})

    def _reap(self, poll: select.poll) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for descriptor, (child, own) in list(self.children.items()):
                if child == pid:
                    with contextlib.suppress(KeyError):
                        poll.unregister(descriptor)
                    with contextlib.suppress(OSError):
                        own.sendall(ENDED.pack(status, usage.ru_utime + usage.ru_stime))
                    own.close()
                    del self.children[descriptor]


def main() -> int:
    """Serve the socket that the command line names until it is closed."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the asking process decides
    load_submodules(av, but=("av.__main__", "av.datasets"))  # PyAV imports some when it opens a file of some kind
    tasks: dict[str, Task] = {
        name: getattr(importlib.import_module(module), function) for name, (module, function) in _TASKS.items()
    }
    problem = device.load_libraries() if sys.argv[2:] == ["gpu"] else None
    isolated = Posture({}) if problem == "" else isolate()
    posture = json.dumps(isolated.layers).encode()
    requests.sendall(LENGTH.pack(len(posture)) + posture)
    server = _Server(requests, isolated, tasks, problem)
    try:
        server.serve()
    finally:
        for pid, _ in server.children.values():
            os.kill(pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
