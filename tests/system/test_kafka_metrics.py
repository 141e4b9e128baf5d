"""What Prometheus would read from a real consumer."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ingest.kafka.clients import Sender, make_topics
from ingest.kafka.publisher import publish_files
from tests.support.footage import make_video
from tests.support.kafka_server import Broker, broker
from tests.support.processes import environment

__all__ = ["broker"]  # a fixture

pytestmark = pytest.mark.system
BEGAN = 1_709_280_000  # 2024-03-01T08:00:00Z
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as reply:
        text = reply.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"sightline_consumer_{name}", frozenset(labels.items())))


def until(port: int, true: Callable[[Samples], bool], worker: subprocess.Popen[str], timeout: float = 600) -> Samples:
    deadline = time.monotonic() + timeout
    while True:
        assert worker.poll() is None
        samples = scrape(port)
        if true(samples):
            return samples
        assert time.monotonic() < deadline, {k: v for k, v in samples.items() if "consumer" in k[0]}
        time.sleep(0.1)


def test_a_real_consumer_is_scraped(broker: Broker, profile: str, tmp_path: Path) -> None:
    settings = broker.settings(prefix="metrics", partitions=2)
    make_topics(settings)
    films = [tmp_path / "gate.mp4", tmp_path / "yard.mp4"]
    for film in films:
        make_video(film, seconds=8, gop=10)
        publish_files(
            [film],
            settings=settings,
            sender=lambda: Sender(settings),
            start=datetime.fromtimestamp(BEGAN, UTC),
            seconds=2,
        )
    with Sender(settings) as sender:
        sender.send(settings.segments, key="gate", value=b"no JSON")
        sender.flush()
    kafka = {"SIGHTLINE_KAFKA_SERVERS": broker.servers, "SIGHTLINE_KAFKA_PREFIX": "metrics"}
    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pipeline.cli",
            "consume",
            "--group",
            "g",
            "--store",
            str(tmp_path / "store"),
            "--profile",
            profile,
            "--metrics-port",
            "0",
        ],
        cwd=tmp_path,
        env=environment(tmp_path, **kafka, SIGHTLINE_KAFKA_SESSION_SECONDS="60"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert worker.stderr is not None
        # A line on the decoder's sandbox comes first; at the end of the stream the worker has ended.
        noted = next((line for line in worker.stderr if line.startswith("note: metrics on port ")), None)
        assert noted is not None, worker.wait()
        port = int(noted.split()[4])

        def lags(samples: Samples) -> list[float]:
            return [number for (name, _), number in samples.items() if name == "sightline_consumer_lag_messages"]

        found = until(
            port,
            lambda s: (
                lags(s) == [0, 0]
                and all(value(s, "frames_total", stream=film.stem) == 8 for film in films)
                and value(s, "dead_letters_total", reason="MessageInvalid", step="message") == 1
            ),
            worker,
        )
        for film in films:
            assert value(found, "segments_total", stream=film.stem) == 4
            for of_live_footage in ("newest_timestamp_seconds", "late_frames_total", "clock_drift_seconds"):
                assert value(found, of_live_footage, stream=film.stem) is None  # an archive is old by nature
            assert value(found, "dropped_frames_total", stream=film.stem) == 0
        commits = value(found, "commits_total")
        assert commits is not None
        assert 1 <= commits <= 9
        assert value(found, "commit_seconds_count") == commits
        assert value(found, "commit_segments_sum") == 8
        assert value(found, "batch_frames_sum") == 16
        assert value(found, "delay_seconds_count") == 0
        assert value(found, "partitions") == 2
        assert value(found, "paused_partitions") == 0
        assert value(found, "queue_segments") == 0
        assert value(found, "queue_capacity_segments") == 32
        assert (value(found, "rebalances_total") or 0) >= 1
        assert value(found, "fenced_total") == 0
        assert found[("process_resident_memory_bytes", frozenset())] > 0

        # The same seconds once more: read, decoded, and not stored.
        publish_files(
            films[:1],
            settings=settings,
            sender=lambda: Sender(settings),
            start=datetime.fromtimestamp(BEGAN, UTC),
            seconds=8,
        )
        found = until(port, lambda s: value(s, "dropped_frames_total", stream="gate") == 8, worker)
        assert value(found, "frames_total", stream="gate") == 8
    finally:
        worker.terminate()
        _, complaints = worker.communicate(timeout=300)
    assert worker.returncode == 0, complaints
