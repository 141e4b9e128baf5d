"""Hostile Kafka records through the worker's own code, without a broker: each is stored or a dead letter, none stops it.

Record batches are made as a broker sends them, in every compression, some of them damaged; kafka-python's own code reads
them. A real worker stores what is valid in a real store. Footage is not decoded: each segment has one frame.
"""

from __future__ import annotations

import logging
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import structlog
from kafka import TopicPartition
from kafka.consumer import fetcher

from index.commits.offset import OffsetCommitter
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.kafka import fetch
from ingest.kafka.indexer import KafkaIndexer, SegmentRecord
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership
from ingest.kafka.record_batches import RecordBatches
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import DeadLetter, parse_dead_letter, segment_message
from ingest.segments.frames import SegmentFrames
from tests.support.brightness import BEGAN, ENCODERS, SECOND
from tests.support.poison import Headers, batch, mutated, with_checksum
from tests.support.records import PAIR

__all__ = ["Letters", "MessagesResult", "errors_only", "feed", "fuzz_messages", "polled", "settled", "worker"]

ROUND = 10_000
"""Records that are made, consumed and compared at once."""


class Letters:
    """Takes the place of a producer, and keeps what is sent to the topic of dead letters."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, DeadLetter]] = []

    def send(self, topic: str, *, key: Any, value: bytes | None) -> None:
        """Keep a dead letter, as its reader parses it."""
        if topic.endswith("deadletter"):
            self.sent.append((key, parse_dead_letter(value)))

    def flush(self) -> None:
        """Nothing is waiting."""


@contextmanager
def errors_only() -> Iterator[None]:
    """Within the block log errors only: there is a warning for each dead letter."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.reset_defaults()


@contextmanager
def worker(
    store: Path, letters: Letters, stored: int | None = None, *, commit_segments: int = 1000
) -> Iterator[tuple[KafkaIndexer, OwnedPartition]]:
    """A running indexer that owns one partition, of which the store holds the offsets below `stored`."""

    def one_frame(path: Path, *, name: str, start: int, **_: Any) -> SegmentFrames:
        return SegmentFrames([start], [0.0], [np.zeros((8, 8, 3), np.uint8)], "all")

    owned = OwnedPartition(Partition("test.segments", 0), stored, stored or 0, None)
    ownership = PartitionOwnership()
    ownership.acquire([owned])
    indexer = KafkaIndexer(
        Store.open_or_create(store, PAIR),
        ENCODERS,
        kafka=KafkaSettings(prefix="test", objects=(str(store.parent / "objects"),)),
        settings=ConsumeSettings(
            queue_segments=5000, commit_segments=commit_segments, commit_seconds=60, attempts=1, decoders=2
        ),
        limits=DecodeLimits(),
        outbox=letters,
        ownership=ownership,
        group="fuzz",
        topic_id="",
        metrics=ConsumerMetrics(),
    )
    with patch.object(fetch, "decode_segment", one_frame):
        indexer.start()
        try:
            yield indexer, owned
        finally:
            indexer.stop()


def polled(raw: bytes, first: int) -> list[Any]:
    """The records that a consumer gets of the bytes of a fetch, by kafka-python's own code."""
    assert fetcher.MemoryRecords is RecordBatches
    records = fetcher.Fetcher.PartitionRecords(first, TopicPartition("test.segments", 0), RecordBatches(raw))
    return list(records.take(100_000))


def feed(indexer: KafkaIndexer, owned: OwnedPartition, records: list[Any]) -> None:
    """Hand records to the indexer, as the poller does."""
    for record in records:
        item = SegmentRecord(owned, record.offset, record.key, record.value, record.headers)
        indexer.queue.put(item, timeout=600)


def settled(indexer: KafkaIndexer) -> None:
    """Wait until everything is committed. Raises the error that ended the indexer."""
    while indexer.failure is None and not indexer.queue.empty():
        time.sleep(0.01)
    indexer.stop(timeout=120)  # commits what was taken from the queue
    if indexer.failure is not None:
        raise indexer.failure


