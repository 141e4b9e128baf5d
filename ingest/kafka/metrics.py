"""Prometheus metrics of a Kafka worker.

Times are exported as timestamps; compute an age in the query, as `time() - …_timestamp_seconds`. What compares footage
with the present (`newest`, `drift`, `late`, `delay`) is exported of live footage only, whose times are those of
arrival: an archive that `publish` sends is old by nature.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from index.records import ClockSource, Segment

__all__ = ["LATE_SECONDS", "ConsumerMetrics"]

LATE_SECONDS = 60
"""Seconds from the end of a segment to its commit after which its frames count as late."""
_MAX_STREAMS = 2000  # with a time series of their own; all others share the label `other`
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DELAYS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 14_400, 86_400)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ConsumerMetrics:
    """The metrics of one worker, in a registry of its own, so that a process may run several. Safe for threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._streams: set[str] = set()
        self._partitions: set[tuple[str, int]] = set()
        self._newest: dict[str, int] = {}

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            """A gauge of the worker."""
            return Gauge(f"sightline_consumer_{name}", text, labels, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            """A counter of the worker."""
            return Counter(f"sightline_consumer_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            """A histogram of the worker."""
            return Histogram(f"sightline_consumer_{name}", text, buckets=buckets, registry=self.registry)

        self.lag = gauge("lag_messages", "Messages of a partition that are not stored", "topic", "partition")
        self.partitions = gauge("partitions", "Partitions that this worker owns")
        self.paused = gauge("paused_partitions", "Partitions that are paused because the queue is full")
        self.queue = gauge("queue_segments", "Segments read and not decoded yet")
        self.queue_capacity = gauge("queue_capacity_segments", "Capacity of the queue")
        self.newest = gauge(
            "newest_timestamp_seconds", "Capture time of the newest stored frame of a live stream", "stream"
        )
        self.drift = gauge(
            "clock_drift_seconds",
            "End of the newest segment of a live stream by the camera's clock minus the time it was read at: above 0, "
            "the clock is ahead",
            "stream",
        )
        self.segments = counter("segments", "Segments stored", "stream")
        self.frames = counter("frames", "Frames stored", "stream")
        self.dropped = counter("dropped_frames", "Frames decoded whose second was already stored", "stream")
        self.late = counter(
            "late_frames", f"Live frames stored more than {LATE_SECONDS} s after the end of their segment", "stream"
        )
        self.dead_letters = counter("dead_letters", "Messages that could not be stored", "reason", "step")
        self.commits = counter("commits", "Commits to the store")
        self.fenced = counter("fenced", "Commits refused because another worker owned the partition")
        self.rebalances = counter("rebalances", "Assignments of partitions by the group")
        self.commit_seconds = histogram("commit_seconds", "One commit of all three tables", _SECONDS)
        self.commit_segments = histogram("commit_segments", "Segments of one commit", _COUNTS)
        self.batch_frames = histogram("batch_frames", "Frames of one encoder batch", _COUNTS)
        self.delay_seconds = histogram("delay_seconds", "From the end of a live segment to its commit", _DELAYS)

    # ---- called by the worker --------------------------------------------------------------------------------------

    def stored(self, segments: Iterable[Segment], decoded: Mapping[tuple[str, int], int], seconds: float) -> None:
        """Count one commit.

        Args:
            segments: the segments as stored.
            decoded: the number of frames decoded, by (source, chunk) of the segment.
            seconds: the duration of the commit.
        """
        now, count = time.time(), 0
        for segment in segments:
            stream, delay = self._stream(segment.stream_id), now - segment.end / 1e6
            count += 1
            self.segments.labels(stream).inc()
            self.frames.labels(stream).inc(segment.frames)
            self.dropped.labels(stream).inc(max(0, decoded.get((segment.source, segment.chunk), 0) - segment.frames))
            if segment.clock_source == "arrival":
                self.late.labels(stream).inc(segment.frames if delay > LATE_SECONDS else 0)
                self.delay_seconds.observe(max(0.0, delay))
        self.commits.inc()
        self.commit_seconds.observe(seconds)
        self.commit_segments.observe(count)

    def newest_frame(self, stream: str, micros: int, clock: ClockSource) -> None:
        """Note the capture time of a stored frame, in UTC microseconds; the latest one of a live stream is exported."""
        if clock != "arrival":
            return
        label = self._stream(stream)
        self._newest[label] = max(micros, self._newest.get(label, micros))
        self.newest.labels(label).set(self._newest[label] / 1e6)

    def read(self, stream: str, end_micros: int, clock: ClockSource) -> None:
        """Note that a segment was read whose footage ends at `end_micros`, in UTC microseconds."""
        if clock != "arrival":
            return
        self.drift.labels(self._stream(stream)).set(end_micros / 1e6 - time.time())

    def lags(self, lags: Mapping[tuple[str, int], int]) -> None:
        """Set the number of messages not stored, by (topic, partition), of the partitions that this worker owns now."""
        for topic, partition in self._partitions - lags.keys():
            self.lag.remove(topic, str(partition))
        self._partitions = set(lags)
        for (topic, partition), count in lags.items():
            self.lag.labels(topic, str(partition)).set(count)
        self.partitions.set(len(lags))

    def _stream(self, stream: str) -> str:
        if stream not in self._streams and len(self._streams) >= _MAX_STREAMS:
            return "other"
        self._streams.add(stream)
        return stream
