"""Benchmark of the Kafka worker, `sightline bench consume`: segments a second into the store, beside the speed of its
parts."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from index.errors import KafkaProblem
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.embedding import embed, picture
from ingest.kafka.clients import Sender, make_topics
from ingest.kafka.fetch import read_segment
from ingest.kafka.poller import consume
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import parse_segment
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.demo.render import render

if TYPE_CHECKING:
    from ingest.messages import SegmentMessage

__all__ = ["ConsumeBench", "bench_consume"]


class ConsumeBench(BaseModel):
    """Result of one run on one machine. Speeds are in segments a second, of the same segments."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    cores: int
    """Cores of the machine."""
    load: float
    """Load average of the machine at the end (one minute), which affects all speeds."""
    cameras: int
    """Cameras that are consumed."""
    segments: int
    """Segments that are consumed."""
    frames: int
    """Frames in them."""
    segment_seconds: float
    """Length of a segment."""
    consumer: float
    """The worker, from joining the group to the last stored offset."""
    encoder: float
    """Both encoders alone, on frames decoded before, in batches of the same size."""
    decoder: float
    """Fetching and decoding alone, as many segments at a time as the worker decodes."""
    pictures: float
    """Making the JPEG pictures alone."""
    share_of_encoder: float
    """`consumer` by `encoder`."""
    limit: float
    """Speed if the parts run one after the other and each uses all cores: 1 / (1/encoder + 1/decoder + 1/pictures)."""
    share_of_limit: float
    """`consumer` by `limit`."""
    realtime_factor: float
    """Seconds of footage stored a second."""
    commits: int
    """Commits of the store."""
    commit_seconds_median: float
    """Median duration of a commit."""
    commit_seconds_max: float
    """Longest commit."""


def bench_consume(
    profile: str,
    *,
    servers: str,
    cameras: int = 8,
    minutes: float = 2.0,
    seconds: float = 10.0,
    device: str | None = None,
) -> ConsumeBench:
    """Render footage, publish it in segments to new topics, and consume them once.

    Args:
        profile: name of the profile, or the path of its TOML file.
        servers: address of the Kafka broker.
        cameras: cameras that are rendered.
        minutes: length of each camera's footage.
        seconds: length of a segment.
        device: `cpu`, `cuda`, or None to choose.

    Raises:
        BrokerUnavailable: there is no broker at `servers`.
        KafkaProblem: the broker refuses a request, or a file is not published completely.
    """
    prefix = f"bench-{uuid.uuid4().hex[:12]}"
    kafka = KafkaSettings(servers=servers, prefix=prefix, partitions=4, session_seconds=30, inline_bytes=0)
    settings, limits = ConsumeSettings(), DecodeLimits()
    make_topics(kafka)
    encoders = load_encoders(load_profile(profile), device)
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as name:
        folder = Path(name)
        render(17, minutes, cameras, folder / "footage")
        outbox = _Copying(Sender(kafka), kafka.segments)
        kafka = kafka.model_copy(update={"objects": (f"{folder}/objects/",)})  # segments of any size, as files
        published = publish_files(
            [str(folder / "footage")],
            settings=kafka,
            sender=lambda: outbox,
            seconds=seconds,
            objects=str(folder / "objects"),
        )
        for file in published:
            if file.problem:
                raise KafkaProblem(f"{file.file}: not published completely: {file.problem}")

        began = perf_counter()
        with ThreadPoolExecutor(settings.decoders) as pool:
            read = list(pool.map(lambda m: read_segment(m, settings=kafka, limits=limits), outbox.messages()))
        decoding = perf_counter() - began
        pixels = [frame for each in read for frame in each.pixels]
        embed(encoders, pixels[: settings.batch_frames])  # not timed: the first call allocates and compiles
        began = perf_counter()
        for at in range(0, len(pixels), settings.batch_frames):
            embed(encoders, pixels[at : at + settings.batch_frames])
        encoding = perf_counter() - began
        began = perf_counter()
        for frame in pixels:
            picture(frame)
        drawing = perf_counter() - began

        store = Store.create(folder / "store", encoders.pair)
        began = perf_counter()
        report = consume(store, encoders, kafka=kafka, group="bench", settings=settings, limits=limits, drain=True)
        consuming = perf_counter() - began
    count = report.segments
    return ConsumeBench(
        profile=profile,
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        cameras=cameras,
        segments=count,
        frames=report.frames,
        segment_seconds=seconds,
        consumer=round(count / consuming, 3),
        encoder=round(count / encoding, 3),
        decoder=round(count / decoding, 3),
        pictures=round(count / drawing, 3),
        share_of_encoder=round(encoding / consuming, 3),
        limit=round(count / (encoding + decoding + drawing), 3),
        share_of_limit=round((encoding + decoding + drawing) / consuming, 3),
        realtime_factor=round(report.frames / consuming, 1),
        commits=report.commits,
        commit_seconds_median=round(float(np.median(report.commit_seconds)), 3),
        commit_seconds_max=round(max(report.commit_seconds), 3),
    )


class _Copying:
    """An outbox that also keeps the values sent to one topic."""

    def __init__(self, sender: Sender, topic: str) -> None:
        self._sender, self._topic = sender, topic
        self._values: list[bytes] = []

    def __enter__(self) -> _Copying:
        self._sender.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._sender.__exit__(*error)

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        """Send a message."""
        self._sender.send(topic, key=key, value=value)
        if topic == self._topic and value is not None:
            self._values.append(value)

    def flush(self) -> None:
        """Wait until everything is sent."""
        self._sender.flush()

    def messages(self) -> Sequence[SegmentMessage]:
        """Return the segments that were sent to the topic."""
        return [parse_segment(value) for value in self._values]
