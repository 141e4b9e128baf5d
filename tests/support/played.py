"""Stores whose frames are of real video files, made without encoders; and what a video file has."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.records import ClockSource, FrameRecords
from index.store import Store
from ingest.chunks import source_digest
from ingest.segments.names import segment_name
from tests.support.records import BEGAN, SECOND, make_records, make_segment

__all__ = ["decoded", "jpeg", "record_segments", "render_pattern", "store_file"]


def render_pattern(path: Path, *, seconds: int, codec: str = "libx264", size: str = "160x120", rate: int = 10) -> Path:
    """A file in which the grey of the picture tells the second: 8 × (second + 1), by the ffmpeg of this machine."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {
        "libx264": ["-g", str(rate), *(["-bf", "0"] if path.suffix == ".mp4" else [])],
        "libx265": ["-g", str(rate), "-x265-params", "log-level=none:bframes=0"],
    }.get(codec, [])
    source = f"color=black:size={size}:rate={rate}:duration={seconds},format=gray,geq=lum='8*(floor(T)+1)'"
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source, "-pix_fmt", pixels, "-c:v", codec, *options, path],
        check=True,
        timeout=600,
    )
    return path


def jpeg(grey: int, size: tuple[int, int] = (160, 120)) -> bytes:
    """A grey picture."""
    out = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(out, "JPEG")
    return out.getvalue()


def store_file(
    store: Store,
    path: Path,
    stream: str,
    seconds: int,
    *,
    chunk: int = 10,
    clock: ClockSource = "given",
    uri: str = "",
    began: int = BEGAN,
) -> str:
    """Store the seconds of a file as `ingest` does, with random vectors; returns what identifies the file."""
    source = source_digest(path, stream, None if clock == "mtime" else began)
    for number in range((seconds + chunk - 1) // chunk):
        first, last = number * chunk, min(seconds, (number + 1) * chunk)
        made = make_records(stream, began + first * SECOND, last - first, seed=number)
        values: dict[str, Any] = {name: getattr(made, name) for name in made.__slots__}
        values["pictures"] = [jpeg(8 * (second + 1)) for second in range(first, last)]
        records = FrameRecords(**{**values, "clock_source": clock})
        segment = make_segment(records, number, source)
        update = {"uri": uri or str(path), "clock_source": clock, "final": last == seconds}
        store.append(segment.model_copy(update=update), records)
    return source


def record_segments(folder: Path, path: Path, stream: str, seconds: int, *, length: int = 5, began: int = BEGAN) -> str:
    """Recordings of `length` seconds each, cut from a file; returns the URL of their folder."""
    for first in range(0, seconds, length):
        kind = "video/mp4"
        name = folder / segment_name(stream, began + first * SECOND, float(length), kind)  # type: ignore[arg-type]
        name.parent.mkdir(parents=True, exist_ok=True)
        cut: list[str | Path] = [
            "-ss",
            str(first),
            "-t",
            str(length),
            "-i",
            path,
            "-c",
            "copy",
            "-avoid_negative_ts",
            "make_zero",
        ]
        subprocess.run(["ffmpeg", "-v", "error", "-y", *cut, name], check=True, timeout=600)
    return folder.as_uri()


def decoded(data: bytes) -> tuple[str, list[float], list[NDArray[np.uint8]]]:
    """Codec, times in seconds and pictures, uint8[height, width, 3], of a video."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)
        ]
        return str(stream.codec_context.name), [at for at, _ in frames], [pixels for _, pixels in frames]
