"""What the metrics of a worker say of live footage, and of archives."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry

from index.records import ClockSource, Segment
from ingest.kafka.metrics import ConsumerMetrics
from tests.support.records import BEGAN, SECOND


def segment(clock: ClockSource, end: int) -> Segment:
    return Segment(
        stream_id="gate",
        source="segments/0",
        chunk=1,
        uri="",
        start=end - 8 * SECOND,
        end=end,
        frames=8,
        decode_mode="all",
        clock_source=clock,
    )


def value(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"sightline_consumer_{name}", {"stream": "gate"})


def test_an_archive_is_not_late_nor_old() -> None:
    metrics = ConsumerMetrics()
    metrics.read("gate", BEGAN, "filename")
    metrics.newest_frame("gate", BEGAN, "filename")
    metrics.stored([segment("filename", BEGAN)], {}, 0.1)
    for name in ("newest_timestamp_seconds", "clock_drift_seconds", "late_frames_total"):
        assert value(metrics.registry, name) is None
    assert value(metrics.registry, "frames_total") == 8
    assert metrics.registry.get_sample_value("sightline_consumer_delay_seconds_count") == 0


def test_live_footage_is_compared_with_the_present() -> None:
    metrics = ConsumerMetrics()
    end = time.time_ns() // 1000 - 100 * SECOND
    metrics.read("gate", end, "arrival")
    metrics.newest_frame("gate", end, "arrival")
    metrics.stored([segment("arrival", end)], {}, 0.1)
    assert value(metrics.registry, "newest_timestamp_seconds") == end / 1e6
    assert -110 < (value(metrics.registry, "clock_drift_seconds") or 0) < -99
    assert value(metrics.registry, "late_frames_total") == 8
    assert metrics.registry.get_sample_value("sightline_consumer_delay_seconds_count") == 1
