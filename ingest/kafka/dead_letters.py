"""Dead letters: what could not be stored, listed, and sent once more.

The topic is compacted and keyed by origin, so the latest letter of a message counts, and one without a value says that
it was dealt with. A worker that is killed may write a letter twice; it is listed once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog

from index.errors import KafkaProblem, MessageInvalid, UsageError
from ingest.kafka.clients import Sender, end_offsets, new_consumer, translate_errors
from ingest.kafka.settings import KafkaSettings
from ingest.messages import DeadLetter, parse_dead_letter

__all__ = ["ATTEMPT", "attempt_of", "list_letters", "replay"]

ATTEMPT = "sightline-attempt"
_log = structlog.get_logger(__name__)


def attempt_of(headers: Sequence[tuple[str, bytes]] | None) -> int:
    """How many times a record had been tried before it was produced: its header, 0 when there is none."""
    for name, value in headers or ():
        if name == ATTEMPT and value.isdigit():
            return min(int(value), 1_000_000)
    return 0


def list_letters(settings: KafkaSettings) -> list[DeadLetter]:
    """The letters nobody has dealt with, by time.

    Raises:
        BrokerUnavailable, TopicMissing, KafkaProblem: the topic cannot be read to its end.
    """
    letters: dict[str, DeadLetter] = {}
    for key, value in _everything(settings, settings.deadletter):
        if value is None:
            letters.pop(key, None)
            continue
        try:
            letters[key] = parse_dead_letter(value)
        except MessageInvalid as error:
            _log.warning("a dead letter cannot be read", origin=key, problem=str(error))
    return sorted(letters.values(), key=lambda letter: (letter.failed_at, letter.origin))


def _everything(settings: KafkaSettings, topic: str) -> Iterator[tuple[str, bytes | None]]:
    """Key and value of every record that the topic has now."""
    from kafka import TopicPartition

    consumer = new_consumer(settings)
    try:
        with translate_errors(settings):
            found = consumer.partitions_for_topic(topic)
            if not found:
                return
            partitions = [TopicPartition(topic, number) for number in sorted(found)]
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
                        f"{topic}: the broker sent nothing for {settings.connect_seconds:g} s before its end; try again"
                    )
    finally:
        consumer.close()


def replay(settings: KafkaSettings, origins: Sequence[str] | None = None) -> list[DeadLetter]:
    """Produce the originals of `origins` once more, all of them when None, and mark them as dealt with.

    Killed half-way, one may be produced twice: the store keeps each second once.

    Raises:
        UsageError: an origin that has no letter.
        KafkaProblem: Kafka does not take them.
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
                value = _fetched(settings, letter)
            if value is None:
                _log.warning("the original is gone from its topic", origin=letter.origin)
                continue
            attempt = [(ATTEMPT, str(letter.attempt).encode())]
            sender.send(settings.segments, key=letter.key, value=value, headers=attempt)
            sender.flush()  # before the mark: better twice than not at all
            sender.send(settings.deadletter, key=letter.origin, value=None)
            done.append(letter)
        sender.flush()
    return done


def _fetched(settings: KafkaSettings, letter: DeadLetter) -> bytes | None:
    """The original of a letter that was too large to carry it, where its topic still has it."""
    from kafka import TopicPartition

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
