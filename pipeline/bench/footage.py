"""Footage for benchmarks: a synthetic surveillance camera, coded by x264 with its defaults, of any length by
repetition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["camera_footage", "repeated"]

_Plane = NDArray[np.int16]
_NOISE = 6


def camera_footage(path: Path, *, gop: int, frames: int, size: tuple[int, int] = (1920, 1080), seed: int = 0) -> None:
    """Write footage of a fixed camera at 30 frames a second: sensor noise, a tree in the wind, passing people and cars.

    Coded with x264's defaults (preset medium, CRF 23, three B frames with pyramid, three references), except for `gop`.

    Args:
        path: the file to write.
        gop: distance of intra frames.
        frames: number of frames.
        size: width and height in pixels.
        seed: seed of the noise and textures.
    """
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=30, options={"x264-params": f"keyint={gop}"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number, planes in enumerate(_scene(*size, frames, np.random.default_rng(seed))):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def repeated(source: Path, path: Path, *, times: int) -> None:
    """Write `source` `times` times in a row to `path`, without coding it again."""
    with av.open(str(path), "w") as out:
        into: Any = None
        shift = 0
        for _ in range(times):
            with av.open(str(source)) as read:
                stream = read.streams.video[0]
                into = into or out.add_stream_from_template(stream)
                end = 0
                for packet in read.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = into
                    out.mux(packet)
                shift += end


def _scene(width: int, height: int, frames: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """yuv420p planes, uint8[height · 3 / 2, width]."""
    ground = _texture(rng, height, width, ((160, 38.0), (40, 20.0), (10, 10.0), (3, 6.0)))
    colours = [_texture(rng, height // 2, width // 2, ((80, 12.0), (20, 6.0))) for _ in range(2)]
    noise = [rng.normal(0, 2, (height, width)).round().astype(np.int16) for _ in range(_NOISE)]
    unit = height / 1080
    # Height, width, left and top at the start, pixels a frame to the right and down, colour: people, then cars.
    things = [
        (
            _texture(rng, _even(h * unit), _even(w * unit), ((24, 40.0), (6, 20.0))),
            x * unit,
            y * unit,
            right,
            down,
            colour,
        )
        for h, w, x, y, right, down, colour in (
            (220, 90, 100, 500, 4.1, 0.3, 60),
            (240, 100, 1500, 420, -3.2, 0.2, 200),
            (160, 380, 0, 760, 9.3, 0.0, 90),
            (150, 360, 1900, 860, -11.7, 0.0, 170),
            (90, 40, 700, 300, 1.7, 0.4, 128),
            (260, 110, 1000, 600, 2.3, -0.5, 230),
        )
    ]
    top, left, tall, wide = (_even(v * unit) for v in (100, 1300, 520, 350))
    planes = np.empty((height * 3 // 2, width), np.uint8)
    for i in range(frames):
        luma, u, v = ground.copy(), colours[0].copy(), colours[1].copy()
        sway = np.round(4 * np.sin(i / 11 + np.arange(tall) / 60)).astype(int)
        for row in range(0, tall, 8):
            part = slice(top + row, min(top + row + 8, top + tall))
            luma[part, left : left + wide] = np.roll(ground[part, left : left + wide], sway[row], 1)
        for thing, x, y, right, down, colour in things:
            h, w = thing.shape
            at = _even((x + right * unit * i) % (width + w)) - w
            line = _even(min(max(0.0, y + (down * i) % 200 * unit), height - h))
            begin, end = max(0, at), min(width, at + w)
            if end > begin:
                luma[line : line + h, begin:end] = thing[:, begin - at : end - at]
                half = np.s_[line // 2 : (line + h) // 2, begin // 2 : end // 2]
                u[half], v[half] = colour, 255 - colour
        luma += np.roll(noise[i % _NOISE], i * 37 % height, 0)
        planes[:height] = luma.clip(0, 255)
        planes[height:] = np.concatenate([u.ravel(), v.ravel()]).clip(0, 255).reshape(-1, width)
        yield planes


def _even(value: float) -> int:
    return max(2, int(value) & ~1)


def _texture(rng: np.random.Generator, height: int, width: int, octaves: tuple[tuple[int, float], ...]) -> _Plane:
    """Make smooth noise of several sizes (in pixels) and strengths around mid-grey."""
    total = np.full((height, width), 120, np.float32)
    for step, strength in octaves:
        small = rng.normal(128, 40, (height // step + 2, width // step + 2)).clip(0, 255).astype(np.uint8)
        grown = av.VideoFrame.from_ndarray(small, format="gray").reformat(
            width, height, "gray", interpolation="BICUBIC"
        )
        total += strength / 40 * (grown.to_ndarray().astype(np.float32) - 128)
    return total.clip(16, 235).round().astype(np.int16)
