"""Live sources: a URL opened by FFmpeg, within the URL policy and with time-outs. Runs in the camera's own process.

HLS and plain HTTP never reach FFmpeg's network code: every playlist, segment and key is fetched by `PinnedHttp`, so a
playlist entry that names a file or a private address is rejected before anything is opened. What is a playlist is
decided by its content, not by its name or type, and no other format that names further sources is read. The other
protocols receive the address that was checked, and a whitelist without `file`.

FFmpeg follows redirects of RTSP servers by itself. A source whose connection leads to another address than the one that
was checked is closed before a packet of it is read. It follows none of an RTMP server.
"""

from __future__ import annotations

import io
import os
import re
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av

from index.errors import NotVideo, SourceDenied, SourceError, SourceNotFound, SourceStalled, SourceUnsupported, mask_url
from ingest.decoding.demuxer import FOOTAGE_FORMATS
from ingest.sources.pinned_http import PinnedHttp, Response
from ingest.sources.url_policy import UrlPolicy, check_url

__all__ = ["LiveSource", "foreign_entry", "loop_path"]

_WHITELIST = {
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,rtcp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tls,tcp",
    "udp": "udp",
    "srt": "srt,udp",
}
_PLAYLIST = b"#EXTM3U"
_FOREIGN = re.compile(rb"^(?!https?:)[a-z][a-z0-9+.-]{0,30}:[^\r\n]{0,200}", re.MULTILINE | re.IGNORECASE)
_MOST_DESCRIPTORS = 4096


