"""Sequential decoding that does no more work than one frame a second needs.

Three modes, the first that the start of the footage allows:
- `keyframes`: key frames stand at most a second apart, so each second has one; only they are decoded. The frame of
  second k is then the first key frame at or after k.
- `nonref`: frames no other frame refers to are skipped while what is left stands at most 0.2 s apart; the frame of
  second k may be that much later.
- `all`: every frame is decoded.
Seeking each second instead is slower than decoding everything where key frames are far apart. This module runs inside
the sandbox (`ingest.child`); it knows nothing of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from index.errors import DecodeFailed, NoFrames, NotVideo
from ingest.limits import Limits
from ingest.sampler import Sampler

__all__ = ["Opened", "decode", "open_video"]

_PROBE_PACKETS, _PROBE_SECONDS = 1500, 12.0
_NONREF_GAP = 0.2


@dataclass(slots=True)
class Opened:
    """A file whose video stream was chosen and whose mode was decided."""

    container: Any
    stream: Any
    mode: str
    first_pts: float
    duration: float | None
    created: datetime | None


def open_video(path: str, limits: Limits, *, fps: float = 1.0, strict: bool = False) -> Opened:
    """Open a file and decide how to decode it.

    Args:
        strict: key frames alone will do only where they stand no more than a second apart, not even by half a frame,
            as 30 frames at 29.97 a second do: one second in a thousand would have none.

    Raises:
        NotVideo: no container, or none with a video stream.
        DecodeFailed: frames larger than `limits.pixels`.
    """
    container, stream = _open(path)
    context = stream.codec_context
    if context.width * context.height > limits.pixels:
        raise DecodeFailed(f"frames of {context.width} × {context.height} are over the limit of {limits.pixels} pixels")
    mode, first = _probe(container, stream, fps, strict)
    duration = float(container.duration / av.time_base) if container.duration else None
    created = _creation_time(container.metadata)
    container.close()
    if mode == "all" and _skippable(path, fps):
        mode = "nonref"
    container, stream = _open(path)  # from the start again: not every format can seek back
    stream.thread_type = "AUTO"
    return Opened(container, stream, mode, first, duration, created)


def _open(path: str) -> tuple[Any, Any]:
    try:
        container = av.open(path, metadata_errors="ignore")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise NotVideo(f"not a video file ({getattr(error, 'strerror', None) or error})") from error
    videos = [s for s in container.streams.video if not _is_picture(s) and s.codec_context is not None]
    if not videos:
        container.close()
        raise NotVideo("there is no video stream in it")
    # The one marked default, then the largest: thumbnails and previews are neither.
    return container, max(videos, key=lambda s: (_is_default(s), s.codec_context.width * s.codec_context.height))


def _is_picture(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_default(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _creation_time(metadata: dict[str, str]) -> datetime | None:
    try:
        created = datetime.fromisoformat(metadata.get("creation_time", "").strip())
    except ValueError:
        return None
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def _probe(container: Any, stream: Any, fps: float, strict: bool) -> tuple[str, float]:
    """The mode, and the first pts in seconds, from the packets at the start of the file."""
    keys: list[float] = []
    times: list[float] = []
    try:
        for count, packet in enumerate(container.demux(stream)):
            at = packet.pts if packet.pts is not None else packet.dts
            if at is None:
                continue
            seconds = float(at * packet.time_base)
            times.append(seconds)
            if packet.is_keyframe:
                keys.append(seconds)
            if count > _PROBE_PACKETS or seconds - times[0] > _PROBE_SECONDS:
                break
    except (av.error.FFmpegError, OSError):
        pass  # what is broken will show while decoding
    if not times:
        return "all", 0.0
    first = min(times)
    frame = float(1 / stream.average_rate) if stream.average_rate else 0.04
    slack = 1e-4 if strict else frame / 2
    if len(keys) >= 3 and _widest(keys) <= 1 / fps + slack and keys[0] - first < 1e-6:
        return "keyframes", first
    return "all", first


def _skippable(path: str, fps: float) -> bool:
    """Whether the frames that others refer to stand close enough: seen by decoding the first two seconds.

    Containers seldom say which frames are referred to, so the decoder is asked.
    """
    container, stream = _open(path)
    stream.codec_context.skip_frame = _SKIP["nonref"]
    times: list[float] = []
    try:
        for frame in container.decode(stream):
            if frame.pts is None:
                return False
            times.append(float(frame.pts * frame.time_base))
            if times[-1] - times[0] > 2.0 or len(times) > 300:
                break
    except (av.error.FFmpegError, OSError):
        return False
    finally:
        container.close()
    return len(times) > 2 and _widest(times) <= _NONREF_GAP / fps


def _widest(times: list[float]) -> float:
    ordered = sorted(times)
    return max(b - a for a, b in pairwise(ordered))


_SKIP = {"keyframes": "NONKEY", "nonref": "NONREF", "all": "DEFAULT"}


def decode(
    opened: Opened, limits: Limits, *, fps: float = 1.0, after: float = 0.0, phase: float | None = None
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """(pts in seconds, pixels uint8[H, W, 3]) of the sampled frames, ascending.

    Args:
        after: skip that many seconds of stream time (one seek to the key frame before).
        phase: seconds between the grid's second 0 and the first frame, in [0, 1); 0 when None.

    Raises:
        NoFrames: nothing decodes at all.
        DecodeFailed: decoding broke off; what came before has been yielded.
    """
    sampler = Sampler(fps, first=opened.first_pts - (phase or 0.0), after=after)
    stream = opened.stream
    stream.codec_context.skip_frame = _SKIP[opened.mode]
    rate = float(stream.average_rate or 25)
    if after > 0:
        target = opened.first_pts + after
        opened.container.seek(int(target / stream.time_base), stream=stream, backward=True)
    taken, last, any_frame = 0, opened.first_pts - 1 / rate, False
    problem: Exception | None = None
    frames = _frames(opened.container, stream)
    while True:
        try:
            frame = next(frames)
        except StopIteration:
            break
        except (av.error.FFmpegError, OSError) as error:
            problem = error
            break
        any_frame = True
        pts = float(frame.pts * frame.time_base) if frame.pts is not None else last + 1 / rate
        promised = {"keyframes": 2.0, "nonref": 0.5}.get(opened.mode, pts)
        if taken > 1 and pts - last > promised / fps and opened.mode != "all":
            opened.mode = "all"  # what is decoded has become rarer than the start of the file promised
            stream.codec_context.skip_frame = _SKIP["all"]
        last = pts
        if not sampler.take(pts):
            continue
        if frame.width * frame.height > limits.pixels:
            raise DecodeFailed(f"a frame of {frame.width} × {frame.height} is over the limit of {limits.pixels} pixels")
        if taken >= limits.frames:
            raise DecodeFailed(f"more than {limits.frames} frames; split the file")
        taken += 1
        yield pts, _upright(frame, stream)
    if not any_frame and after == 0:
        raise NoFrames(f"no frame decodes ({problem or 'the video stream is empty'})")
    if problem is not None:
        raise DecodeFailed(
            f"decoding broke off after {last - opened.first_pts:.0f} s ({problem}); what came before is kept"
        )
    if (
        opened.duration
        and last - opened.first_pts + after < opened.duration - 5
        and last - opened.first_pts < opened.duration - 5
    ):
        raise DecodeFailed(
            f"the file promises {opened.duration:.0f} s and decodes {last - opened.first_pts:.0f} s; it is probably cut off, "
            "what decodes is kept"
        )


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames; packets that do not decode are passed over as long as others follow."""
    broken = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            broken += 1
            if broken > 10_000:
                raise


def _upright(frame: Any, stream: Any) -> NDArray[np.uint8]:
    """RGB with square pixels, turned as the container says."""
    aspect = frame.sample_aspect_ratio if hasattr(frame, "sample_aspect_ratio") else stream.sample_aspect_ratio
    aspect = Fraction(aspect) if aspect else Fraction(1)
    width = frame.width if aspect <= 0 else max(1, round(frame.width * aspect))
    pixels: NDArray[np.uint8] = frame.reformat(width=width, height=frame.height, format="rgb24").to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
