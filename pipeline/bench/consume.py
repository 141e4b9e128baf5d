"""`sightline bench consume`: segments a second from Kafka to the store, beside what the encoder alone could do."""

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
from pydantic import BaseModel

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
    """One run on one machine, each figure in segments a second of the same segments.

    consumer: end to end, from the group's being joined to the last offset stored. encoder: both encoders alone, on the
    same frames decoded before, in batches of the same size. decoder: fetching and decoding alone, as many at a time as
    the worker does. pictures: the JPEGs alone. share_of_encoder: consumer by encoder. limit: what one after the other
    allows where each uses all cores, 1 / (1/encoder + 1/decoder + 1/pictures); share_of_limit: consumer by that. load:
    of the machine at the end, processes that wanted a core (one minute's mean), which all of the figures share.
    """

    profile: str
    cores: int
    load: float
    cameras: int
    segments: int
    frames: int
    segment_seconds: float
    consumer: float
    encoder: float
    decoder: float
    pictures: float
    share_of_encoder: float
    limit: float
    share_of_limit: float
    realtime_factor: float
    commits: int
    commit_seconds_median: float
    commit_seconds_max: float


def bench_consume(
    profile: str,
    *,
    servers: str,
    cameras: int = 8,
    minutes: float = 2.0,
    seconds: float = 10.0,
    device: str | None = None,
) -> ConsumeBench:
    """Render `cameras` × `minutes`, publish it in segments of `seconds` to topics of its own, and consume them once.

    Raises:
        BrokerUnavailable, KafkaProblem: no broker at `servers`, or it does not do as asked.
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
            place=str(folder / "objects"),
        )
        for file in published:
            if file.problem:
                raise KafkaProblem(f"{file.file}: not published whole: {file.problem}")

        began = perf_counter()
        with ThreadPoolExecutor(settings.decoders) as pool:
            read = list(pool.map(lambda m: read_segment(m, settings=kafka, limits=limits), outbox.messages()))
        decoding = perf_counter() - began
        pixels = [frame for each in read for frame in each.pixels]
        embed(encoders, pixels[: settings.batch_frames])  # what is made at the first call does not count
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
    """An outbox that keeps the values of one topic, too."""

    def __init__(self, sender: Sender, topic: str) -> None:
        self._sender, self._topic = sender, topic
        self._values: list[bytes] = []

    def __enter__(self) -> _Copying:
        self._sender.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._sender.__exit__(*error)

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        self._sender.send(topic, key=key, value=value)
        if topic == self._topic and value is not None:
            self._values.append(value)

    def flush(self) -> None:
        self._sender.flush()

    def messages(self) -> Sequence[SegmentMessage]:

        return [parse_segment(value) for value in self._values]
