"""The process of one camera: `python -m ingest.live.camera_process` reads a live URL and writes segments into a folder.

From the parent, on stdin: one line of JSON, the order (see `ingest.live.camera`), and nothing else. When stdin is
closed, by the parent or because the parent has died, the packets received so far are written as a last segment.
To the parent, on stdout, lines of JSON:
    {"event": "confined", "missing", "why"}                                 names of the layers that do not hold
    {"event": "open", "codec", "width", "height"}
    {"event": "beat", "frames", "dropped", "skipped", "late", "newest", "drift", "anchors"}
                                                                                twice a second while packets arrive
    {"event": "segment", "name", "start", "duration", "frames", "bytes"}             its file is complete and durable
    {"event": "error", "type", "message"}                                            the last line
Before it connects, the process confines itself (`ingest.decoding.confinement`): it can write below its folder, read the
files that name resolution needs and the file of `loop:`, and open TCP connections to the ports that its URL may need;
it can open no other file, start no program and no process, and reach no local socket.

A call of FFmpeg may hang beyond its time-out. A second thread therefore watches for silence: when a camera sends
nothing for too long, it writes the open segment and ends the process.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import av

from index.errors import SourceError, SourceNotFound, SourceStalled, mask_url
from index.files import write_atomically
from ingest.decoding.confinement import confine, load_submodules
from ingest.live.capture_clock import CaptureClock
from ingest.live.cutter import CodecChanged, LiveCutter, LiveSegment
from ingest.live.source import LiveSource, loop_path
from ingest.segments.names import segment_name
from ingest.sources.pinned_http import tls_context
from ingest.sources.url_policy import UrlPolicy, check_url

_BEAT_SECONDS = 0.5
_POLL_SECONDS = 0.1
_RESOLVER_FILES = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
)
_HTTP_PORTS = (80, 443)  # a playlist or a redirect may lead to a server at the other's port


class _CameraReader:
    def __init__(self, order: dict[str, Any], out: int) -> None:
        self.order, self._out = order, out
        self.folder = Path(order["folder"])
        self.clock = CaptureClock(order["newest"])
        self.cutter: LiveCutter | None = None
        self.lock = threading.Lock()  # guards the cutter, the clock and stdout
        self.last_packet = time.monotonic()
        self.limit = float(order["connect"])  # seconds without a packet
        self._totals = {"frames": 0, "dropped": 0, "skipped": 0, "late": 0}

    def send(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}).encode() + b"\n"
        while line:
            line = line[os.write(self._out, line) :]

    def confine(self) -> None:
        """Give up all that this camera does not need. Raises SourceError if the URL is not allowed, or has no host."""
        url, readable = self.order["url"], list(_RESOLVER_FILES)
        # The look-up also loads what name resolution loads late, which a confined process cannot.
        checked = check_url(url, UrlPolicy.model_validate(self.order["policy"]))
        load_submodules(av, but=("av.__main__", "av.datasets"))
        own = [] if checked.port is None else [checked.port]
        ports: list[int] | None = own
        if checked.scheme in ("http", "https"):
            tls_context()
            ports = sorted({*_HTTP_PORTS, *own})
        elif checked.scheme == "loop":
            ports, readable = None, [loop_path(url)]
        self.folder.mkdir(parents=True, exist_ok=True)  # only what exists can be allowed
        posture = confine(readable=readable, writable=[self.folder], connect=ports)
        self.send("confined", missing=posture.missing, why=str(posture))

    # ---- the main thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Read the source, and open it again when its codec changes. Raises SourceError when it fails or ends."""
        order = self.order
        policy = UrlPolicy.model_validate(order["policy"])
        while True:
            source = LiveSource(
                order["url"], policy, transport=order["transport"], connect=order["connect"], stall=order["stall"]
            )
            try:
                if self._follow(source):
                    raise SourceNotFound(f"{source.shown}: the stream ended; it is opened again")
            finally:
                source.close()

    def _follow(self, source: LiveSource) -> bool:
        """Cut the packets of a source. Returns True at its end, False when the source must be opened again."""
        context = source.stream.codec_context
        with self.lock:
            self.clock.discontinuity()
            self.cutter = LiveCutter(
                source.stream, self.clock, seconds=self.order["seconds"], max_bytes=self.order["max_bytes"]
            )
            self.last_packet, self.limit = time.monotonic(), float(self.order["stall"])
            self.send("open", codec=context.name, width=context.width, height=context.height)
        last_beat = 0.0
        for packet in source.packets():
            with self.lock:
                try:
                    self.write(self.cutter.push(packet, time.time()))
                except CodecChanged:
                    self.finish()
                    return False
                self.last_packet = time.monotonic()  # after writing: a slow disk is not a camera that stalls
                if self.last_packet - last_beat > _BEAT_SECONDS:
                    last_beat = self.last_packet
                    self.beat()
        return True

    # ---- either thread, holding the lock -------------------------------------------------------------------------

    def write(self, segments: list[LiveSegment]) -> None:
        """Write segments into the folder, durably, and report each to the parent."""
        for segment in segments:
            name = segment_name(self.order["stream"], segment.start, segment.duration, segment.media_type)
            write_atomically(self.folder / name, segment.payload, parents=True)
            self.send(
                "segment",
                name=name,
                start=segment.start,
                duration=segment.duration,
                frames=segment.frames,
                bytes=len(segment.payload),
            )

    def beat(self) -> None:
        """Report the counters, summed over all connections, and the state of the clock."""
        if self.cutter is None:
            return
        now = {name: self._totals[name] + getattr(self.cutter, name) for name in self._totals}
        self.send("beat", **now, newest=self.cutter.newest, drift=self.clock.drift, anchors=self.clock.anchors)

    def finish(self) -> None:
        """Write the open segment, and add the connection's counters to the totals."""
        if self.cutter is not None:
            self.write(self.cutter.close())
            self.beat()
            for name in self._totals:
                self._totals[name] += getattr(self.cutter, name)
            self.cutter = None

    # ---- the second thread ---------------------------------------------------------------------------------------

    def watch(self) -> None:
        """End the process when stdin is closed, or when no packet arrives for too long."""
        stdin = select.poll()
        stdin.register(0, select.POLLIN)
        while True:
            ended = bool(stdin.poll(_POLL_SECONDS * 1000)) and not os.read(0, 1)
            silent = time.monotonic() - self.last_packet
            if not ended and silent <= self.limit:
                continue
            with self.lock, suppress(OSError):
                if not ended and time.monotonic() - self.last_packet <= self.limit:
                    continue  # a packet arrived while this thread waited for the lock
                opened = self.cutter is not None
                self.finish()
                if not ended:
                    what = "sends nothing" if opened else "does not answer, or accepts and sends nothing,"
                    self.error(SourceStalled(f"{mask_url(self.order['url'])}: {what} for {silent:.1f} s"))
                os._exit(0)

    def error(self, error: BaseException) -> None:
        """Report an error to the parent."""
        kind = type(error).__name__ if isinstance(error, SourceError) else "DecodeFailed"
        message = str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"
        self.send("error", type=kind, message=mask_url(message))


def main() -> int:
    """Read the order from stdin and run until stdin is closed, the source fails or it stalls."""
    order = json.loads(_read_line(0))
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not mix with the messages
    resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"], order["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reader = _CameraReader(order, out)
    try:
        reader.confine()  # before the second thread: some layers are a thread's own
        threading.Thread(target=reader.watch, daemon=True).start()
        reader.run()
    except Exception as error:  # every error is reported to the parent
        with reader.lock:
            with suppress(OSError):  # the disk may be what failed
                reader.finish()
            with suppress(OSError):
                reader.error(error)
    os._exit(0)  # an orderly exit may hang on native threads


def _read_line(descriptor: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return bytes(line)


if __name__ == "__main__":
    sys.exit(main())
