"""The status of live cameras: a file that other processes read, and Prometheus metrics.

The file is replaced atomically, about once a second, so a reader finds one consistent state of all cameras. It is not
durable: after a power cut it may be old or missing, and the next start writes it again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import SourceNotFound
from index.files import write_atomically

__all__ = ["CameraState", "CameraTotals", "LiveReport", "LiveStatus", "StatusRegistry", "read_status"]

State = Literal["connecting", "live", "stalled", "failed", "stopped"]
_STATES: tuple[State, ...] = ("connecting", "live", "stalled", "failed")  # of a running process
_OLD_SECONDS = 10.0


class CameraTotals(BaseModel):
    """What a camera sent and lost. Of a stream: while the command ran, whatever changed in the list of cameras."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)

    frames: int = 0
    """Video packets received."""
    dropped: int = 0
    """Frames lost although they arrived: of segments that the full spool dropped, and of oversized groups of
    pictures."""
    skipped: int = 0
    """Video packets that no segment can hold, such as those before the first intra frame of a connection."""
    late: int = 0
    """Video packets received long after they were captured."""
    reconnects: int = 0
    """Connections after the first."""
    segments: int = 0
    """Segments closed."""


class CameraState(CameraTotals):
    """The state of one camera."""

    stream: str
    """The stream of its frames."""
    url: str
    """Its URL, without credentials."""
    state: State = "connecting"
    """`connecting`, `live`, `stalled` (it sends nothing), `failed`, or `stopped` with its process."""
    why: str | None = None
    """The reason for the end of the last connection; None while the camera is live."""
    since: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """UTC time of the last change of `state`."""
    newest: datetime | None = None
    """Capture time of the newest frame, UTC."""
    codec: str | None = None
    """The name of the video codec."""
    width: int = 0
    """The width of the picture in pixels."""
    height: int = 0
    """The height of the picture in pixels."""
    drift_seconds: float = 0.0
    """The wall clock minus the camera's clock, in seconds."""


class LiveStatus(BaseModel):
    """The status of one process that reads cameras."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    command: str
    """The command, `watch` or `record`."""
    pid: int
    """The id of its process."""
    updated: datetime
    """UTC time at which this status was written."""
    waiting_segments: int = 0
    """Segments in the spool, to be stored or sent."""
    waiting_bytes: int = 0
    """Bytes of these segments."""
    problem: str | None = None
    """Why segments wait; None when storing and sending work."""
    stopped: bool = False
    """Whether the process has stopped reading."""
    cameras: list[CameraState] = Field(default_factory=list)
    """The cameras, by stream."""

    @property
    def running(self) -> bool:
        """Whether the status was written within the last seconds by a process that had not stopped."""
        return not self.stopped and (datetime.now(UTC) - self.updated).total_seconds() < _OLD_SECONDS


class LiveReport(BaseModel):
    """What a command that reads cameras received and lost."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    cameras: dict[str, CameraTotals] = Field(default_factory=dict)
    """Each stream that had a camera or a segment."""
    waiting_segments: int = 0
    """Segments left in the spool, which the next start stores or sends."""
    waiting_bytes: int = 0
    """Bytes of these segments."""

    def __str__(self) -> str:
        """The losses, one a line; empty when there are none."""
        lines = [
            f"{stream}: {total.dropped} of {total.frames} frames were received and dropped"
            for stream, total in sorted(self.cameras.items())
            if total.dropped
        ]
        if self.waiting_segments:
            lines.append(
                f"{self.waiting_segments} segments, {self.waiting_bytes / 1e6:.1f} MB, wait for the next start"
            )
        return "\n".join(lines)


