"""Dead letters: messages that could not be stored, listed and replayed.

The topic is compacted and keyed by origin (topic/partition/offset of the message), so only the latest letter of a
message counts. A record without a value marks a letter as replayed. A worker that is killed may write a letter twice;
it is listed once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from kafka import TopicPartition

from index.errors import KafkaProblem, MessageInvalid, UsageError
from ingest.kafka.clients import Sender, end_offsets, new_consumer, translate_errors
from ingest.kafka.settings import KafkaSettings
from ingest.messages import DeadLetter, parse_dead_letter

__all__ = ["ATTEMPT", "attempt_of", "list_letters", "replay"]

ATTEMPT = "sightline-attempt"
"""The record header with the number of attempts to store a message before it was produced again."""
_log = structlog.get_logger(__name__)


def attempt_of(headers: Sequence[tuple[str, bytes]] | None) -> int:
    """The number of earlier attempts to store a record, from its headers; 0 when there is no such header."""
    for name, value in headers or ():
        if name == ATTEMPT and value.isdigit():
            return min(int(value), 1_000_000)
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
        The letters that were replayed. Those whose original has expired are left out.

    Raises:
        UsageError: an origin without a letter.
        KafkaProblem: Kafka does not accept the messages.
    """
    letters = {letter.origin: letter for letter in list_letters(settings)}
    unknown = [origin for origin in origins or () if origin not in letters]
    if unknown:
        raise UsageError(f"{unknown[0]}: no dead letter of this origin; `sightline deadletter list` shows them")
    chosen = [letters[origin] for origin in (origins or letters)]
    done: list[DeadLetter] = []
    with Sender(settings) as sender:
        for letter in chosen:
            value = letter.original()
            if value is None:
                value = _fetch_original(settings, letter)
            if value is None:
                _log.warning("the original message has expired", origin=letter.origin)
                continue
            attempt = [(ATTEMPT, str(letter.attempt).encode())]
            sender.send(settings.segments, key=letter.key, value=value, headers=attempt)
            sender.flush()  # before the letter is marked, so that a crash repeats the message and does not lose it
            sender.send(settings.deadletter, key=letter.origin, value=None)
            done.append(letter)
        sender.flush()
    return done


def _fetch_original(settings: KafkaSettings, letter: DeadLetter) -> bytes | None:
    """The original message, read from its topic, of a letter that could not contain it; None when it has expired."""
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
                    return bytes(record.value) if same and record.value else None
    finally:
        consumer.close()
    return None
