"""Hostile records through the worker's own code, without a broker: each is stored or a dead letter, and none stops it."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer import fetcher

from index.store import Store
from ingest.decoding.limits import DecodeLimits
from ingest.kafka import fetch
from ingest.kafka.indexer import KafkaIndexer, SegmentRecord
from ingest.kafka.metrics import ConsumerMetrics
from ingest.kafka.ownership import OwnedPartition, Partition, PartitionOwnership
from ingest.kafka.record_batches import RecordBatches, UnreadableBatch, decompress
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import DeadLetter, parse_dead_letter, segment_message
from ingest.segments.frames import SegmentFrames
from tests.support.brightness import BEGAN, ENCODERS, SECOND
from tests.support.poison import KINDS, Headers, batch, mutated, with_checksum
from tests.support.records import PAIR

RECORDS = 18_000
"""Records of the structured part; the other part adds at least 2,000."""
GOOD = segment_message("gate", BEGAN, 2.0, b"footage" * 20).to_bytes()


@pytest.fixture(autouse=True)
def errors_only() -> Iterator[None]:
    """Log errors only: there is a warning for each dead letter."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.reset_defaults()


class _Letters:
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
def _worker(store: Path, letters: _Letters, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KafkaIndexer, Any]]:
    """A running indexer that owns one partition; footage is not decoded, each segment has one frame."""

    def one_frame(path: Path, *, name: str, start: int, **_: Any) -> SegmentFrames:
        return SegmentFrames([start], [0.0], [np.zeros((8, 8, 3), np.uint8)], "all")

    monkeypatch.setattr(fetch, "decode_segment", one_frame)
    owned = OwnedPartition(Partition("test.segments", 0), None, 0, None)
    ownership = PartitionOwnership()
    ownership.acquire([owned])
    indexer = KafkaIndexer(
        Store.open_or_create(store, PAIR),
        ENCODERS,
        kafka=KafkaSettings(prefix="test", objects=(str(store.parent / "objects"),)),
        settings=ConsumeSettings(queue_segments=5000, commit_segments=1000, commit_seconds=60, attempts=1, decoders=2),
        limits=DecodeLimits(),
        outbox=letters,
        ownership=ownership,
        group="fuzz",
        topic_id="",
        metrics=ConsumerMetrics(),
    )
    indexer.start()
    try:
        yield indexer, owned
    finally:
        indexer.stop()


def _polled(raw: bytes, first: int) -> list[Any]:
    """The records that a consumer gets of the bytes of a fetch, by kafka-python's own code."""
    assert fetcher.MemoryRecords is RecordBatches
    records = fetcher.Fetcher.PartitionRecords(first, TopicPartition("test.segments", 0), RecordBatches(raw))
    return list(records.take(100_000))


def _feed(indexer: KafkaIndexer, owned: OwnedPartition, records: list[Any]) -> None:
    for record in records:
        item = SegmentRecord(owned, record.offset, record.key, record.value, record.headers)
        indexer.queue.put(item, timeout=60)


def _settled(indexer: KafkaIndexer) -> None:
    while indexer.failure is None and not indexer.queue.empty():
        time.sleep(0.01)
    indexer.stop(timeout=120)  # commits what was taken from the queue
    if indexer.failure is not None:
        raise indexer.failure


def test_every_hostile_record_is_stored_or_kept_as_a_dead_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(20_240_301)
    letters, values, polled, first = _Letters(), dict[int, bytes](), list[Any](), 0
    while first < RECORDS:
        records = [_one(rng, first + i) for i in range(rng.randrange(1, 200))]
        raw, end = batch(records, first=first, codec=rng.randrange(5)), first + len(records)
        if rng.random() < 0.1:
            changed = bytearray(raw)
            changed[rng.randrange(61, len(changed))] ^= 1 << rng.randrange(8)
            raw = with_checksum(bytes(changed)) if rng.random() < 0.7 else bytes(changed)
        got = _polled(raw, first)
        assert got[-1].offset == end - 1
        assert all(a.offset < b.offset for a, b in pairwise(got))
        values |= {record.offset: record.value or b"" for record in got}
        polled += got
        first = end
    with _worker(tmp_path / "store", letters, monkeypatch) as (indexer, owned):
        _feed(indexer, owned, polled)
        _settled(indexer)
        assert owned.stored == first
    stored = {segment.chunk for segment in Store.open(tmp_path / "store").segments()}
    kept = {letter.offset: letter.original() for _, letter in letters.sent}
    assert len(kept) == len(letters.sent)
    assert stored | kept.keys() == values.keys()
    assert not stored & kept.keys()
    assert all(kept[offset] == bytes(values[offset]) for offset in kept)
    assert len(stored) > 500
    assert len(kept) > RECORDS // 2
    assert Store.open(tmp_path / "store").verify() == []


def _one(rng: random.Random, number: int) -> tuple[bytes | None, bytes | None, Headers]:
    message = segment_message("gate", BEGAN + number * SECOND, 1.0, b"footage" * rng.randrange(1, 40))
    return mutated(message.to_bytes(), rng)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
