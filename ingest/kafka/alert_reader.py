"""The reader of `sightline.alerts`: yields every alert once.

It does not join a consumer group, so that any number of readers see all alerts.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

import structlog

from index.errors import KafkaProblem, MessageInvalid, TopicMissing
from ingest.kafka.clients import native, new_consumer, translate_errors
from ingest.kafka.settings import KafkaSettings
from ingest.messages import AlertMessage, parse_alert

__all__ = ["follow"]

_REMEMBERED = 10_000  # alerts among which repeated ones are recognised
_POLL_MS = 200
_RETRY_SECONDS = 0.5
_log = structlog.get_logger(__name__)


def follow(
    kafka: KafkaSettings, *, beginning: bool = False, drain: bool = False, stop: threading.Event | None = None
) -> Iterator[AlertMessage]:
    """The alerts of all partitions as they arrive, without repetitions. A message that does not parse is logged.

    Args:
        beginning: start at the oldest alert that the topic keeps; otherwise only new alerts are read.
        drain: stop at the topic's end at the time of the call.
        stop: stops the reader when it is set.

    Yields:
        One message for an alert that was raised, and another, with the same id, when it is cleared.

    Raises:
        BrokerUnavailable, TopicMissing, KafkaProblem: Kafka cannot be used.
    """
    stop = stop or threading.Event()
    seen: OrderedDict[tuple[str, str], None] = OrderedDict()
    consumer = new_consumer(kafka)
    try:
        with translate_errors(kafka):
            numbers = consumer.partitions_for_topic(kafka.alerts)
            if not numbers:
                raise TopicMissing(f"Kafka at {kafka.servers}: no topic {kafka.alerts}; `sightline consume` creates it")
            partitions = native((kafka.alerts, number) for number in sorted(numbers))
            consumer.assign(partitions)
            ends = consumer.end_offsets(partitions)
            first = consumer.beginning_offsets(partitions) if beginning else ends
            for partition in partitions:
                consumer.seek(partition, first[partition])
        while not stop.is_set():
            try:
                with translate_errors(kafka):
                    polled = consumer.poll(timeout_ms=_POLL_MS)
            except KafkaProblem as error:
                if drain:
                    raise
                _log.warning("polling failed; retrying", problem=str(error))
                stop.wait(_RETRY_SECONDS)
                continue
            for records in polled.values():
                for record in records:
                    try:
                        alert = parse_alert(record.value)
                    except MessageInvalid as error:
                        _log.warning("an alert does not parse; it is skipped", offset=record.offset, problem=str(error))
                        continue
                    if (alert.id, alert.state) not in seen:
                        seen[alert.id, alert.state] = None
                        if len(seen) > _REMEMBERED:
                            seen.popitem(last=False)
                        yield alert
            if drain and all(consumer.position(partition) >= ends[partition] for partition in partitions):
                return
    finally:
        consumer.close()
