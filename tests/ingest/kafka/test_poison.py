"""Single kinds of hostile records through the worker's own code; `tests.fuzz.messages` has them by the thousand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.store import Store
from ingest.kafka import indexer as indexer_module
from ingest.kafka.indexer import SegmentRecord
from ingest.kafka.record_batches import UnreadableBatch, decompress
from ingest.messages import segment_message
from tests.fuzz.messages import Letters, errors_only, feed, polled, settled, worker
from tests.support.brightness import BEGAN
from tests.support.poison import KINDS, batch, with_checksum

GOOD = segment_message("gate", BEGAN, 2.0, b"footage" * 20).to_bytes()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """There is a warning for each dead letter."""
    with errors_only():
        yield


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
    folder, letters = tmp_path_factory.mktemp("any"), Letters()
    with worker(folder / "store", letters) as (indexer, owned):
        raw = batch([(b"gate" if i % 2 else key, value, headers) for i, value in enumerate(values)], first=0)
        feed(indexer, owned, polled(raw, 0))
        settled(indexer)
        assert owned.stored == len(values)
    stored = {segment.chunk for segment in Store.open(folder / "store").segments()}
    kept = {letter.offset: letter.original() for _, letter in letters.sent}
    assert stored | kept.keys() == set(range(len(values)))
    assert all(kept[offset] == values[offset] for offset in kept)


def _changed(name: str, value: Any) -> bytes:
    return json.dumps({**json.loads(GOOD), name: value}).encode()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_of_invalid_field(kind: str, tmp_path: Path) -> None:
    letters = Letters()
    values = [_changed(name, 1e308 if value == 10**4000 else value) for name, value in KINDS[kind].items()]
    with worker(tmp_path / "store", letters) as (indexer, owned):
        feed(indexer, owned, polled(batch([(b"gate", v, ()) for v in [*values, GOOD]], first=0), 0))
        settled(indexer)
    assert [letter.original() for _, letter in letters.sent] == values
    assert {letter.error for _, letter in letters.sent} <= {"MessageInvalid", "SourceDenied"}
    assert [segment.chunk for segment in Store.open(tmp_path / "store").segments()] == [len(values)]


def test_a_header_that_is_no_number_counts_as_no_attempt(tmp_path: Path) -> None:
    letters, name = Letters(), "sightline-attempt"
    wrong: list[bytes | None] = [None, b"", b"\xff", "²".encode(), b"9" * 5000, b"-4", b"1e9"]
    records = [(b"gate", b"{", [(name, value)]) for value in [*wrong, b"4"]]
    with worker(tmp_path / "store", letters) as (indexer, owned):
        feed(indexer, owned, polled(batch(records, first=0), 0))
        settled(indexer)
    assert [letter.attempt for _, letter in letters.sent] == [1] * len(wrong) + [5]
    assert [letter.original_headers() for _, letter in letters.sent] == [headers for _, _, headers in records]


@pytest.mark.parametrize("codec", range(5))
def test_a_batch_that_cannot_be_read_is_one_record(codec: int) -> None:
    records = [(b"gate", b"%d" % i * 500, [("name", b"value")]) for i in range(3)]
    good = batch(records, first=7, codec=codec)
    assert [(r.offset, r.key, r.value) for r in polled(good, 7)] == [(7 + i, r[0], r[1]) for i, r in enumerate(records)]
    changed = bytearray(good)
    changed[70] ^= 0xFF
    for raw in (bytes(changed), with_checksum(good[:61] + b"\xff" * (len(good) - 61))):
        after = batch(records, first=10, codec=codec)
        got = polled(raw + after, 7)
        assert [r.offset for r in got] == [9, 10, 11, 12]
        assert isinstance(got[0].value, UnreadableBatch)
        assert got[0].value == raw
        assert got[0].value.reason


def test_a_damaged_offset_takes_no_place_of_another_record() -> None:
    good = batch([(b"gate", b"%d" % number, ()) for number in range(5)], first=100)
    after = batch([(b"gate", b"next", ())], first=105)
    for at in range(57, len(good)):  # the number of records, and the records
        for change in (1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0xFF):
            raw = bytearray(good)
            raw[at] ^= change
            offsets = [record.offset for record in polled(with_checksum(bytes(raw)) + after, 100)]
            assert offsets[-1] == 105
            assert offsets == sorted(set(offsets)), (at, change)
            assert 100 <= offsets[0] <= offsets[-2] <= 104, (at, change)


def test_a_batch_of_an_unknown_codec_is_one_record() -> None:
    raw = bytearray(batch([(b"gate", b"x", ())], first=3))
    raw[22] |= 7
    (record,) = polled(with_checksum(bytes(raw)), 3)
    assert (record.offset, record.value.reason) == (3, "the record batch cannot be read: compression 7 is unknown")


@pytest.mark.parametrize("codec", range(1, 5))
def test_a_batch_that_decompresses_to_too_much_is_one_record(codec: int) -> None:
    raw = batch([(b"gate", bytes(40 * 2**20), ())], first=0, codec=codec)
    assert len(raw) < 4 * 2**20
    (record,) = polled(raw, 0)
    assert "decompress to more than" in record.value.reason
    with pytest.raises(ValueError, match="decompress to more than"):
        decompress(codec, raw[61:])


def test_a_fetch_stops_at_its_budget_and_goes_on_from_there() -> None:
    raws = [batch([(b"gate", bytes(20 * 2**20), ())], first=i, codec=4) for i in range(4)]
    assert [record.offset for record in polled(b"".join(raws), 0)] == [0, 1]
    assert [record.offset for record in polled(b"".join(raws[2:]), 2)] == [2, 3]


def test_a_name_of_a_header_that_is_not_utf8_is_escaped() -> None:
    raw = bytearray(batch([(b"gate", b"value", [("name", b"value")])], first=0))
    at = raw.index(b"name")
    raw[at] = 0xFF
    (record,) = polled(with_checksum(bytes(raw)), 0)
    assert (record.value, record.headers) == (b"value", [("\\xffame", b"value")])


def test_the_queue_of_records_is_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer_module, "QUEUE_BYTES", 1000)
    letters = Letters()
    with worker(tmp_path / "store", letters) as (indexer, owned):
        assert indexer.offer(SegmentRecord(owned, 0, b"gate", bytes(5000)))  # a single record may have more
        settled(indexer)
        assert len(letters.sent) == 1
        assert indexer.offer(SegmentRecord(owned, 1, b"gate", bytes(600)))
        assert not indexer.offer(SegmentRecord(owned, 2, b"gate", bytes(300), [("attempt", bytes(200))]))
        assert indexer.offer(SegmentRecord(owned, 2, b"gate", bytes(400)))
        assert not indexer.offer(SegmentRecord(owned, 3, b"gate", b"x"))
