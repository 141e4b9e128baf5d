"""Following `sightline.alerts`: every alert told once, pictures into a folder."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import structlog

from index.errors import KafkaProblem, MessageInvalid, TopicMissing, UsageError
from ingest.kafka.clients import native, new_consumer, translate_errors
from ingest.kafka.settings import KafkaSettings
from ingest.messages import AlertMessage, parse_alert

__all__ = ["follow", "save_picture"]

_REMEMBERED = 10_000
_log = structlog.get_logger(__name__)


def follow(
    kafka: KafkaSettings, *, beginning: bool = False, drain: bool = False, stop: threading.Event | None = None
) -> Iterator[AlertMessage]:
    """The alerts of all partitions as they come; a repeated one is left out, one that does not parse too, with a warning.

    Args:
        beginning: from the oldest that is kept; else only what comes from now on.
        drain: end at the end of what there was at first.

    Raises:
        BrokerUnavailable, TopicMissing, KafkaProblem: Kafka cannot be used.
    """
    stop = stop or threading.Event()
    told: OrderedDict[tuple[str, str], None] = OrderedDict()
    consumer = new_consumer(kafka)
    try:
        with translate_errors(kafka):
            numbers = consumer.partitions_for_topic(kafka.alerts)
            if not numbers:
                raise TopicMissing(f"Kafka at {kafka.servers}: no topic {kafka.alerts}; `sightline consume` makes it")
            partitions = native((kafka.alerts, number) for number in sorted(numbers))
            consumer.assign(partitions)
            ends = consumer.end_offsets(partitions)
            first = consumer.beginning_offsets(partitions) if beginning else ends
            for partition in partitions:
                consumer.seek(partition, first[partition])
        while not stop.is_set():
            try:
                with translate_errors(kafka):
                    found = consumer.poll(timeout_ms=200)
            except KafkaProblem as error:
                if drain:
                    raise
                _log.warning("polling failed; trying again", problem=str(error))
                time.sleep(0.5)
                continue
            for records in found.values():
                for record in records:
                    try:
                        alert = parse_alert(record.value)
                    except MessageInvalid as error:
                        _log.warning("passed over", offset=record.offset, problem=str(error))
                        continue
                    if (alert.id, alert.state) not in told:
                        told[alert.id, alert.state] = None
                        if len(told) > _REMEMBERED:
                            told.popitem(last=False)
                        yield alert
            if drain and all(consumer.position(partition) >= ends[partition] for partition in partitions):
                return
    finally:
        consumer.close()


def save_picture(alert: AlertMessage, folder: Path) -> Path | None:
    """Write the alert's picture to `<stream>_<start>_<id>.jpg`; where it is, None when there is no picture.

    Raises:
        UsageError: the folder cannot be written to.
    """
    jpeg = alert.jpeg()
    if jpeg is None:
        return None
    path = folder / f"{alert.stream}_{alert.start:%Y-%m-%dT%H-%M-%SZ}_{alert.id[:8]}.jpg"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot write pictures there ({error.strerror}); choose another --pictures"
        ) from None
    return path