class StatusRegistry:
    """The current states of all cameras, for any thread. A collector of prometheus_client.

    Args:
        path: the file that `write` replaces.
        command: the name of the running command.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self._lock = threading.Lock()
        self._states: dict[str, CameraState] = {}
        self._totals: dict[str, CameraTotals] = {}
        self._waiting: tuple[int, int] = (0, 0)
        self._problem: str | None = None
        self._stopped = False

    def add(self, state: CameraState) -> None:
        """Add a camera, or replace the one of the same stream."""
        with self._lock:
            self._totals.setdefault(state.stream, CameraTotals())
            self._states[state.stream] = state

    def remove(self, stream: str) -> None:
        """Remove a camera; an unknown one is ignored."""
        with self._lock:
            self._states.pop(stream, None)

    def change(self, stream: str, **values: Any) -> None:
        """Set fields of a camera, and `since` when its `state` changes; an unknown camera is ignored."""
        with self._lock:
            state = self._states.get(stream)
            if state is None:
                return
            if values.get("state", state.state) != state.state:
                state.since = datetime.now(UTC)
            for name, value in values.items():
                setattr(state, name, value)

    def count(self, stream: str, **increments: int) -> None:
        """Add to counters of a camera and of its stream; of an unknown camera to those of the stream alone."""
        with self._lock:
            counted = (self._states.get(stream), self._totals.setdefault(stream, CameraTotals()))
            for each in counted:
                for name, value in increments.items() if each is not None else ():
                    setattr(each, name, getattr(each, name) + value)

    def set_waiting(self, segments: int, size: int, problem: str | None) -> None:
        """Set the number and the total size in bytes of the segments in the spool, and why they wait."""
        with self._lock:
            self._waiting, self._problem = (segments, size), problem

    def snapshot(self) -> LiveStatus:
        """A copy of the current status."""
        with self._lock:
            return LiveStatus(
                command=self.command,
                pid=os.getpid(),
                updated=datetime.now(UTC),
                waiting_segments=self._waiting[0],
                waiting_bytes=self._waiting[1],
                problem=self._problem,
                stopped=self._stopped,
                cameras=[state.model_copy() for _, state in sorted(self._states.items())],
            )

    def report(self) -> LiveReport:
        """The totals of every stream since the start, and what waits."""
        with self._lock:
            return LiveReport(
                cameras={stream: total.model_copy() for stream, total in sorted(self._totals.items())},
                waiting_segments=self._waiting[0],
                waiting_bytes=self._waiting[1],
            )

    def stop(self) -> None:
        """Note that the process has stopped reading: every camera is `stopped`, for the reason it had before."""
        with self._lock:
            self._stopped = True
            streams = list(self._states)
        for stream in streams:
            self.change(stream, state="stopped")

    def write(self) -> None:
        """Replace the file."""
        write_atomically(self.path, self.snapshot().model_dump_json(indent=1) + "\n", durable=False)

    # ---- Prometheus ----------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """The metrics of all cameras."""
        cameras = self.snapshot().cameras
        state = GaugeMetricFamily(
            "sightline_camera_state",
            "1 for the current state of the camera, 0 for the others",
            labels=["stream", "state"],
        )
        for camera in cameras:
            for each in _STATES:
                state.add_metric([camera.stream, each], float(camera.state == each))
        yield state
        newest = GaugeMetricFamily(
            "sightline_camera_newest_timestamp_seconds", "Capture time of the newest frame", labels=["stream"]
        )
        drift = GaugeMetricFamily(
            "sightline_camera_clock_drift_seconds", "The wall clock minus the camera's clock", labels=["stream"]
        )
        for camera in cameras:
            if camera.newest is not None:
                newest.add_metric([camera.stream], camera.newest.timestamp())
            drift.add_metric([camera.stream], camera.drift_seconds)
        yield from (newest, drift)
        for name, field, help_text in (
            ("sightline_camera_frames", "frames", "Frames received"),
            (
                "sightline_camera_dropped_frames",
                "dropped",
                "Frames lost although they arrived: the spool is full, or a group of pictures is too large",
            ),
            (
                "sightline_camera_skipped_frames",
                "skipped",
                "Frames that no segment can hold, such as those before the first intra frame of a connection",
            ),
            ("sightline_camera_late_frames", "late", "Frames received long after they were captured"),
            ("sightline_camera_reconnects", "reconnects", "Connections after the first"),
        ):
            counter = CounterMetricFamily(name, help_text, labels=["stream"])
            for camera in cameras:
                counter.add_metric([camera.stream], float(getattr(camera, field)))
            yield counter


def read_status(path: Path) -> LiveStatus:
    """Read what a running command wrote last.

    Raises:
        SourceNotFound: there is no such file, or it is invalid.
    """
    try:
        return LiveStatus.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SourceNotFound(
            f"{path}: no camera is watched or recorded here; start `sightline watch`, or name its --folder"
        ) from None
    except (OSError, ValidationError) as error:
        raise SourceNotFound(f"{path}: not readable ({str(error).splitlines()[0]})") from None
