"""Reading of the segment that a Kafka message describes: clock check, download within bounds, checksum, decoding.

A segment's bytes are in the message itself or in an object that the message names by URI. A message is untrusted: its
URI is read only under one of the prefixes of `kafka.objects`, and no more bytes than the message announces.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast
from urllib.parse import unquote, urlsplit

from index.delta.objects import object_reason, open_object
from index.errors import MessageInvalid, SourceDenied, SourceNotFound, mask_url, shown_text
from index.records import rfc3339
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.settings import KafkaSettings
from ingest.messages import SegmentMessage
from ingest.segments.frames import PartEncoder, SegmentFrames, decode_segment
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import UrlPolicy

__all__ = ["check_clock", "read_segment"]

_BLOCK_BYTES = 2**20
_TIMEOUT_SECONDS = 60.0
_SUFFIX = {"video/mp4": ".mp4", "video/mp2t": ".ts", "video/x-matroska": ".mkv"}


def check_clock(message: SegmentMessage, *, ahead_seconds: float, now: float | None = None) -> None:
    """Check that a segment does not start in the future.

    Args:
        ahead_seconds: how far the clock of a camera may be ahead.
        now: seconds since the epoch; the system's clock by default.

    Raises:
        MessageInvalid: the segment starts more than `ahead_seconds` after `now`.
    """
    ahead = message.start_micros / 1e6 - (time.time() if now is None else now)
    if ahead > ahead_seconds:
        raise MessageInvalid(
            f"{_name(message)}: the segment starts {ahead:.0f} s in the future; set the camera's clock, then replay or "
            "discard the message"
        )


def read_segment(
    message: SegmentMessage, *, settings: KafkaSettings, limits: DecodeLimits, parts: PartEncoder | None = None
) -> SegmentFrames:
    """Fetch, check and decode one segment.

    Args:
        parts: encodes it in parts while it is decoded, see `decode_segment`.

    Raises:
        MessageInvalid: size or checksum differ from the message's, or the segment is longer than its duration.
        SourceDenied: the URI is not under a prefix of `settings.objects`.
        SourceNotFound: the object does not exist or cannot be read.
        NotVideo, NoFrames, DecodeFailed: no frame decodes.
    """
    with _fetched(message, settings) as path:
        return decode_segment(
            path,
            name=_name(message),
            start=message.start_micros,
            duration=message.duration,
            limits=limits,
            parts=parts,
        )


def _name(message: SegmentMessage) -> str:
    return f"{message.stream} at {rfc3339(message.start_micros)}"


@contextmanager
def _fetched(message: SegmentMessage, settings: KafkaSettings) -> Iterator[Path]:
    """The segment as a temporary file whose size and checksum are the message's."""
    if message.size > settings.object_bytes:
        raise MessageInvalid(
            f"{_name(message)}: {message.size} bytes exceed kafka.object_bytes ({settings.object_bytes}); cut shorter "
            "segments"
        )
    payload = message.payload()
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        path = Path(folder) / f"segment{_SUFFIX[message.media_type]}"
        if payload is not None:
            path.write_bytes(payload)
        else:
            _download(message, settings, path)
        yield path


def _download(message: SegmentMessage, settings: KafkaSettings, path: Path) -> None:
    uri = str(message.uri)
    source = _allowed(uri, settings.objects)
    digest, size = hashlib.sha256(), 0
    try:
        with _open(source, settings.objects) as remote, path.open("wb") as local:
            while block := remote.read(min(_BLOCK_BYTES, message.size + 1 - size)):
                digest.update(block)
                size += len(block)
                local.write(block)
                if size > message.size:
                    break
    except SourceDenied:
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"{mask_url(uri)}: no such object; it was deleted or never written") from None
    except Exception as error:  # each fsspec file system raises its own exception types
        raise SourceNotFound(f"{mask_url(uri)}: cannot be fetched ({object_reason(error)})") from None
    if size != message.size or digest.hexdigest() != message.sha256:
        raise MessageInvalid(
            f"{mask_url(uri)}: the object does not have the {message.size} bytes of its message, or their checksum "
            "differs; write it again"
        )


def _allowed(uri: str, prefixes: tuple[str, ...]) -> str | Path:
    """The URI if it is under one of the prefixes, as a path if it is local. Raises SourceDenied."""
    try:
        allowed = _under_prefix(uri, prefixes)
    except (OSError, ValueError, RuntimeError):  # a path with a NUL byte, too long a name, a loop of links
        allowed = None
    if allowed is None:
        raise SourceDenied(
            f"{shown_text(uri)}: segments may not be read from there; allow it with kafka.objects, "
            f"which holds {', '.join(mask_url(p) for p in prefixes) or 'nothing'}"
        )
    return allowed


def _under_prefix(uri: str, prefixes: tuple[str, ...]) -> str | Path | None:
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
    return None


def _open(source: str | Path, prefixes: tuple[str, ...]) -> IO[bytes]:
    if isinstance(source, Path):
        return source.open("rb")
    if urlsplit(source).scheme in ("http", "https"):
        # Redirects, too, may lead only to the hosts of the prefixes.
        hosts = tuple(host for prefix in prefixes if (host := urlsplit(prefix).hostname))
        policy = UrlPolicy(schemes=frozenset({"http", "https"}), hosts=hosts, private=True)
        return cast(IO[bytes], PinnedHttp(policy, timeout=_TIMEOUT_SECONDS).open(source))
    return cast(IO[bytes], open_object(source))