@dataclass(slots=True)
class MessagesResult:
    """What became of all records."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How many were `stored`, how many a dead letter by type of its error; `records` is the number of offsets."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """First offset and reason of each round that broke a promise."""
    seconds: float = 0.0
    """Seconds that all took."""
    peak_mib: float = 0.0
    """Peak resident memory of this process, in MiB."""


def fuzz_messages(folder: Path, *, seed: int, cases: int) -> MessagesResult:
    """Send `cases` records through one partition and one store; see `MessagesResult` for what is counted.

    A batch that cannot be read is one dead letter, which holds the whole batch.
    """
    result, rng, first, began = MessagesResult(), random.Random(seed), 0, time.monotonic()
    with errors_only():
        while first < cases and not result.failures:
            end = min(first + ROUND, cases)
            try:
                _round(folder / "store", rng, first, end, result.outcomes)
            except Exception as error:
                result.failures.append((first, f"{type(error).__name__}: {error}"))
            first = end
        if problems := Store.open(folder / "store").verify():
            result.failures.append((first, f"verify: {problems}"))
    result.seconds = time.monotonic() - began
    result.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def _round(store: Path, rng: random.Random, first: int, end: int, outcomes: Counter[str]) -> None:
    """Make the records of the offsets from `first` to `end`, consume them, and compare. Raises AssertionError."""
    letters, records, at = Letters(), list[Any](), first
    while at < end:
        records += _made(rng, at, upper := min(at + rng.randrange(1, 200), end))
        at = upper
    values = {record.offset: record.value or b"" for record in records}
    with worker(store, letters, first or None) as (indexer, owned):
        feed(indexer, owned, records)
        settled(indexer)
    held = Store.open(store)
    offset = OffsetCommitter(held.tables).offsets(["test.segments/0"])["test.segments/0"]
    assert owned.stored == offset == end, f"the partition is at {owned.stored}, the store at {offset}, not at {end}"
    stored = {segment.chunk for segment in held.segments() if segment.chunk >= first}
    kept = {letter.offset: letter.original() for _, letter in letters.sent}
    assert len(kept) == len(letters.sent), "two dead letters for one offset"
    assert stored | kept.keys() == values.keys(), f"lost: {sorted(values.keys() - stored - kept.keys())[:20]}"
    assert not stored & kept.keys(), f"stored and a dead letter: {sorted(stored & kept.keys())[:20]}"
    changed = [offset for offset in kept if kept[offset] != bytes(values[offset])]
    assert not changed, f"dead letters that differ from their record: {changed[:20]}"
    outcomes["records"] += end - first
    outcomes["stored"] += len(stored)
    outcomes.update(letter.error for _, letter in letters.sent)


def _made(rng: random.Random, first: int, end: int) -> list[Any]:
    """What a consumer gets of one batch of hostile records, one in ten of which is damaged."""
    raw = batch([_one(rng, number) for number in range(first, end)], first=first, codec=rng.randrange(5))
    if rng.random() < 0.1:
        changed = bytearray(raw)
        changed[rng.randrange(61, len(changed))] ^= 1 << rng.randrange(8)
        raw = with_checksum(bytes(changed)) if rng.random() < 0.7 else bytes(changed)
    got = polled(raw, first)
    assert got[-1].offset == end - 1, f"the batch {first} to {end} ends at {got[-1].offset}"
    assert all(a.offset < b.offset for a, b in pairwise(got)), f"offsets of the batch {first} do not ascend"
    return got


def _one(rng: random.Random, number: int) -> tuple[bytes | None, bytes | None, Headers]:
    message = segment_message("gate", BEGAN + number * SECOND, 1.0, b"footage" * rng.randrange(1, 40))
    return mutated(message.to_bytes(), rng)