class _Entry:
    """What a playlist names, as FFmpeg reads it. An error is kept, and looks to FFmpeg like the end of the file.

    PyAV keeps one exception of a callback, and prints the traceback of each further one.
    """

    def __init__(self, fetch: Callable[[], Response | io.BytesIO], keep: Callable[[Exception], None]) -> None:
        self._keep = keep
        self._body: Response | io.BytesIO | None = None
        with self._kept():
            self._body = fetch()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end, and after an error."""
        data = b""
        with self._kept():
            data = b"" if self._body is None else self._body.read(size)
        return data

    def close(self) -> None:
        """Close the connection."""
        if self._body is not None:
            self._body.close()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except (SourceError, OSError, ValueError) as error:
            self._keep(error)


class LiveSource:
    """One open source.

    Args:
        url: its URL; see `ingest.live.config.CameraConfig`.
        policy: the hosts and files that may be opened.
        transport: the transport of RTSP, `tcp` or `udp`.
        connect: seconds to open the source.
        stall: seconds to wait for a packet.

    Attributes:
        shown: the URL without credentials.
        scheme: the scheme of the URL.
        stream: PyAV's video stream, the one with the largest picture.

    Raises:
        SourceDenied: the policy forbids the URL.
        SourceNotFound: the source cannot be opened.
        SourceStalled: it does not answer in time.
        SourceUnsupported: this build of FFmpeg lacks the protocol.
        NotVideo: it answers with something other than video.
    """

    def __init__(self, url: str, policy: UrlPolicy, *, transport: str, connect: float, stall: float) -> None:
        self.shown = mask_url(url)
        self.scheme = urlsplit(url).scheme.lower()
        self._url, self._policy, self._transport, self._times = url, policy, transport, (connect, stall)
        self._http = PinnedHttp(policy, timeout=stall)
        self._failed: Exception | None = None  # the first of what the playlist names
        self.container = self._first = self._open()
        videos = [s for s in self.container.streams.video if s.codec_context is not None]
        if not videos:
            self.close()
            raise NotVideo(f"{self.shown}: there is no video in it")
        self.stream = max(videos, key=lambda s: s.codec_context.width * s.codec_context.height)

    def packets(self) -> Iterator[Any]:
        """The video packets, as they arrive.

        Raises:
            SourceNotFound: the connection is lost.
            SourceStalled: no packet arrives in time.
        """
        try:
            if self.scheme == "loop":
                yield from self._looped()
            else:
                for packet in self.container.demux(self.stream):
                    self._check_entries()
                    if packet.size:
                        yield packet
        except SourceError:
            raise
        except (av.error.FFmpegError, OSError) as error:
            self._check_entries()
            if isinstance(error, (av.error.ExitError, av.error.TimeoutError, TimeoutError)):
                raise SourceStalled(f"{self.shown}: sends nothing for {self._times[1]:g} s") from None
            raise SourceNotFound(f"{self.shown}: the connection was lost ({_reason(error)})") from None

    def close(self) -> None:
        """Close the source. Never raises."""
        for container in {self.container, self._first}:
            with suppress(av.error.FFmpegError, OSError, SourceError):
                container.close()

    # ---- opening -------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        began = time.monotonic()
        try:
            return self._open_once()
        except (SourceNotFound, NotVideo, TimeoutError) as error:
            # FFmpeg reports a time-out by various errors.
            if isinstance(error, TimeoutError) or time.monotonic() - began > 0.9 * self._times[0]:
                raise SourceStalled(
                    f"{self.shown}: does not answer, or accepts and sends nothing, for {self._times[0]:g} s"
                ) from None
            raise

    def _open_once(self) -> Any:
        checked = check_url(self._url, self._policy)
        options: dict[str, Any] = {"timeout": self._times, "metadata_errors": "ignore"}
        try:
            if self.scheme == "loop":
                return self._open_file(**options)
            if self.scheme in ("http", "https"):
                return self._open_http(options)
            before = _connections()
            container = av.open(checked.pinned, options=self._options(checked.pinned), **options)
            if self.scheme in ("rtsp", "rtsps", "rtmp", "rtmps"):
                self._check_peers(container, before, checked.address)
            return container
        except av.error.ProtocolNotFoundError:
            raise SourceUnsupported(
                f"{self.shown}: this build of PyAV cannot read {self.scheme}://; install one whose FFmpeg can, "
                "or put a converter in front of the camera"
            ) from None
        except av.error.InvalidDataError as error:
            raise NotVideo(f"{self.shown}: closes the connection, or sends no video ({_reason(error)})") from None
        except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as error:
            raise SourceNotFound(f"{self.shown}: rejects these credentials ({_reason(error)})") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SourceNotFound(
                f"{self.shown}: cannot be opened ({_reason(error)}); check the address and the camera"
            ) from None

    def _check_peers(self, container: Any, before: Mapping[int, str], address: str | None) -> None:
        """Close the source and raise SourceDenied if a connection since `before` leads to another address."""
        others = sorted(
            {peer for inode, peer in _connections().items() if inode not in before} - {str(ip_address(address or "::"))}
        )
        if others:
            container.close()
            raise SourceDenied(
                f"{self.shown}: redirects to {', '.join(others)}, which is not the address of its name; nothing of it "
                "was read. If that is right, name that address as the camera's URL"
            )

    def _options(self, url: str) -> dict[str, str]:
        micros = str(round(max(self._times) * 1e6))  # PyAV's own time-outs are the precise ones
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

    def _open_http(self, options: dict[str, Any]) -> Any:
        first = PinnedHttp(self._policy, timeout=self._times[1], max_bytes=None).open(self._url)
        if not _is_playlist(first.peek(64)):
            only = {"format_whitelist": FOOTAGE_FORMATS, "protocol_whitelist": "none"}
            return av.open(first, options=only, **options)
        url, self._http = str(first.name), PinnedHttp(first.policy, timeout=self._times[1])
        first.close()
        try:
            container = av.open(
                url,
                format="hls",
                io_open=self._open_entry,
                options={
                    "protocol_whitelist": "http,https,tcp,tls,crypto",
                    "http_persistent": "0",
                    "live_start_index": "-1",
                    "max_reload": "1000",
                },
                **options,
            )
        except (av.error.FFmpegError, OSError):
            self._check_entries()
            raise
        try:
            self._check_entries()
        except SourceError:
            container.close()
            raise
        return container

    def _check_entries(self) -> None:
        """Raise the first error of what the playlist names. FFmpeg passes over a segment that it cannot read."""
        if isinstance(self._failed, TimeoutError):
            raise SourceStalled(f"{self.shown}: what its playlist names does not answer in time")
        if self._failed is not None:
            if isinstance(self._failed, SourceError):
                raise self._failed
            raise SourceNotFound(f"{self.shown}: the connection was lost ({_reason(self._failed)})")

    def _keep(self, error: Exception) -> None:
        self._failed = self._failed or error

    def _open_entry(self, url: str, flags: int, options: dict[str, str]) -> _Entry:
        """Open an entry of the playlist, or the playlist again. Raises nothing: see `_Entry`."""
        return _Entry(lambda: self._fetch(url, flags, options), self._keep)

    def _fetch(self, url: str, flags: int, options: dict[str, str]) -> Response | io.BytesIO:
        """Request what the playlist names.

        Raises:
            SourceDenied: the policy forbids it, or it is no HTTP URL.
        """
        if flags & 2:
            raise SourceDenied(f"{self.shown}: its playlist requests write access, which is never granted")
        headers: dict[str, str] = {}
        start, end = options.get("offset"), options.get("end_offset")
        if (start is not None and start != "0") or end:
            headers["Range"] = f"bytes={start or 0}-{int(end) - 1 if end else ''}"
        if urlsplit(url).scheme.lower() not in ("http", "https"):
            raise SourceDenied(f"{self.shown}: its playlist names {mask_url(url)}, which is not an HTTP URL")
        body = self._http.open(url, headers)
        if not _is_playlist(body.peek(64)):
            return body
        with body:
            text = body.read()
        if (named := foreign_entry(text)) is not None:  # FFmpeg refuses it as well, but does not say so
            raise SourceDenied(f"{self.shown}: its playlist names {mask_url(named)}, which is not an HTTP URL")
        return io.BytesIO(text)

    # ---- files played in a loop ----------------------------------------------------------------------------------

    def _path(self) -> str:
        path = Path(loop_path(self._url))
        if not path.is_file():
            raise SourceNotFound(f"{self.shown}: no such file")
        return str(path)

    def _open_file(self, **options: Any) -> Any:
        only = {"format_whitelist": FOOTAGE_FORMATS, "protocol_whitelist": "file"}
        return av.open(f"file:{self._path()}", options=only, **options)

    def _looped(self) -> Iterator[Any]:
        """The packets of the file, repeated without end, each at its time."""
        began, shift, ends = time.monotonic(), 0.0, 0.0
        zero: float | None = None
        while True:
            count = 0
            for packet in self.container.demux(self.stream):
                if not packet.size or packet.pts is None:
                    continue
                count += 1
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
            if not count:
                raise NotVideo(f"{self.shown}: the file contains no video packets")
            shift = ends - (zero or 0.0)
            if self.container is not self._first:  # whoever reads the packets uses its stream as the template of others
                self.container.close()
            self.container = self._open_file(metadata_errors="ignore")
            self.stream = next(s for s in self.container.streams.video if s.codec_context is not None)


def loop_path(url: str) -> str:
    """The absolute path of the file that a `loop:` URL names."""
    return str(Path(url.removeprefix("loop:").removeprefix("//")).expanduser().absolute())


def foreign_entry(playlist: bytes) -> str | None:
    """The first entry of an HLS playlist with another scheme than HTTP, None if there is none; its first characters."""
    found = _FOREIGN.search(playlist)
    return None if found is None else found[0].decode(errors="replace")


def _is_playlist(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_PLAYLIST)


def _reason(error: BaseException) -> str:
    return mask_url(str(getattr(error, "strerror", None) or error))


def _connections() -> dict[int, str]:
    """The TCP connections of this process: the address of the peer by the number of the socket's inode."""
    found: dict[int, str] = {}
    for descriptor in range(3, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_DESCRIPTORS)):
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
                    peer = ip_address(copy.getpeername()[0].partition("%")[0])
                    mapped = getattr(peer, "ipv4_mapped", None)
                    found[status.st_ino] = str(mapped or peer)
        except OSError:  # no such descriptor, or not connected
            continue
    return found
