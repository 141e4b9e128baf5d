"""Many cameras in one process: started, stopped and changed as their list says, and their segments handed to a taker.

    list of cameras ─▶ a thread and a process each ─▶ spool on disk ─▶ one taker (store, or folder and Kafka)

The taker may fail for as long as it likes: what it has not taken waits in the spool, and the cameras do not notice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog

from index.errors import (
    CommitFenced,
    IdentityMismatch,
    KafkaProblem,
    SightlineError,
    SourceError,
    StoreError,
    StoreVersion,
    UsageError,
)
from index.records import to_micros
from ingest.live.camera import CameraThread, pause_before
from ingest.live.config import CameraConfig, CameraList, LiveSettings, read_cameras
from ingest.live.spool import Spool, SpooledSegment
from ingest.live.status import StateBoard, read_state

__all__ = ["STATE_FILE", "SegmentSink", "run_live"]

_log = structlog.get_logger(__name__)
STATE_FILE = "cameras.json"
_TICK = 0.25
_CLOSING_SECONDS = 10.0
_LAST_SECONDS = 60.0
_FATAL = (UsageError, IdentityMismatch, StoreVersion, CommitFenced)


class SegmentSink(Protocol):
    """What becomes of segments: stored, or kept and sent. `gather`: seconds to wait for more; `most`: at once."""

    gather_seconds: float
    max_segments: int

    def write(self, segments: Sequence[SpooledSegment]) -> None:
        """Take them for good, in order. What raises is tried again, but for errors that waiting does not cure."""
        ...


def run_live(
    cameras: CameraList | Path,
    settings: LiveSettings,
    taker: SegmentSink,
    *,
    command: str,
    stop: threading.Event,
    reload: threading.Event | None = None,
    metrics: Callable[[StateBoard], None] = lambda _: None,
) -> None:
    """Read cameras until `stop`; then every camera closes its segment and the taker gets what waits.

    Args:
        cameras: their list, or a file of it, which is read again when it changes or `reload` is set.
        command: what the state says is running.
        metrics: called once with the state.

    Raises:
        UsageError: a list that does not fit (at the start; later the old one stays), or a folder in use.
        StoreError, KafkaProblem: the taker met what waiting does not cure.
    """
    listed = read_cameras(cameras) if isinstance(cameras, Path) else cameras
    board = StateBoard(settings.folder / STATE_FILE, command)
    spool = Spool(
        settings.folder,
        max_bytes=settings.spool_bytes,
        on_drop=lambda one: board.count(one.segment.stream, dropped=one.frames),
    )
    try:
        fleet = _Fleet(settings, spool, board)
        metrics(board)
        feeder = _Feeder(spool, taker)
        feeder.start()
        source = _ListFile(cameras, reload) if isinstance(cameras, Path) else None
        told = 0.0
        try:
            while not stop.is_set() and feeder.failure is None:
                fleet.want((source.read() or listed) if source else listed)
                if time.monotonic() - told >= 1.0:
                    told = time.monotonic()
                    board.waiting(len(spool), spool.bytes, feeder.problem)
                    board.write()
                stop.wait(_TICK)
        finally:
            fleet.close()
            feeder.finish()
            board.waiting(len(spool), spool.bytes, feeder.problem)
            board.write()
        if feeder.failure is not None:
            raise feeder.failure
    finally:
        spool.close()


class _ListFile:
    """A list of cameras that may change while it is used."""

    def __init__(self, path: Path, reload: threading.Event | None) -> None:
        self.path, self._reload = path, reload
        self._seen: tuple[int, ...] | None = None
        self._list: CameraList | None = None

    def read(self) -> CameraList | None:
        """The list; the last good one where the file is gone or does not fit."""
        with suppress(OSError):
            found = self.path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen and not (self._reload and self._reload.is_set()):
                return self._list
            self._seen = seen
            if self._reload:
                self._reload.clear()
            try:
                self._list = read_cameras(self.path)
                _log.info("list of cameras read", cameras=len(self._list.cameras))
            except UsageError as error:
                _log.error("the list of cameras does not fit; the one before stays", problem=str(error))
        return self._list


class _Fleet:
    """The cameras that run. One that was changed ends before it begins anew, so that its times ascend."""

    def __init__(self, settings: LiveSettings, spool: Spool, board: StateBoard) -> None:
        self.settings, self.spool, self.board = settings, spool, board
        self._running: dict[str, CameraThread] = {}
        self._leaving: dict[str, CameraThread] = {}
        self._newest: dict[str, int] = {}
        with suppress(SourceError):  # there is none the first time
            for state in read_state(board.path).cameras:
                if state.newest is not None:
                    self._newest[state.stream] = to_micros(state.newest)

    def want(self, listed: CameraList) -> None:
        """Start and stop until what runs is what is listed; returns at once."""
        wanted: dict[str, CameraConfig] = {camera.stream: camera for camera in listed.cameras}
        for stream, thread in list(self._running.items()):
            if wanted.get(stream) != thread.camera:
                _log.info("camera leaves", stream=stream)
                thread.ask_to_stop()
                self._leaving[stream] = self._running.pop(stream)
        for stream, thread in list(self._leaving.items()):
            if not thread.alive:
                self._newest[stream] = max(self._newest.get(stream, 0), thread.newest or 0)
                self.board.remove(stream)
                del self._leaving[stream]
        for stream, camera in wanted.items():
            if stream not in self._running and stream not in self._leaving:
                newest = self._newest.get(stream) or None
                spool = self.spool
                thread = CameraThread(
                    camera, self.settings, spool.folder, self.board, spool.put, newest=newest, lock=spool.lock
                )
                self._running[stream] = thread
                thread.start()

    def close(self) -> None:
        """End every camera; returns within `_CLOSING_SECONDS`."""
        threads = [*self._running.values(), *self._leaving.values()]
        for thread in threads:
            thread.ask_to_stop()
        deadline = time.monotonic() + _CLOSING_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class _Feeder:
    """The thread that hands segments to the taker. `problem` is why it waits, `failure` what ended it."""

    def __init__(self, spool: Spool, taker: SegmentSink) -> None:
        self.spool, self.taker = spool, taker
        self.problem: str | None = None
        self.failure: BaseException | None = None
        self._last, self._give_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="taker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Hand over what waits, for at most `_LAST_SECONDS`; what is left then waits for the next start."""
        self._last.set()
        self._thread.join(_LAST_SECONDS)
        self._give_up.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while not self._give_up.is_set():
                gather = 0.0 if self._last.is_set() else self.taker.gather_seconds
                taken = self.spool.take(self.taker.max_segments, timeout=_TICK, gather=gather)
                if taken:
                    if not self._insist(taken):
                        return
                    self.spool.done(taken)
                elif self._last.is_set():
                    return
        except BaseException as error:
            self.failure = error

    def _insist(self, taken: Sequence[SpooledSegment]) -> bool:
        """Until the taker has them; False when it is to stop before that."""
        attempt = 0
        while not self._give_up.is_set():
            try:
                self.taker.write(taken)
                self.problem = None
                return True
            except _FATAL:
                raise
            except (StoreError, KafkaProblem, SightlineError, OSError) as error:
                attempt += 1
                self.problem = str(error)
                _log.warning("segments wait", segments=len(taken), problem=self.problem, attempt=attempt)
                if self._last.is_set():
                    return False
                self._give_up.wait(pause_before(attempt, 0.5, 30.0))
        return False
