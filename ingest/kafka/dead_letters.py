"""Dead letters: messages that could not be stored, listed and replayed.

The topic is compacted and keyed by origin (topic/partition/offset of the message), so only the latest letter of a
message counts. A record without a value marks a letter as replayed. A worker that is killed may write a letter twice;
it is listed once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import structlog
from kafka import TopicPartition

from index.errors import KafkaProblem, MessageInvalid, UsageError, shown_text
from ingest.kafka.clients import Sender, end_offsets, new_consumer, translate_errors
from ingest.kafka.record_batches import RecordBatches, UnreadableBatch
from ingest.kafka.settings import KafkaSettings
from ingest.messages import DeadLetter, parse_dead_letter

__all__ = ["ATTEMPT", "attempt_of", "find_letter", "list_letters", "raw_value", "replay"]

ATTEMPT = "sightline-attempt"
"""The record header with the number of attempts to store a message before it was produced again."""
_log = structlog.get_logger(__name__)


def attempt_of(headers: Sequence[tuple[str, bytes | None]] | None) -> int:
    """The number of earlier attempts to store a record, from its headers; 0 when there is no valid header of them."""
    for name, value in headers or ():
        if name == ATTEMPT and value is not None and len(value) <= 6 and value.isdigit():
            return int(value)
    return 0


def list_letters(settings: KafkaSettings) -> list[DeadLetter]:
    """The letters that were not replayed, ordered by time.

    Raises:
        BrokerUnavailable, TopicMissing, KafkaProblem: the topic cannot be read to its end.
    """
    letters: dict[str, DeadLetter] = {}
    for key, value in _read_topic(settings, settings.deadletter):
        if value is None:
            letters.pop(key, None)
            continue
        try:
            letters[key] = parse_dead_letter(value)
        except MessageInvalid as error:
            _log.warning("a dead letter does not parse; it is skipped", origin=key, problem=str(error))
    return sorted(letters.values(), key=lambda letter: (letter.failed_at, letter.origin))


def _read_topic(settings: KafkaSettings, topic: str) -> Iterator[tuple[str, bytes | None]]:
    """Key and value of every record that is in the topic at the time of the call."""
    consumer = new_consumer(settings)
    try:
        with translate_errors(settings):
            numbers = consumer.partitions_for_topic(topic)
            if not numbers:
                return
            partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
            consumer.assign(partitions)
            ends = end_offsets(consumer, partitions)
            for partition, (first, _) in ends.items():
                consumer.seek(partition, first)
            deadline = time.monotonic() + settings.connect_seconds
            while any(consumer.position(p) < end for p, (_, end) in ends.items()):
                for records in consumer.poll(timeout_ms=500).values():
                    deadline = time.monotonic() + settings.connect_seconds
                    for record in records:
                        yield (record.key or b"").decode(errors="replace"), record.value
                if time.monotonic() > deadline:
                    raise KafkaProblem(
                        f"{topic}: the broker sent no record for {settings.connect_seconds:g} s, before the end of the "
                        "topic; try again"
                    )
    finally:
        consumer.close()


def replay(settings: KafkaSettings, origins: Sequence[str] | None = None) -> list[DeadLetter]:
    """Produce the original messages of dead letters again, and mark the letters as replayed.

    When the process is killed in between, a message may be produced twice; the store keeps each second once.

    Args:
        origins: the origins of the letters to replay; all letters when None.

    Returns:
        The letters that were replayed. Those whose original has expired, or is a record batch that still cannot be
        read, are left out.

    Raises:
        UsageError: an origin without a letter.
        KafkaProblem: Kafka does not accept the messages.
    """
    chosen = _chosen(settings, origins)
    done: list[DeadLetter] = []
    with Sender(settings) as sender:
        for letter in chosen:
            original = _original(settings, letter)
            if original is None:
                _log.warning("the original message has expired", origin=letter.origin)
                continue
            try:
                records = _records(letter, original)
            except MessageInvalid as error:
                _log.warning("not replayed", origin=letter.origin, problem=str(error))
                continue
            attempt = (ATTEMPT, str(letter.attempt).encode())
            for record in records:
                headers = [header for header in record.headers if header[0] != ATTEMPT]
                sender.send(settings.segments, key=record.key, value=record.value, headers=[*headers, attempt])
            sender.flush()  # before the letter is marked, so that a crash repeats the message and does not lose it
            sender.send(settings.deadletter, key=letter.origin, value=None)
            done.append(letter)
        sender.flush()
    return done


class _Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def _original(settings: KafkaSettings, letter: DeadLetter) -> _Record | None:
    """The original record, from the letter or from its topic; None when the letter lacks it and it has expired."""
    value = letter.original()
    if value is None:
        return _fetch_original(settings, letter)
    return _Record(letter.original_key(), value, letter.original_headers())


def _records(letter: DeadLetter, original: _Record) -> list[_Record]:
    """What has to be sent again: the record, or the records of its batch. Raises MessageInvalid."""
    if letter.where != "batch":
        return [original]
    batches, records = RecordBatches(original.value), list[_Record]()
    while (batch := batches.next_batch()) is not None:
        records += [_Record(record.key, record.value, record.headers) for record in batch]
    if not records or any(isinstance(record.value, UnreadableBatch) for record in records):
        raise MessageInvalid(
            f"{letter.origin}: the record batch still cannot be read; `sightline deadletter show --raw` has its bytes"
        )
    return records


def _chosen(settings: KafkaSettings, origins: Sequence[str] | None) -> list[DeadLetter]:
    letters = {letter.origin: letter for letter in list_letters(settings)}
    unknown = [origin for origin in origins or () if origin not in letters]
    if unknown:
        raise UsageError(
            f"{shown_text(unknown[0])}: no dead letter of this origin; `sightline deadletter list` shows them"
        )
    return [letters[origin] for origin in (origins or letters)]


def find_letter(settings: KafkaSettings, origin: str) -> DeadLetter:
    """The letter of this origin. Raises UsageError if there is none."""
    return _chosen(settings, [origin])[0]


def raw_value(settings: KafkaSettings, letter: DeadLetter) -> bytes:
    """The bytes of a letter's original: its value, or the record batch that cannot be read.

    Raises:
        UsageError: the letter does not contain them, and they have expired in their topic.
        KafkaProblem: the topic cannot be read.
    """
    original = _original(settings, letter)
    if original is None and letter.size:
        raise UsageError(
            f"{letter.origin}: the message was too large for its dead letter, and has expired in its topic"
        )
    return b"" if original is None else original.value or b""


def _fetch_original(settings: KafkaSettings, letter: DeadLetter) -> _Record | None:
    """The original record, read from its topic, of a letter that could not contain it; None when it has expired."""
    consumer: Any = new_consumer(settings)
    try:
        with translate_errors(settings):
            partition = TopicPartition(letter.topic, letter.partition)
            consumer.assign([partition])
            first, end = end_offsets(consumer, [partition])[partition]
            if not first <= letter.offset < end:
                return None
            consumer.seek(partition, letter.offset)
            deadline = time.monotonic() + settings.connect_seconds
            while time.monotonic() < deadline:
                for record in consumer.poll(timeout_ms=500, max_records=1).get(partition, []):
                    same = record.offset == letter.offset and len(record.value or b"") == letter.size
                    return _Record(record.key, record.value, record.headers) if same and record.value else None
    finally:
        consumer.close()
    return None
