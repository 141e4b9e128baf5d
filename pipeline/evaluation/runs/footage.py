"""Videos of a benchmark as streams of a store: found, ingested once, and described where they cannot be read.

The stream of a video is named by the benchmark and the path of the file below the data folder, and its first frame has
the time `EPOCH`, so that capture times are seconds of the video. A video that the store has is not opened again; its
file may be deleted. A folder of pictures becomes a video first.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from index.errors import SourceError
from index.records import to_micros
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.file_ingest import ingest_sources
from ingest.video_writer import VideoWriter
from model.encoders.encoder import Encoders
from pipeline.evaluation.benchmarks.benchmark import Benchmark, Item
from pipeline.pictures.uploaded import read_picture

__all__ = ["EPOCH", "Footage", "VideoInStore", "stream_name"]

EPOCH = to_micros(datetime(2001, 1, 1, tzinfo=UTC))
"""Time of the first frame of every video, UTC microseconds."""

_PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True)
class VideoInStore:
    """A video that was looked for."""

    stream: str | None
    """Its stream; None if it cannot be asked about."""
    missing: bool
    """Whether there is no file."""
    problem: str | None
    """Why it cannot be asked about, or what is wrong with it nevertheless."""
    rate: float | None = None
    """Frames a second of the file; None unless it was looked up."""


def stream_name(benchmark: str, path: Path) -> str:
    """The stream of a video: the benchmark and the path below the data folder, without its suffix."""
    text = "_".join(path.with_suffix("").parts if path.suffix else path.parts)
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if slug != text or len(slug) > 100:
        slug = f"{slug[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return f"{benchmark}-{slug}"


class Footage:
    """The videos of one benchmark in one store.

    Args:
        benchmark: the adapter.
        data: folder of the user.
        store: an open store.
        encoders: gives the encoders of the store when the first video is ingested.
        limits: of the decoder.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        data: Path,
        store: Store,
        encoders: Callable[[], Encoders],
        limits: DecodeLimits | None = None,
    ) -> None:
        self.benchmark, self.data, self.store = benchmark, data, store
        self.encoders, self.limits = encoders, limits
        self._found: dict[str, VideoInStore] = {}

    def find(self, item: Item) -> VideoInStore:
        """The item's video, which is ingested if the store does not have it.

        Raises:
            StoreError, ModelError: the store cannot append.
        """
        paths = self.benchmark.video_paths(self.data, item)
        key = str(paths[0])
        if key not in self._found:
            self._found[key] = self._find(item, paths)
        return self._found[key]

    def _find(self, item: Item, paths: list[Path]) -> VideoInStore:
        existing = next((path for path in paths if path.exists()), None)
        for path in paths if existing is None else [existing]:
            stream = stream_name(self.benchmark.name, path.relative_to(self.data))
            final = [segment for segment in self.store.segments(stream) if segment.final]
            if final:
                return VideoInStore(stream, False, final[-1].problem, self._rate(item, existing))
        if existing is None:
            return VideoInStore(None, True, f"no file of the video {item.video}, such as {paths[0]}")
        stream = stream_name(self.benchmark.name, existing.relative_to(self.data))
        try:
            problem = self._ingest(existing, stream, float(item.extra.get("pictures_per_second", 3.0)))
        except SourceError as error:
            return VideoInStore(None, False, str(error))
        if not any(segment.frames for segment in self.store.segments(stream)):
            return VideoInStore(None, False, problem or f"{existing}: has no readable frame")
        return VideoInStore(stream, False, problem, self._rate(item, existing))

    def _ingest(self, path: Path, stream: str, pictures_per_second: float) -> str | None:
        if path.is_dir():
            with tempfile.TemporaryDirectory() as folder:
                video = Path(folder) / "pictures.mp4"
                _write_pictures(path, video, pictures_per_second)
                return self._ingest(video, stream, pictures_per_second)
        report = ingest_sources(
            [path], store=self.store, encoders=self.encoders(), stream=stream, start=EPOCH, limits=self.limits
        )
        return report.files[0].problem if report.files else f"{path}: is not a video"

    def _rate(self, item: Item, path: Path | None) -> float | None:
        """Frames a second of a file, looked up only where evidence is given in frames."""
        if path is None or path.is_dir() or not item.frames:
            return None
        try:
            with Decoding(path, limits=self.limits) as decoding:
                return decoding.info().rate
        except SourceError:
            return None


def _write_pictures(folder: Path, video: Path, rate: float) -> None:
    """Make a video of a folder's pictures, in the order of their names. Raises SourceError if one is not readable."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not paths:
        raise SourceError(f"{folder}: has no pictures")
    height, width = (side // 2 * 2 for side in read_picture(paths[0]).shape[:2])
    with VideoWriter(video, width, height, fps=max(1, round(rate)), created=datetime(2001, 1, 1, tzinfo=UTC)) as writer:
        for path in paths:
            pixels = read_picture(path)[:height, :width]
            if pixels.shape[:2] != (height, width):
                raise SourceError(f"{path}: is smaller than the folder's first picture")
            writer.write(pixels)
