"""The supervisor of live cameras: runs a thread and a process for each camera of a list, and feeds their segments to a
sink.

    list of cameras ─▶ a thread and a process each ─▶ spool on disk ─▶ one sink (store, or folder and Kafka)

The list may change while it is read. The sink may fail for any length of time: segments it has not accepted wait in the
spool, and the cameras are not affected. This module knows nothing of stores, Kafka or video.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception, sleep_using_event, stop_when_event_set

from index.errors import CommitFenced, IdentityMismatch, SightlineError, SourceError, StoreVersion, UsageError
from index.records import to_micros
from ingest.live.camera import CameraThread, backoff_seconds
from ingest.live.config import CameraConfig, CameraList, LiveSettings, read_cameras
from ingest.live.spool import Spool, SpooledSegment
from ingest.live.status import LiveReport, StatusRegistry, read_status
from ingest.shutdown import commit_under_way

__all__ = ["STATUS_FILE", "SegmentSink", "run_live"]

_log = structlog.get_logger(__name__)
STATUS_FILE = "cameras.json"
"""The name of the file of `ingest.live.status`, in the folder of the running command."""
_TICK_SECONDS = 0.25
_STATUS_SECONDS = 1.0
_CLOSE_SECONDS = 5.0  # for the cameras to write their last segments
_DRAIN_SECONDS = 20.0  # for the sink to accept what is in the spool at the end
_RETRY_SECONDS = (0.5, 30.0)  # the first and the longest pause after the sink failed
_FATAL = (UsageError, IdentityMismatch, StoreVersion, CommitFenced)


class SegmentSink(Protocol):
    """The receiver of segments: stores them, or records and publishes them."""

    gather_seconds: float
    """Seconds to wait for more segments before `write` is called."""
    max_segments: int
    """The largest number of segments of one call of `write`."""

    def write(self, segments: Sequence[SpooledSegment]) -> None:
        """Accept segments permanently, in order.

        After an error the same segments are written again, so writing must be idempotent. Errors that a retry does not
        cure (UsageError, IdentityMismatch, StoreVersion, CommitFenced) end the supervisor.
        """
        ...


def run_live(
    cameras: CameraList | Path,
    settings: LiveSettings,
    sink: SegmentSink,
    *,
    command: str,
    stop: threading.Event,
    reload: threading.Event | None = None,
    metrics: Callable[[StatusRegistry], None] = lambda _: None,
    on_drop: Callable[[SpooledSegment], None] = lambda _: None,
) -> LiveReport:
    """Read cameras until `stop` is set; then close every camera's segment and write what is in the spool.

    Args:
        cameras: the list, or its file, which is read again when it changes or when `reload` is set.
        settings: the limits of reading cameras, and the folder of the spool and the status file.
        sink: receives the segments, in a thread of its own.
        command: the name of the running command, for the status file.
        stop: ends the supervisor.
        reload: has the list read again; cleared afterwards.
        metrics: called once with the status of the cameras, which is a Prometheus collector.
        on_drop: called, in any thread, with each segment that the full spool drops.

    Returns:
        What each camera sent and what of it was lost.

    Raises:
        UsageError: the list is invalid (at the start; later the last valid list stays), or the folder is in use.
        StoreError, KafkaProblem: the sink failed with an error that a retry does not cure.
    """
    listed = read_cameras(cameras) if isinstance(cameras, Path) else cameras
    status = StatusRegistry(settings.folder / STATUS_FILE, command)

    def dropped(spooled: SpooledSegment) -> None:
        """Count a segment that the full spool drops."""
        status.count(spooled.segment.stream, dropped=spooled.frames)
        on_drop(spooled)

    spool = Spool(settings.folder, max_bytes=settings.spool_bytes, on_drop=dropped)
    try:
        threads = _CameraThreads(settings, spool, status)
        metrics(status)
        writer = _SinkThread(spool, sink)
        writer.start()
        source = _ListFile(cameras, reload) if isinstance(cameras, Path) else None
        written = 0.0
        try:
            while not stop.is_set() and writer.failure is None:
                threads.reconcile((source.read() or listed) if source else listed)
                if time.monotonic() - written >= _STATUS_SECONDS:
                    written = time.monotonic()
                    status.set_waiting(len(spool), spool.bytes, writer.problem)
                    status.write()
                stop.wait(_TICK_SECONDS)
        finally:
            threads.close()
            writer.finish()
            status.set_waiting(len(spool), spool.bytes, writer.problem)
            status.stop()
            status.write()
        if writer.failure is not None:
            raise writer.failure
        return status.report()
    finally:
        spool.close()


class _ListFile:
    """A file of cameras that may change while it is used."""

    def __init__(self, path: Path, reload: threading.Event | None) -> None:
        self.path, self._reload = path, reload
        self._version: tuple[int, ...] | None = None
        self._list: CameraList | None = None

    def read(self) -> CameraList | None:
        """The list; the last valid one when the file is missing or invalid."""
        with suppress(OSError):
            stat = self.path.stat()
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if version == self._version and not (self._reload and self._reload.is_set()):
                return self._list
            self._version = version
            if self._reload:
                self._reload.clear()
            try:
                self._list = read_cameras(self.path)
                _log.info("list of cameras read", cameras=len(self._list.cameras))
            except UsageError as error:
                _log.error("the list of cameras is invalid; the one before stays in use", problem=str(error))
        return self._list


class _CameraThreads:
    """The threads of the cameras. A changed camera ends before it is started again, so that its times ascend."""

    def __init__(self, settings: LiveSettings, spool: Spool, status: StatusRegistry) -> None:
        self.settings, self.spool, self.status = settings, spool, status
        self._running: dict[str, CameraThread] = {}
        self._stopping: dict[str, CameraThread] = {}
        self._newest: dict[str, int] = {}
        with suppress(SourceError):  # the first run has no status file
            for state in read_status(status.path).cameras:
                if state.newest is not None:
                    self._newest[state.stream] = to_micros(state.newest)

    def reconcile(self, listed: CameraList) -> None:
        """Start and stop threads until those of the listed cameras run. Never waits."""
        wanted: dict[str, CameraConfig] = {camera.stream: camera for camera in listed.cameras}
        for stream, thread in list(self._running.items()):
            if wanted.get(stream) != thread.camera:
                _log.info("camera removed from the list or changed", stream=stream)
                thread.ask_to_stop()
                self._stopping[stream] = self._running.pop(stream)
        for stream, thread in list(self._stopping.items()):
            if not thread.alive:
                self._newest[stream] = max(self._newest.get(stream, 0), thread.newest or 0)
                self.status.remove(stream)
                del self._stopping[stream]
        for stream, camera in wanted.items():
            if stream not in self._running and stream not in self._stopping:
                thread = CameraThread(
                    camera,
                    self.settings,
                    self.spool.folder,
                    self.status,
                    self.spool.put,
                    newest=self._newest.get(stream) or None,
                    lock=self.spool.lock,
                )
                self._running[stream] = thread
                thread.start()

    def close(self) -> None:
        """End every camera; returns within `_CLOSE_SECONDS`."""
        threads = [*self._running.values(), *self._stopping.values()]
        for thread in threads:
            thread.ask_to_stop()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _SinkThread:
    """The thread that writes segments to the sink.

    Attributes:
        problem: why segments wait; None when they do not.
        failure: the exception that ended the thread; None while it works.
    """

    def __init__(self, spool: Spool, sink: SegmentSink) -> None:
        self.spool, self.sink = spool, sink
        self.problem: str | None = None
        self.failure: BaseException | None = None
        self._draining, self._give_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def finish(self) -> None:
        """Write what is in the spool, for at most `_DRAIN_SECONDS`; the rest stays there for the next start."""
        with commit_under_way():
            self._draining.set()
            self._thread.join(_DRAIN_SECONDS)
            self._give_up.set()
            self._thread.join(2.0)

    def _run(self) -> None:
        try:
            while not self._give_up.is_set():
                gather_seconds = 0.0 if self._draining.is_set() else self.sink.gather_seconds
                segments = self.spool.get(self.sink.max_segments, timeout=_TICK_SECONDS, gather_seconds=gather_seconds)
                if segments:
                    if not self._write(segments):
                        return
                    self.spool.remove(segments)
                elif self._draining.is_set():
                    return
        except BaseException as error:
            self.failure = error

    def _write(self, segments: Sequence[SpooledSegment]) -> bool:
        """Write until the sink accepts the segments. Returns False when the thread must end before that."""

        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            self.problem = str(error)
            _log.warning("segments wait", segments=len(segments), problem=self.problem, attempt=state.attempt_number)

        retrying = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, (SightlineError, OSError)) and not isinstance(error, _FATAL)
            ),
            stop=stop_when_event_set(self._draining),
            wait=lambda state: backoff_seconds(state.attempt_number, *_RETRY_SECONDS),
            sleep=sleep_using_event(self._give_up),
            after=note,
        )
        try:
            for attempt in retrying:
                if self._give_up.is_set():
                    return False
                with attempt:
                    self.sink.write(segments)
        except RetryError:
            return False
        self.problem = None
        return True
