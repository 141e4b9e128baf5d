"""What is known of every camera, in a file that another process reads and in Prometheus's terms.

The file is replaced as a whole, so a reader finds one moment of all cameras or nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.errors import SourceNotFound

__all__ = ["CameraState", "FleetState", "StateBoard", "read_state"]

State = Literal["connecting", "live", "stalled", "failed"]
_STATES: tuple[State, ...] = ("connecting", "live", "stalled", "failed")
_OLD_SECONDS = 10.0


class CameraState(BaseModel):
    """One camera. Times are UTC; `newest` is the capture time of its newest frame, `drift_seconds` wall clock less camera.

    frames: packets of video taken; dropped: those that no segment holds; late: those that came long after they were
    captured. reconnects: connections after the first. segments: closed. why: what ended the last connection.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    stream: str
    url: str
    state: State = "connecting"
    why: str | None = None
    since: datetime = Field(default_factory=lambda: datetime.now(UTC))
    newest: datetime | None = None
    codec: str | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    dropped: int = 0
    late: int = 0
    reconnects: int = 0
    segments: int = 0
    drift_seconds: float = 0.0


class FleetState(BaseModel):
    """All cameras of one process, and how many segments and bytes wait to be stored or sent."""

    model_config = ConfigDict(extra="forbid")

    command: str
    pid: int
    updated: datetime
    waiting_segments: int = 0
    waiting_bytes: int = 0
    problem: str | None = None
    cameras: list[CameraState] = Field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether it was written just now."""
        return (datetime.now(UTC) - self.updated).total_seconds() < _OLD_SECONDS


class StateBoard:
    """The cameras' states, written by their threads and read by others."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self._lock = threading.Lock()
        self._states: dict[str, CameraState] = {}
        self._waiting: tuple[int, int] = (0, 0)
        self._problem: str | None = None

    def add(self, state: CameraState) -> None:
        with self._lock:
            self._states[state.stream] = state

    def remove(self, stream: str) -> None:
        with self._lock:
            self._states.pop(stream, None)

    def change(self, stream: str, **values: Any) -> None:
        """Set fields of one camera; `since` follows when the state is another. Nothing for one that was removed."""
        with self._lock:
            state = self._states.get(stream)
            if state is None:
                return
            if values.get("state", state.state) != state.state:
                state.since = datetime.now(UTC)
            for name, value in values.items():
                setattr(state, name, value)

    def count(self, stream: str, **more: int) -> None:
        """Add to counters of one camera."""
        with self._lock:
            state = self._states.get(stream)
            for name, value in more.items() if state is not None else ():
                setattr(state, name, getattr(state, name) + value)

    def waiting(self, segments: int, size: int, problem: str | None) -> None:
        with self._lock:
            self._waiting, self._problem = (segments, size), problem

    def now(self) -> FleetState:
        """A copy of everything."""
        with self._lock:
            return FleetState(
                command=self.command,
                pid=os.getpid(),
                updated=datetime.now(UTC),
                waiting_segments=self._waiting[0],
                waiting_bytes=self._waiting[1],
                problem=self._problem,
                cameras=[state.model_copy() for _, state in sorted(self._states.items())],
            )

    def write(self) -> None:
        """Replace the file."""
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(self.now().model_dump_json(indent=1) + "\n")
        part.replace(self.path)

    # ---- Prometheus ----------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Any]:
        """The metrics, as a collector of prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        cameras = self.now().cameras
        state = GaugeMetricFamily("sightline_camera_state", "1 for the state it is in", labels=["stream", "state"])
        for camera in cameras:
            for each in _STATES:
                state.add_metric([camera.stream, each], float(camera.state == each))
        yield state
        newest = GaugeMetricFamily(
            "sightline_camera_newest_timestamp_seconds", "Capture time of the newest frame", labels=["stream"]
        )
        drift = GaugeMetricFamily(
            "sightline_camera_clock_drift_seconds", "Wall clock less the camera's", labels=["stream"]
        )
        for camera in cameras:
            if camera.newest is not None:
                newest.add_metric([camera.stream], camera.newest.timestamp())
            drift.add_metric([camera.stream], camera.drift_seconds)
        yield from (newest, drift)
        for name, field, help_text in (
            ("sightline_camera_frames", "frames", "Frames received"),
            ("sightline_camera_dropped_frames", "dropped", "Frames that no segment holds"),
            ("sightline_camera_late_frames", "late", "Frames that came long after they were captured"),
            ("sightline_camera_reconnects", "reconnects", "Connections after the first"),
        ):
            counter = CounterMetricFamily(name, help_text, labels=["stream"])
            for camera in cameras:
                counter.add_metric([camera.stream], float(getattr(camera, field)))
            yield counter


def read_state(path: Path) -> FleetState:
    """What a running command wrote last. Raises SourceNotFound where none did."""
    try:
        return FleetState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SourceNotFound(
            f"{path}: no camera is watched or recorded here; start `sightline watch`, or name its --folder"
        ) from None
    except (OSError, ValidationError) as error:
        raise SourceNotFound(f"{path}: not readable ({str(error).splitlines()[0]})") from None
