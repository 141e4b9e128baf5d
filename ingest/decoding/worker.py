"""What runs in the process that reads one file: it decodes it, or does another `Task`.

The parent passes the open file and the shared memory as descriptors, so the process needs no path. Frames go through
the shared memory, at most `SLOTS` at once, messages through stdin and stdout (`ingest.decoding.protocol`). The process
applies its limits before it reads the file, and is killed when its parent dies.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from index.child_processes import end_with_parent
from index.errors import DecodeFailed, GpuUnavailable
from ingest.decoding.confinement import Posture, require
from ingest.decoding.decoder import RgbFrame, decode, open_video  # before the limits, which forbid writing .pyc files
from ingest.decoding.demuxer import FOOTAGE_FORMATS, PICTURE_FORMATS
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, ERRORS, FAILED, FRAME, FRAME_BODY, HEADER, OPENED, SLOTS

_MAX_MESSAGE = 1000
"""Longest error message, in characters."""

_CPU_SECONDS, _CPU_SECONDS_PER_MIB = 300, 300
"""CPU time that any file may use, and that it may use for each MiB. A still scene in 4K uses about 60 s a MiB."""


def _limit(limits: DecodeLimits, size: int, written: int, *, gpu: bool) -> None:
    end_with_parent()
    # CUDA reserves far more addresses than it uses; there, what can be written to is bounded, on top of its own.
    kind, used = (resource.RLIMIT_DATA, _writable_bytes()) if gpu else (resource.RLIMIT_AS, 0)
    resource.setrlimit(kind, (limits.memory_bytes + used, limits.memory_bytes + used))
    seconds = min(limits.cpu_seconds, _CPU_SECONDS + _CPU_SECONDS_PER_MIB * size // 2**20)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))


def _writable_bytes() -> int:
    """Bytes of this process's private writable memory, 0 if the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), 0)


class ParentPipes:
    """The pipes to and from the parent. Reading ends this process when the parent is gone."""

    def __init__(self, out: BinaryIO, orders: BinaryIO) -> None:
        self.out, self.orders = out, orders

    def send_json(self, kind: bytes, **values: Any) -> None:
        """Send a message whose body is JSON."""
        self.send(kind, json.dumps(values).encode())

    def send(self, kind: bytes, body: bytes) -> None:
        """Send a message."""
        self.out.write(HEADER.pack(kind, len(body)) + body)
        self.out.flush()

    def receive_order(self) -> Any:
        """Wait for the arguments of `decode`."""
        line = self.orders.readline()
        if not line:
            sys.exit(0)
        return json.loads(line)

    def wait_copied(self) -> None:
        """Wait until the parent has copied one more frame."""
        if not self.orders.read(1):
            sys.exit(0)


class _FrameRing:
    """A ring buffer of frames in the shared memory: as many slots as fit, at most `SLOTS`."""

    def __init__(self, memory: mmap.mmap, parent: ParentPipes) -> None:
        self._memory, self._parent = memoryview(memory), parent
        self._size, self._slots, self._next, self._unread = 0, 0, 0, 0

    def put(self, frame: RgbFrame) -> None:
        """Copy a frame into the next slot and announce it. Waits for the parent while all slots are in use."""
        row = frame.width * 3
        size = row * frame.height
        if size > len(self._memory):
            raise DecodeFailed(f"a frame of {frame.width} × {frame.height} is too large")
        while self._unread and (size != self._size or self._unread >= self._slots):
            self._parent.wait_copied()
            self._unread -= 1
        if size != self._size:
            self._size, self._slots, self._next = size, min(SLOTS, len(self._memory) // size), 0
        at = self._next * size
        if frame.stride == row:
            self._memory[at : at + size] = frame.data[:size]
        else:
            for line in range(frame.height):
                start = line * frame.stride
                self._memory[at + line * row : at + (line + 1) * row] = frame.data[start : start + row]
        self._next = (self._next + 1) % self._slots
        self._unread += 1
        self._parent.send(FRAME, FRAME_BODY.pack(frame.pts, at, frame.width, frame.height, frame.turns))


Task = Callable[[ParentPipes, Any, int, int, DecodeLimits], None]
"""What a process does once it is confined; its arguments are those of `decode_file`."""


def decode_file(parent: ParentPipes, order: Any, source: int, memory: int, limits: DecodeLimits) -> None:
    """Decode one file and send its frames to the parent.

    Args:
        order: `fps`; `pictures` if the file is a single picture and no footage; `gpu_problem` if a GPU was asked for,
            the empty string where this process has started it, else why not.
        source: descriptor of the file, open for reading.
        memory: descriptor of the shared memory.
    """
    ring = _FrameRing(mmap.mmap(memory, 0), parent)
    formats = PICTURE_FORMATS if order.get("pictures") else FOOTAGE_FORMATS
    problem = order.get("gpu_problem")
    if problem and limits.decoder == "gpu-only":
        raise GpuUnavailable(f'no GPU decodes video here ({problem}); install the driver, or set decoder = "gpu"')
    video = open_video(source, limits, fps=order["fps"], formats=formats, gpu=problem == "")
    demuxer = video.demuxer
    created = demuxer.created.isoformat() if demuxer.created else None
    rate = float(demuxer.stream.average_rate) if demuxer.stream.average_rate else None
    found = {"mode": video.mode, "first": video.first_pts, "duration": video.duration, "created": created, "rate": rate}
    parent.send_json(OPENED, **found, gpu=video.gpu, gpu_problem=(problem or video.gpu_problem)[:_MAX_MESSAGE])
    for frame in decode(video, limits, fps=order["fps"], **parent.receive_order()):
        ring.put(frame)
    steps = [(step.at, step.by, step.bridged) for step in demuxer.timeline.found]
    parent.send_json(DONE, mode=video.mode, discontinuities=steps, count=demuxer.timeline.count)


def run_order(order: Any, source: int, memory: int, *, task: Task, confine: Callable[[], Posture]) -> int:
    """Do what the parent ordered, or send it the error; returns the exit code.

    Args:
        order: the fields of `DecodeLimits` under `limits`, and what `task` needs; for a task that writes a file
            `output_bytes`, the most that it may write, and where `source` changes `input_bytes`, its size in all.
        source, memory: descriptors, see `decode_file`.
        task: what to do.
        confine: called once everything is loaded and before the first byte of the file is read; returns the layers
            that hold then.
    """
    parent = ParentPipes(os.fdopen(os.dup(1), "wb"), os.fdopen(0, "rb"))
    os.dup2(2, 1)  # what a library prints to stdout must not mix with the messages
    limits = DecodeLimits(**order["limits"])
    # A decoder writes no file; a task that writes one names the most bytes.
    size = max(os.fstat(source).st_size, order.get("input_bytes", 0))
    _limit(limits, size, order.get("output_bytes", 0), gpu=order.get("gpu_problem") == "")
    posture = confine()
    try:
        if limits.require_sandbox:
            require(posture)
        task(parent, order, source, memory, limits)
    except tuple(ERRORS.values()) as error:
        parent.send_json(FAILED, type=type(error).__name__, message=str(error))
    except MemoryError:
        message = f"needs more than {limits.memory_bytes} bytes of memory"
        parent.send_json(FAILED, type=DecodeFailed.__name__, message=message)
    except Exception as error:  # of FFmpeg or PyAV: nothing here fails for another reason than the file
        message = f"cannot be decoded ({type(error).__name__}: {error}); the frames before are kept"
        parent.send_json(FAILED, type=DecodeFailed.__name__, message=message[:_MAX_MESSAGE])
    return 0
