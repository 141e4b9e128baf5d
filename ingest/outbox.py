"""Publishing of messages: the interface to a producer of Kafka messages, and the publishing of alerts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from index.errors import MessageTooLarge
from ingest.messages import AlertMessage

__all__ = ["Outbox", "publish_alerts"]


class Outbox(Protocol):
    """The part of `ingest.kafka.clients.Sender` that publishers of messages use."""

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        """Queue a record. Raises MessageTooLarge or another KafkaProblem."""
        ...

    def flush(self) -> None:
        """Wait until the broker has acknowledged all records. Raises MessageTooLarge or another KafkaProblem."""
        ...


def publish_alerts(outbox: Outbox, topic: str, alerts: Sequence[AlertMessage]) -> None:
    """Publish alerts, keyed by stream and in order; one that is too large goes without its picture.

    Alerts are acknowledged one by one. After an error, the caller must publish all of them again.

    Raises:
        KafkaProblem: the broker does not accept them.
    """
    for alert in alerts:
        try:
            outbox.send(topic, key=alert.stream, value=alert.to_bytes())
            outbox.flush()
        except MessageTooLarge:
            outbox.send(topic, key=alert.stream, value=alert.without_picture().to_bytes())
    if alerts:
        outbox.flush()
