"""An outbox whose broker has a limit of its own for the size of a message, and may be down for a while."""

from __future__ import annotations

from index.errors import KafkaProblem, MessageTooLarge
from ingest.messages import SegmentMessage, parse_segment

__all__ = ["LimitedBroker"]


class LimitedBroker:
    """Takes the place of `ingest.kafka.clients.Sender`; as there, an error discards all messages in flight.

    Args:
        largest: bytes of the largest segment that is accepted.
        in_flight: messages that `send` queues before it waits for them.
    """

    def __init__(self, largest: int = 2**30, in_flight: int = 2**30) -> None:
        self.largest, self.most = largest, in_flight
        self.down = 0
        """How many more times the broker does not answer."""
        self.accepted: list[SegmentMessage] = []
        """What is acknowledged, in order."""
        self._in_flight: list[SegmentMessage] = []

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        """Queue a segment."""
        assert topic.endswith(".segments")
        self._in_flight.append(parse_segment(value, None if key is None else key.encode()))
        if len(self._in_flight) > self.most:
            self.flush()

    def flush(self) -> None:
        """Acknowledge what is in flight, or discard it and raise."""
        in_flight, self._in_flight = self._in_flight, []
        if self.down:
            self.down -= 1
            raise KafkaProblem("the broker does not answer")
        if any(len(message.payload() or b"") > self.largest for message in in_flight):
            raise MessageTooLarge("the broker rejects a message of this size")
        self.accepted += in_flight
