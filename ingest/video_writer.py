"""Writer of H.264 MP4 files from RGB frames, with the UTC start in the container."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["VideoWriter"]


class VideoWriter:
    """A context manager that writes one file. The file has the suffix `.part` until the block ends without an error.

    Args:
        path: of the file.
        width: of a frame, in pixels.
        height: of a frame, in pixels.
        fps: frames a second.
        gop: frames from one sync point to the next.
        created: time of the first frame, written as the container's creation time.
    """

    def __init__(self, path: Path, width: int, height: int, *, fps: int = 10, gop: int = 20, created: datetime) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.shape = (height, width, 3)
        self._container = av.open(str(self.part), "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata["creation_time"] = created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        options = {"preset": "veryfast", "crf": "24", "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0"}
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps), options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.thread_count = 1
        self._written = 0

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Append one frame, RGB uint8[height, width, 3].

        Raises:
            ValueError: the frame has another shape or dtype.
        """
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.shape}, got {pixels.dtype} {pixels.shape}")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = self._written
        self._written += 1
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if kind is None:
            self.part.replace(self.path)
        else:
            self.part.unlink(missing_ok=True)
