"""What one worker of `consume` tells Prometheus. Ages are left to the reader: `time() - …_timestamp_seconds`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from index.records import Segment

__all__ = ["LATE_SECONDS", "ConsumerMetrics"]

LATE_SECONDS = 60
_STREAMS = 2000  # most streams with lines of their own; the rest share one
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DELAYS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14_400, 86_400)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ConsumerMetrics:
    """Counters of one worker, in a registry of its own, so that two can live in a process. For any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._streams: set[str] = set()
        self._partitions: set[tuple[str, int]] = set()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"sightline_consumer_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sightline_consumer_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"sightline_consumer_{name}", text, buckets=buckets, registry=self.registry)

        self.lag = gauge("lag_messages", "Messages of a partition that are not stored", "topic", "partition")
        self.partitions = gauge("partitions", "Partitions that this worker has")
        self.paused = gauge("paused_partitions", "Partitions that are not read now because the queue is full")
        self.queue = gauge("queue_segments", "Segments read and not yet decoded")
        self.queue_capacity = gauge("queue_capacity_segments", "Most segments that are read ahead")
        self.newest = gauge("newest_timestamp_seconds", "Capture time of the newest stored frame", "stream")
        self.drift = gauge(
            "clock_drift_seconds",
            "End of the newest segment by the camera's clock minus the time it was read at: above 0, the clock is ahead",
            "stream",
        )
        self.segments = counter("segments", "Segments stored", "stream")
        self.frames = counter("frames", "Frames stored", "stream")
        self.dropped = counter("dropped_frames", "Frames decoded whose second was stored before", "stream")
        self.late = counter("late_frames", f"Frames stored more than {LATE_SECONDS} s after their segment", "stream")
        self.dead_letters = counter("dead_letters", "Messages that could not be stored", "reason", "step")
        self.commits = counter("commits", "Commits into the store")
        self.fenced = counter("fenced", "Commits refused because another worker had the partition")
        self.rebalances = counter("rebalances", "Assignments of partitions")
        self.commit_seconds = histogram("commit_seconds", "One commit of all three tables", _SECONDS)
        self.commit_segments = histogram("commit_segments", "Segments of one commit", _COUNTS)
        self.batch_frames = histogram("batch_frames", "Frames of one encoder batch", _COUNTS)
        self.delay_seconds = histogram("delay_seconds", "From a segment's end to its being stored", _DELAYS)

    # ---- told by the worker ------------------------------------------------------------------------------------------

    def stored(self, segments: Iterable[Segment], decoded: Mapping[tuple[str, int], int], seconds: float) -> None:
        """One commit: its segments, the frames decoded of each (source, chunk), and how long it took."""
        now, count = time.time(), 0
        for segment in segments:
            stream, delay = self._stream(segment.stream_id), now - segment.end / 1e6
            count += 1
            self.segments.labels(stream).inc()
            self.frames.labels(stream).inc(segment.frames)
            self.dropped.labels(stream).inc(max(0, decoded.get((segment.source, segment.chunk), 0) - segment.frames))
            if delay > LATE_SECONDS:
                self.late.labels(stream).inc(segment.frames)
            self.delay_seconds.observe(max(0.0, delay))
        self.commits.inc()
        self.commit_seconds.observe(seconds)
        self.commit_segments.observe(count)

    def newest_frame(self, stream: str, micros: int) -> None:
        """The capture time of a frame that was stored; only the latest of a stream counts."""
        child = self.newest.labels(self._stream(stream))
        child.set(max(child._value.get(), micros / 1e6))

    def read(self, stream: str, end_micros: int) -> None:
        """A segment's message was read."""
        self.drift.labels(self._stream(stream)).set(end_micros / 1e6 - time.time())

    def lags(self, lags: Mapping[tuple[str, int], int]) -> None:
        """What every partition of this worker lacks; those it has no more are forgotten."""
        for topic, partition in self._partitions - lags.keys():
            self.lag.remove(topic, str(partition))
        self._partitions = set(lags)
        for (topic, partition), count in lags.items():
            self.lag.labels(topic, str(partition)).set(count)
        self.partitions.set(len(lags))

    def _stream(self, stream: str) -> str:
        if stream not in self._streams and len(self._streams) >= _STREAMS:
            return "other"
        self._streams.add(stream)
        return stream
