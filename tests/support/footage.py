"""Small video files of every kind, made by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

__all__ = ["make_video"]


def make_video(
    path: Path,
    *,
    rate: Fraction | int = 10,
    seconds: float = 5.0,
    size: tuple[int, int] = (64, 48),
    gop: int = 250,
    first: float = 0.0,
    times: list[float] | None = None,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    audio: bool = False,
    second_size: tuple[int, int] | None = None,
    aspect: Fraction | None = None,
    x264: str = "",
) -> list[float]:
    """Write a file whose frames are grey by their number and return their times in seconds, from 0.

    `times` overrides the rate (variable frame rate); `first` shifts every pts; `second_size` adds a smaller stream.
    """
    times = times or [i / float(rate) for i in range(round(seconds * float(rate)))]
    with av.open(str(path), "w") as out:
        options = {"preset": "ultrafast", "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0{x264}"}
        base = Fraction(1, 90_000) if codec == "libx264" else 1 / Fraction(rate)  # others take no finer one

        def add(width: int, height: int) -> Any:
            stream: Any = out.add_stream(codec, rate=Fraction(rate), options=options if codec == "libx264" else {})
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            stream.codec_context.time_base = base
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            return stream

        streams = [add(*size)] + ([add(*second_size)] if second_size else [])
        sound: Any = out.add_stream("aac", rate=16_000) if audio else None
        for i, at in enumerate(times):
            for stream in streams:
                grey = np.full((stream.height, stream.width, 3), (i * 7) % 256, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=pixel_format)
                frame.pts, frame.time_base = round((at + first) / base), base
                out.mux(stream.encode(frame))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16_000
            out.mux(sound.encode(silence))
            out.mux(sound.encode(None))
        for stream in streams:
            out.mux(stream.encode(None))
    return times
