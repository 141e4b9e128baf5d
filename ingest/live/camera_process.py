"""A camera's own process: `python -m ingest.live.camera_process` reads one live URL and closes segments into a folder.

From the parent, on stdin: one line of JSON, the order; then nothing. When stdin ends, because the parent wants it or has
died, what was received is closed into a last segment. To the parent, on stdout, lines of JSON:
    {"event": "open", "codec", "width", "height"}
    {"event": "beat", "frames", "dropped", "late", "newest", "drift", "anchors"}     about twice a second, while packets come
    {"event": "segment", "name", "start", "duration", "frames", "bytes"}             the file is whole by then
    {"event": "error", "type", "message"}                                            the last line
FFmpeg may hang in a call for longer than it was told, so a second thread watches for silence and, where a camera sends
nothing, closes what there is and ends the process.
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

from index.errors import SourceError, SourceNotFound, SourceStalled, mask_url
from ingest.live.capture_clock import CaptureClock
from ingest.live.cutter import CodecChanged, LiveCutter, LiveSegment
from ingest.live.source import LiveSource
from ingest.segments.names import segment_name
from ingest.sources.url_policy import UrlPolicy

_BEAT = 0.5


class _Child:
    def __init__(self, order: dict[str, Any], out: int) -> None:
        self.order, self._out = order, out
        self.folder = Path(order["folder"])
        self.clock = CaptureClock(order["newest"])
        self.cutter: LiveCutter | None = None
        self.lock = threading.Lock()  # around the cutter, the clock and stdout
        self.heard = time.monotonic()
        self.limit = float(order["connect"])
        self._totals = {"frames": 0, "dropped": 0, "late": 0}

    def tell(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}).encode() + b"\n"
        while line:
            line = line[os.write(self._out, line) :]

    # ---- the main thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        order = self.order
        policy = UrlPolicy.model_validate(order["policy"])
        while True:
            source = LiveSource(
                order["url"], policy, transport=order["transport"], connect=order["connect"], stall=order["stall"]
            )
            try:
                if self._follow(source):
                    raise SourceNotFound(f"{source.shown}: the stream ended; it is opened anew")
            finally:
                source.close()

    def _follow(self, source: LiveSource) -> bool:
        """Cut what comes; True at its end, False where it has to be opened anew."""
        context = source.stream.codec_context
        with self.lock:
            self.clock.break_off()
            self.cutter = LiveCutter(
                source.stream, self.clock, seconds=self.order["seconds"], max_bytes=self.order["max_bytes"]
            )
            self.heard, self.limit = time.monotonic(), float(self.order["stall"])
            self.tell("open", codec=context.name, width=context.width, height=context.height)
        told = 0.0
        for packet in source.packets():
            with self.lock:
                self.heard = time.monotonic()
                try:
                    self.keep(self.cutter.push(packet, time.time()))
                except CodecChanged:
                    self.finish()
                    return False
                if self.heard - told > _BEAT:
                    told = self.heard
                    self.beat()
        return True

    # ---- either thread, with the lock ----------------------------------------------------------------------------

    def keep(self, segments: list[LiveSegment]) -> None:
        for segment in segments:
            name = segment_name(self.order["stream"], segment.start, segment.duration, segment.media_type)
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(segment.payload)
            part.replace(path)
            self.tell(
                "segment",
                name=name,
                start=segment.start,
                duration=segment.duration,
                frames=segment.frames,
                bytes=len(segment.payload),
            )

    def beat(self) -> None:
        if self.cutter is None:
            return
        now = {name: self._totals[name] + getattr(self.cutter, name) for name in self._totals}
        self.tell("beat", **now, newest=self.cutter.newest, drift=self.clock.drift, anchors=self.clock.anchors)

    def finish(self) -> None:
        """Close what is open, and count on over the next connection."""
        if self.cutter is not None:
            self.keep(self.cutter.close())
            self.beat()
            for name in self._totals:
                self._totals[name] += getattr(self.cutter, name)
            self.cutter = None

    # ---- the second thread ---------------------------------------------------------------------------------------

    def watch(self) -> None:
        while True:
            ended = bool(select.select([0], [], [], 0.1)[0]) and not os.read(0, 1)
            silent = time.monotonic() - self.heard
            if not ended and silent <= self.limit:
                continue
            with self.lock, suppress(OSError):
                if not ended and time.monotonic() - self.heard <= self.limit:
                    continue  # one came meanwhile
                opened = self.cutter is not None
                self.finish()
                if not ended:
                    what = "sends nothing" if opened else "accepts and says nothing, or does not answer"
                    self.error(SourceStalled(f"{mask_url(self.order['url'])}: {what} for {silent:.1f} s"))
                os._exit(0)

    def error(self, error: BaseException) -> None:
        kind = type(error).__name__ if isinstance(error, SourceError) else "DecodeFailed"
        message = str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"
        self.tell("error", type=kind, message=mask_url(message))


def main() -> int:
    order = json.loads(_line(0))
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the messages
    resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"], order["memory_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child = _Child(order, out)
    threading.Thread(target=child.watch, daemon=True).start()
    try:
        child.run()
    except Exception as error:  # the parent is told of every kind
        with child.lock, suppress(OSError):
            child.finish()
            child.error(error)
    os._exit(0)  # native threads may hold up an orderly end


def _line(descriptor: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        got = os.read(descriptor, 1)
        if not got:
            sys.exit(0)
        line += got
    return bytes(line)


if __name__ == "__main__":
    sys.exit(main())
