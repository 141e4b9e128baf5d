"""Where messages for Kafka go, and alerts among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from index.errors import MessageTooLarge
from ingest.messages import AlertMessage

__all__ = ["Outbox", "publish_alerts"]


class Outbox(Protocol):
    """What those who produce messages need of `ingest.kafka.clients.Sender`."""

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None: ...
    def flush(self) -> None: ...


def publish_alerts(outbox: Outbox, topic: str, told: Sequence[AlertMessage]) -> None:
    """Publish what the standing questions found; at least once, by stream in order. Raises KafkaProblem."""
    for alert in told:
        try:
            outbox.send(topic, key=alert.stream, value=alert.to_bytes())
            outbox.flush()
        except MessageTooLarge:
            outbox.send(topic, key=alert.stream, value=alert.without_picture().to_bytes())
    if told:
        outbox.flush()
