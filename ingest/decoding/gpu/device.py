"""The video decoder of an NVIDIA GPU (NVDEC), as FFmpeg and PyAV use it, inside a confined process.

A process gets the driver's libraries, then its confinement, then a CUDA context, then its last layer, and only then the
first byte of a file:

1. `load_libraries` in the fork server: a confined process can load none.
2. `isolate` in the child, with `readable`, `writable` and `devices`, which CUDA needs to start.
3. `start`: CUDA contexts do not survive a fork. It decodes a made picture, so that whatever the driver loads at first
   use is loaded.
4. `isolate` again, with `DRIVER` and `devices`, which the driver opens anew for each decoder, and nothing else.
5. `filter_system_calls` for all threads; the driver has started some, which Landlock's second layer does not reach.

What this module does not know: which files are decoded, and what happens where there is no GPU.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from glob import glob
from typing import Any

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

__all__ = ["DRIVER", "devices", "hardware", "load_libraries", "on_gpu", "readable", "refusal", "start", "writable"]

DRIVER = "/proc/driver/nvidia"
"""What the driver says of itself, and reads before it opens a device."""
_LIBRARIES = ("libcuda.so.1", "libnvcuvid.so.1")
_TRIED_PACKETS = 200
_FORMAT = "cuda"
"""FFmpeg's name of frames that are in the memory of the GPU."""
_kept: list[Any] = []  # the CUDA context lives as long as the process


def load_libraries() -> str:
    """Load the driver's libraries into this process. Returns the empty string, or why there is no decoder."""
    if "cuda" not in hwdevices_available():
        return "this build of FFmpeg has no CUDA"
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return f"no driver: {error}"
    return "" if devices() else "no device /dev/nvidia*"


@cache
def devices() -> list[str]:
    """The driver's device files, which a process that decodes on the GPU opens, reads, writes and controls.

    Found once, by `load_libraries`: a confined process cannot list `/dev`.
    """
    return sorted(glob("/dev/nvidia*"))


def readable() -> list[str]:
    """What CUDA reads besides when it starts in this process: facts of the system, and this process's own."""
    return [
        f"/proc/{os.getpid()}",
        "/proc/driver",
        "/proc/devices",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/sys/vm",
        "/sys/bus/pci",
        "/sys/devices",
        "/sys/module",
    ]


def writable() -> list[str]:
    """What CUDA writes when it starts: the names of this process's threads."""
    return [f"/proc/{os.getpid()}/task"]


def hardware() -> HWAccel:
    """Settings with which `av.open` decodes on the GPU. Frames stay there until they are converted."""
    return HWAccel("cuda", allow_software_fallback=True, is_hw_owned=True)


def start() -> str:
    """Make a CUDA context and decode a made picture. Returns the empty string, or why that fails."""
    try:
        decoder = av.CodecContext.create("h264", "r", hwaccel=hardware())
        _kept.append(decoder)
        frames = [frame for packet in _picture() for frame in decoder.decode(packet)]
        frames += decoder.decode(None)
    except (av.error.FFmpegError, OSError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    if not frames or not on_gpu(frames[0]):
        return "the driver decodes no H.264"
    return ""


def on_gpu(frame: Any) -> bool:
    """Whether an `av.VideoFrame` is in the memory of the GPU."""
    return bool(frame.format.name == _FORMAT)


def refusal(context: Any, packets: list[Any]) -> str:
    """Why a stream is not decoded on the GPU although its `av.CodecContext` was opened with `hardware`.

    Decodes packets until a frame comes out, and resets the decoder.

    Args:
        context: the stream's context.
        packets: packets from the start of the stream, or from an intra frame.

    Returns:
        The empty string where frames come from the GPU.
    """
    name = context.name
    if not context.is_hwaccel:
        return f"the GPU has no decoder for {name}"
    found = None
    for packet in packets[:_TRIED_PACKETS]:
        try:
            found = next(iter(context.decode(packet)), None)
        except (av.error.FFmpegError, OSError):
            continue
        if found is not None:
            break
    context.flush_buffers()
    if found is not None and on_gpu(found):
        return ""
    kind = f"{found.format.name}, {found.width} × {found.height}" if found is not None else "no frame came out"
    return f"the GPU cannot decode this {name} ({kind})"


def _picture() -> list[Any]:
    """Packets of two grey pictures in H.264."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 256, 256, "yuv420p"
    encoder.framerate, encoder.options = 1, {"preset": "ultrafast", "tune": "zerolatency", "threads": "1"}
    packets = []
    for number in range(2):
        frame = av.VideoFrame(256, 256, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        frame.pts = number
        packets += encoder.encode(frame)
    return [*packets, *encoder.encode(None)]
