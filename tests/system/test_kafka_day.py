"""Many segments through the consumer and the commit path, with decoder and encoder stubbed: bounded all the way.

1,200 segments by default; `KAFKA_DAY=86400` for a day of one camera's ten-second segments ten times over.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.store import Store
from ingest import embedder
from ingest.consumer import consume
from ingest.kafka_clients import Sender, make_topics
from ingest.kafka_settings import ConsumeSettings
from ingest.messages import SegmentMessage, segment_message
from ingest.segment_frames import SegmentFrames
from tests.index.conftest import PAIR
from tests.system.kafka_server import Broker, broker
from tests.system.kafka_worker import counting

__all__ = ["broker"]  # a fixture

SEGMENTS = int(os.environ.get("KAFKA_DAY", "1200"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(300 + SEGMENTS // 10)]
CAMERAS = 8
BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z
LENGTH = 10_000_000  # microseconds
COMMIT = 100


def _resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_commits_and_log_stay_bounded(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = broker.settings(prefix="day", partitions=4)
    make_topics(settings)
    with Sender(settings) as sender:
        for number in range(SEGMENTS):
            stream, at = f"cam{number % CAMERAS}", BEGAN + number // CAMERAS * LENGTH
            message = segment_message(stream, at, 10.0, number.to_bytes(4, "little"))
            sender.send(settings.segments, key=stream, value=message.to_bytes())
        sender.flush()
    grey = np.zeros((48, 64, 3), np.uint8)
    resident: list[int] = []

    def read(message: SegmentMessage, **_: Any) -> SegmentFrames:
        resident.append(_resident())
        return SegmentFrames([message.start_micros], [0.0], [grey], "all")

    monkeypatch.setattr(embedder, "read_segment", read)
    store = Store.create(tmp_path / "store", PAIR)
    report = consume(
        store,
        counting(),
        kafka=settings,
        group="day",
        settings=ConsumeSettings(commit_segments=COMMIT, commit_seconds=30, queue_segments=64),
        stop=threading.Event(),
        drain=True,
    )
    assert (report.segments, report.frames) == (SEGMENTS, SEGMENTS)
    assert report.commits <= SEGMENTS // COMMIT + 2  # by size; the last by time
    assert sum(s.frames for s in store.streams()) == SEGMENTS
    assert store.verify() == []
    # After a warm-up of a quarter it grows no more than what allocators keep.
    quarter = max(resident[: len(resident) // 4])
    assert max(resident) - quarter < 100 * 2**20
    for table in ("frames", "patches", "segments"):
        log = Path(store.url, table, "_delta_log")
        assert len(list(log.glob("*.json"))) <= report.commits + 1
        if report.commits > 150:
            assert list(log.glob("*.checkpoint.parquet"))  # readers need not replay the whole log
