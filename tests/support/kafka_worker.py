"""A Kafka worker with stub encoders, which starts at once: `python -m tests.support.kafka_worker ORDER`.

ORDER is JSON: store, group, kafka and consume (settings), slow (seconds that encoding a frame takes).
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.store import Store
from ingest.kafka.poller import consume
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
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


def main() -> int:
    """Run the worker until SIGTERM and print its report."""
    order = json.loads(sys.argv[1])
    configure_logging(debug=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
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
