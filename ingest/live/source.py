"""A live URL opened by FFmpeg, within the policy and its time-outs. Runs in the camera's own process.

HLS and plain HTTP never reach FFmpeg's network code: every playlist, segment and key is fetched by `PinnedHttp`, so an
entry that names a file or an address inside is refused before anything is opened. The other protocols get the address
that was checked, and a whitelist without `file`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av

from index.errors import NotVideo, SourceDenied, SourceError, SourceNotFound, SourceStalled, SourceUnsupported, mask_url
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import UrlPolicy, check_url

__all__ = ["LiveSource"]

_WHITELIST = {
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,rtcp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tls,tcp",
    "udp": "udp",
    "srt": "srt,udp",
}


class LiveSource:
    """One open source: `stream` is its video, `packets` are endless as long as it lasts.

    Args:
        transport: of RTSP, `tcp` or `udp`.
        connect, stall: seconds to open it, and to wait for a packet.

    Raises:
        SourceDenied: the policy. SourceNotFound: nobody answers. SourceUnsupported: this FFmpeg lacks the protocol.
        NotVideo: it answers with something else.
    """

    def __init__(self, url: str, policy: UrlPolicy, *, transport: str, connect: float, stall: float) -> None:
        self.shown = mask_url(url)
        self.scheme = urlsplit(url).scheme.lower()
        self._url, self._policy, self._transport, self._times = url, policy, transport, (connect, stall)
        self._http = PinnedHttp(policy, timeout=stall)
        self.container = self._opened()
        videos = [s for s in self.container.streams.video if s.codec_context is not None]
        if not videos:
            self.close()
            raise NotVideo(f"{self.shown}: there is no video in it")
        self.stream = max(videos, key=lambda s: s.codec_context.width * s.codec_context.height)

    def packets(self) -> Iterator[Any]:
        """Packets of the video as they come. Raises SourceNotFound when the source breaks off."""
        try:
            if self.scheme == "loop":
                yield from self._looped()
            else:
                for packet in self.container.demux(self.stream):
                    if packet.size:
                        yield packet
        except SourceError:
            raise
        except (av.error.ExitError, av.error.TimeoutError, TimeoutError):
            raise SourceStalled(f"{self.shown}: sends nothing for {self._times[1]:g} s") from None
        except (av.error.FFmpegError, OSError) as error:
            raise SourceNotFound(f"{self.shown}: broke off ({_said(error)})") from None

    def close(self) -> None:
        with suppress(av.error.FFmpegError, OSError, SourceError):
            self.container.close()

    # ---- opening -------------------------------------------------------------------------------------------------

    def _opened(self) -> Any:
        began = time.monotonic()
        try:
            return self._tried()
        except (SourceNotFound, NotVideo, TimeoutError) as error:
            # FFmpeg calls what it waited for in vain by many names.
            if isinstance(error, TimeoutError) or time.monotonic() - began > 0.9 * self._times[0]:
                raise SourceStalled(
                    f"{self.shown}: accepts and says nothing, or does not answer, for {self._times[0]:g} s"
                ) from None
            raise

    def _tried(self) -> Any:
        checked = check_url(self._url, self._policy)
        options: dict[str, Any] = {"timeout": self._times, "metadata_errors": "ignore"}
        try:
            if self.scheme == "loop":
                return av.open(self._path(), **options)
            if self.scheme in ("http", "https"):
                return self._opened_http(options)
            return av.open(checked.pinned, options=self._options(checked.pinned), **options)
        except av.error.ProtocolNotFoundError:
            raise SourceUnsupported(
                f"{self.shown}: this build of PyAV cannot read {self.scheme}://; install one whose FFmpeg can, "
                "or put a converter before it"
            ) from None
        except av.error.InvalidDataError as error:
            raise NotVideo(f"{self.shown}: hangs up, or answers with no video ({_said(error)})") from None
        except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as error:
            raise SourceNotFound(f"{self.shown}: lets nobody in with these credentials ({_said(error)})") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SourceNotFound(
                f"{self.shown}: cannot be opened ({_said(error)}); check the address and the camera"
            ) from None

    def _options(self, url: str) -> dict[str, str]:
        micros = str(round(max(self._times) * 1e6))  # PyAV's own time-outs are the sharp ones
        options = {"protocol_whitelist": _WHITELIST[self.scheme]}
        if self.scheme in ("rtsp", "rtsps"):
            options |= {"rtsp_transport": self._transport, "timeout": micros, "allowed_media_types": "video"}
            if self._transport == "udp":
                options |= {"buffer_size": str(4 * 2**20), "reorder_queue_size": "500"}
        elif self.scheme in ("rtmp", "rtmps"):
            original = urlsplit(self._url)
            app = original.path.strip("/").rpartition("/")[0]
            options |= {"rtmp_live": "live", "rw_timeout": micros}
            if "@" not in original.netloc:
                options["rtmp_tcurl"] = f"{self.scheme}://{original.netloc}/{app}"  # the name, for virtual hosts
        elif self.scheme == "udp":
            options |= {"fifo_size": "200000", "overrun_nonfatal": "1", "buffer_size": str(4 * 2**20)}
        return options

    def _opened_http(self, options: dict[str, Any]) -> Any:
        first = PinnedHttp(self._policy, timeout=self._times[1], max_bytes=None).open(self._url)
        playlist = "mpegurl" in first.type or urlsplit(self._url).path.endswith((".m3u8", ".m3u"))
        if not playlist:
            return av.open(first, **options)
        where = str(first.name)
        first.close()
        return av.open(
            where,
            format="hls",
            io_open=self._entry,
            options={
                "protocol_whitelist": "http,https,tcp,tls,crypto",
                "http_persistent": "0",
                "live_start_index": "-1",
                "max_reload": "1000",
            },
            **options,
        )

    def _entry(self, url: str, flags: int, options: dict[str, str]) -> Any:
        """What a playlist names, or the playlist again."""
        if flags & 2:
            raise SourceDenied(f"{self.shown}: its playlist wants to write; nothing is written")
        headers: dict[str, str] = {}
        start, end = options.get("offset"), options.get("end_offset")
        if (start is not None and start != "0") or end:
            headers["Range"] = f"bytes={start or 0}-{int(end) - 1 if end else ''}"
        if urlsplit(url).scheme.lower() not in ("http", "https"):
            raise SourceDenied(f"{self.shown}: its playlist names {mask_url(url)}, which may not be read from there")
        return self._http.open(url, headers)

    # ---- a file without an end -----------------------------------------------------------------------------------

    def _path(self) -> str:
        path = Path(self._url.removeprefix("loop:").removeprefix("//")).expanduser()
        if not path.is_file():
            raise SourceNotFound(f"{self.shown}: no such file")
        return str(path)

    def _looped(self) -> Iterator[Any]:
        """The file over and over, each packet at its time."""
        began, shift, ends = time.monotonic(), 0.0, 0.0
        zero: float | None = None
        while True:
            got = 0
            for packet in self.container.demux(self.stream):
                if not packet.size or packet.pts is None:
                    continue
                got += 1
                base = float(packet.time_base)
                at = (packet.dts if packet.dts is not None else packet.pts) * base
                if zero is None:
                    zero = at
                time.sleep(max(0.0, began + at - zero + shift - time.monotonic()))
                ticks = round(shift / base)
                ends = max(ends, packet.pts * base + (packet.duration or 0) * base + shift)
                packet.pts += ticks
                if packet.dts is not None:
                    packet.dts += ticks
                yield packet
            if not got:
                raise NotVideo(f"{self.shown}: the file holds no packet of video")
            shift = ends - (zero or 0.0)
            self.container.close()
            self.container = av.open(self._path(), metadata_errors="ignore")
            self.stream = next(s for s in self.container.streams.video if s.codec_context is not None)


def _said(error: BaseException) -> str:
    return mask_url(str(getattr(error, "strerror", None) or error))