_FIELDS = sorted(json.loads(GOOD))


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.binary(max_size=80)
        | st.tuples(st.sampled_from(_FIELDS), _JSON).map(lambda change: _changed(*change))
        | _JSON.map(lambda value: json.dumps(value).encode()),
        min_size=40,
        max_size=60,
    ),
    st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=20)), max_size=4),
    st.none() | st.binary(max_size=20),
)
def test_anything_that_hypothesis_makes(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[bytes],
    headers: list[tuple[str, bytes | None]],
    key: bytes | None,
) -> None:
    folder, letters = tmp_path_factory.mktemp("any"), _Letters()
    with (
        pytest.MonkeyPatch.context() as patch,
        _worker(folder / "store", letters, patch) as (indexer, owned),
    ):
        raw = batch([(b"gate" if i % 2 else key, value, headers) for i, value in enumerate(values)], first=0)
        _feed(indexer, owned, _polled(raw, 0))
        _settled(indexer)
        assert owned.stored == len(values)
    stored = {segment.chunk for segment in Store.open(folder / "store").segments()}
    kept = {letter.offset: letter.original() for _, letter in letters.sent}
    assert stored | kept.keys() == set(range(len(values)))
    assert all(kept[offset] == values[offset] for offset in kept)


def _changed(name: str, value: Any) -> bytes:
    return json.dumps({**json.loads(GOOD), name: value}).encode()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_of_invalid_field(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = _Letters()
    values = [_changed(name, 1e308 if value == 10**4000 else value) for name, value in KINDS[kind].items()]
    with _worker(tmp_path / "store", letters, monkeypatch) as (indexer, owned):
        _feed(indexer, owned, _polled(batch([(b"gate", v, ()) for v in [*values, GOOD]], first=0), 0))
        _settled(indexer)
    assert [letter.original() for _, letter in letters.sent] == values
    assert {letter.error for _, letter in letters.sent} <= {"MessageInvalid", "SourceDenied"}
    assert [segment.chunk for segment in Store.open(tmp_path / "store").segments()] == [len(values)]


def test_a_header_that_is_no_number_counts_as_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters, name = _Letters(), "sightline-attempt"
    wrong: list[bytes | None] = [None, b"", b"\xff", "²".encode(), b"9" * 5000, b"-4", b"1e9"]
    records = [(b"gate", b"{", [(name, value)]) for value in [*wrong, b"4"]]
    with _worker(tmp_path / "store", letters, monkeypatch) as (indexer, owned):
        _feed(indexer, owned, _polled(batch(records, first=0), 0))
        _settled(indexer)
    assert [letter.attempt for _, letter in letters.sent] == [1] * len(wrong) + [5]
    assert [letter.original_headers() for _, letter in letters.sent] == [headers for _, _, headers in records]


@pytest.mark.parametrize("codec", range(5))
def test_a_batch_that_cannot_be_read_is_one_record(codec: int) -> None:
    records = [(b"gate", b"%d" % i * 500, [("name", b"value")]) for i in range(3)]
    good = batch(records, first=7, codec=codec)
    assert [(r.offset, r.key, r.value) for r in _polled(good, 7)] == [
        (7 + i, r[0], r[1]) for i, r in enumerate(records)
    ]
    changed = bytearray(good)
    changed[70] ^= 0xFF
    for raw in (bytes(changed), with_checksum(good[:61] + b"\xff" * (len(good) - 61))):
        after = batch(records, first=10, codec=codec)
        got = _polled(raw + after, 7)
        assert [r.offset for r in got] == [9, 10, 11, 12]
        assert isinstance(got[0].value, UnreadableBatch)
        assert got[0].value == raw
        assert got[0].value.reason


def test_a_batch_of_an_unknown_codec_is_one_record() -> None:
    raw = bytearray(batch([(b"gate", b"x", ())], first=3))
    raw[22] |= 7
    (record,) = _polled(with_checksum(bytes(raw)), 3)
    assert (record.offset, record.value.reason) == (3, "the record batch cannot be read: compression 7 is unknown")


@pytest.mark.parametrize("codec", range(1, 5))
def test_a_batch_that_decompresses_to_too_much_is_one_record(codec: int) -> None:
    raw = batch([(b"gate", bytes(40 * 2**20), ())], first=0, codec=codec)
    assert len(raw) < 4 * 2**20
    (record,) = _polled(raw, 0)
    assert "decompress to more than" in record.value.reason
    with pytest.raises(ValueError, match="decompress to more than"):
        decompress(codec, raw[61:])


def test_a_fetch_stops_at_its_budget_and_goes_on_from_there() -> None:
    raws = [batch([(b"gate", bytes(20 * 2**20), ())], first=i, codec=4) for i in range(4)]
    assert [record.offset for record in _polled(b"".join(raws), 0)] == [0, 1]
    assert [record.offset for record in _polled(b"".join(raws[2:]), 2)] == [2, 3]


def test_a_name_of_a_header_that_is_not_utf8_is_escaped() -> None:
    raw = bytearray(batch([(b"gate", b"value", [("name", b"value")])], first=0))
    at = raw.index(b"name")
    raw[at] = 0xFF
    (record,) = _polled(with_checksum(bytes(raw)), 0)
    assert (record.value, record.headers) == (b"value", [("\\xffame", b"value")])
