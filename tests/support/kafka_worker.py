"""A Kafka worker with stub encoders, which starts at once: `python -m tests.support.kafka_worker ORDER`.

ORDER is JSON: store, group, kafka and consume (settings), slow (seconds that encoding a frame takes), hold (a file that
holds commits, see `hold_commits`).
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.commits.offset import OffsetAdvance
from index.store import Store
from ingest.kafka.poller import consume
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.segment_indexer import CommittedBatch, SegmentIndexer
from pipeline.console import configure_logging, report_error
from tests.support.records import PAIR


class FrameEncoderStub:
    """Encodes the brightness of a frame."""

    def __init__(self, slow: float) -> None:
        self.slow = slow

    def frame_features(self, frames: Sequence[NDArray[np.uint8]]) -> Any:
        """float32[N, 16]."""
        time.sleep(self.slow * len(frames))
        vectors = np.ones((len(frames), 16), np.float32)
        vectors[:, 0] = [frame.mean() for frame in frames]
        return vectors


class PatchEncoderStub:
    """Encodes every frame as the same patches."""

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]], clips: Any = None) -> Any:
        """Pooled float32[N, 12] and patches float16[N, 4, 12]."""
        n = len(frames)
        return np.ones((n, 12), np.float32), np.ones((n, 4, 12), np.float16)


def counting(slow: float = 0.0) -> Any:
    """A pair of stub encoders; encoding a frame takes `slow` seconds."""
    return SimpleNamespace(frame=FrameEncoderStub(slow), patch=PatchEncoderStub(), pair=PAIR)


def hold_commits(file: Path, stop: threading.Event) -> None:
    """Have commits of this process wait while `file` contains a number of messages that they would reach.

    While the file is there no partition is stored to its end, so a worker that is killed has work left, however fast it
    is and however late the kill comes. A worker that stops does not wait.
    """
    commit = SegmentIndexer.commit

    def held(self: SegmentIndexer, segments: Any, advances: Mapping[str, OffsetAdvance], **more: Any) -> CommittedBatch:
        """Wait, and commit."""
        last = max(advance.after for advance in advances.values())
        while not stop.is_set() and last >= _held_from(file):
            time.sleep(0.05)
        return commit(self, segments, advances, **more)

    SegmentIndexer.commit = held  # type: ignore[method-assign]


def _held_from(file: Path) -> float:
    try:
        return int(file.read_text())
    except FileNotFoundError:
        return float("inf")


def main() -> int:
    """Run the worker until SIGTERM and print its report."""
    order = json.loads(sys.argv[1])
    configure_logging(debug=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if "hold" in order:
        hold_commits(Path(order["hold"]), stop)
    try:
        report = consume(
            Store.open_or_create(order["store"], PAIR),
            counting(order.get("slow", 0.0)),
            kafka=KafkaSettings(**order["kafka"]),
            group=order["group"],
            settings=ConsumeSettings(**order.get("consume", {})),
            stop=stop,
            **order.get("more", {}),
        )
    except Exception as error:
        return report_error(error, debug=True)
    sys.stdout.write(report.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
