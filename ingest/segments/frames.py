"""From a segment's message to its frames: fetched within bounds, checked, and decoded in the sandbox like any file.

The one-frame-a-second grid is UTC's, see `index.second_grid`: the sampler is told how far into its second the segment
begins, and takes the first frame of every UTC second that the segment touches.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from index.errors import MessageInvalid, NoFrames, SourceDenied, SourceError, SourceNotFound, mask_url
from index.records import rfc3339
from index.second_grid import phase_of
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.kafka.settings import KafkaSettings
from ingest.messages import SegmentMessage
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import UrlPolicy

__all__ = ["SegmentFrames", "check_clock", "decode_segment", "read_segment"]

_BLOCK = 2**20
_PATIENCE_SECONDS = 60.0  # for a server that accepts and then says nothing
_SUFFIX = {"video/mp4": ".mp4", "video/mp2t": ".ts", "video/x-matroska": ".mkv"}


@dataclass(frozen=True, slots=True)
class SegmentFrames:
    """The sampled frames of one segment: UTC microseconds and pts seconds of each, and its pixels uint8[H, W, 3].

    `problem` says why decoding broke off after them, None when it did not.
    """

    captured_at: list[int]
    pts_seconds: list[float]
    pixels: list[NDArray[np.uint8]]
    decode_mode: str
    problem: str | None = None


def check_clock(message: SegmentMessage, *, ahead_seconds: float, now: float | None = None) -> None:
    """Raises MessageInvalid for a segment from more than `ahead_seconds` in the future: its camera's clock is wrong."""
    ahead = message.start_micros / 1e6 - (time.time() if now is None else now)
    if ahead > ahead_seconds:
        raise MessageInvalid(
            f"{message.stream}: the segment starts {ahead:.0f} s in the future, at {rfc3339(message.start_micros)}; set the "
            "camera's clock, then replay it or leave it"
        )


def read_segment(message: SegmentMessage, *, settings: KafkaSettings, limits: DecodeLimits) -> SegmentFrames:
    """Fetch, check and decode one segment.

    Raises:
        MessageInvalid: the bytes are not those that were promised.
        SourceDenied: a URI outside `settings.objects`. SourceNotFound: nothing there.
        NotVideo, NoFrames, DecodeFailed: nothing of it decodes.
    """
    with _local(message, settings) as path:
        try:
            return decode_segment(
                path, name=_name(message), start=message.start_micros, duration=message.duration, limits=limits
            )
        except SourceError as error:
            raise type(error)(str(error).replace(str(path), _name(message))) from None


def _name(message: SegmentMessage) -> str:
    return f"{message.stream} at {rfc3339(message.start_micros)}"


def decode_segment(path: Path, *, name: str, start: int, duration: float, limits: DecodeLimits) -> SegmentFrames:
    """The frames of a segment's file, one for each UTC second it touches.

    Args:
        name: what it is called in errors.
        start: UTC microseconds of its first frame.
        duration: seconds that it must not be longer than.

    Raises:
        MessageInvalid: it is longer. NotVideo, NoFrames, DecodeFailed: nothing of it decodes.
    """
    most = int(duration) + 2  # whole seconds, and one begun at either end
    times: list[int] = []
    pts_seconds: list[float] = []
    pixels: list[NDArray[np.uint8]] = []
    problem: str | None = None
    with Decoding(path, phase=phase_of(start), limits=limits) as decoding:
        info = decoding.info()
        try:
            for pts, frame in decoding:
                if len(times) == most:
                    raise MessageInvalid(
                        f"{name}: the segment is longer than the {duration:g} s it says; produce it again"
                    )
                times.append(start + round((pts - info.first) * 1e6))
                pts_seconds.append(pts)
                pixels.append(frame)
        except SourceError as error:
            if not times:
                raise
            problem = str(error).replace(str(path), name)
        mode = info.mode
    if not times:
        raise NoFrames(f"{path}: no frame decodes")
    return SegmentFrames(times, pts_seconds, pixels, mode, problem)


@contextmanager
def _local(message: SegmentMessage, settings: KafkaSettings) -> Iterator[Path]:
    """The segment as a temporary file of exactly the promised size and checksum."""
    if message.size > settings.object_bytes:
        raise MessageInvalid(
            f"{_name(message)}: {message.size} bytes are over kafka.object_bytes ({settings.object_bytes}); cut it shorter"
        )
    payload = message.payload()
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / f"segment{_SUFFIX[message.media_type]}"
        if payload is not None:
            path.write_bytes(payload)
        else:
            _fetch(message, settings, path)
        yield path


def _fetch(message: SegmentMessage, settings: KafkaSettings, path: Path) -> None:
    uri = str(message.uri)
    source = _allowed(uri, settings.objects)
    digest, size = hashlib.sha256(), 0
    try:
        with _opened(source, settings.objects) as remote, path.open("wb") as local:
            while block := remote.read(min(_BLOCK, message.size + 1 - size)):
                digest.update(block)
                size += len(block)
                local.write(block)
                if size > message.size:
                    break
    except SourceDenied:
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"{mask_url(uri)}: no such object; it was removed, or never written") from None
    except Exception as error:  # every file system of fsspec brings its own kind
        raise SourceNotFound(f"{mask_url(uri)}: cannot be fetched ({mask_url(str(error))})") from None
    if size != message.size or digest.hexdigest() != message.sha256:
        raise MessageInvalid(
            f"{mask_url(uri)}: not the {message.size} bytes that were promised, or their checksum differs; write it again"
        )


def _allowed(uri: str, prefixes: tuple[str, ...]) -> str | Path:
    """The URI when it lies under one of the prefixes; a path for a local one."""
    parts = urlsplit(uri)
    for prefix in prefixes:
        if parts.scheme == "file":
            base = prefix.removeprefix("file://")
            if "://" in base or parts.netloc not in ("", "localhost"):
                continue
            path = Path(unquote(parts.path)).resolve()
            if path.is_relative_to(Path(base).expanduser().resolve()):
                return path
        elif "://" in prefix and uri.startswith(prefix.rstrip("/") + "/"):
            steps = unquote(parts.path).split("/")
            if ".." not in steps and "@" not in parts.netloc:
                return uri
    raise SourceDenied(
        f"{mask_url(uri)}: not under a place that segments may be read from; allow it with kafka.objects, "
        f"which holds {', '.join(mask_url(p) for p in prefixes) or 'nothing'}"
    )


def _opened(source: str | Path, prefixes: tuple[str, ...]) -> IO[bytes]:
    if isinstance(source, Path):
        return source.open("rb")
    if urlsplit(source).scheme in ("http", "https"):
        # A message may come from anywhere: it reaches the hosts that were named, by a redirect too, and no other.
        hosts = tuple(host for prefix in prefixes if (host := urlsplit(prefix).hostname))
        policy = UrlPolicy(schemes=frozenset({"http", "https"}), hosts=hosts, private=True)
        return cast(IO[bytes], PinnedHttp(policy, timeout=_PATIENCE_SECONDS).open(source))
    import fsspec

    opened: IO[bytes] = fsspec.open(source, "rb").open()
    return opened
