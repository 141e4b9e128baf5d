"""Kafka clients: consumers, producers and topics created from the settings, and their errors translated into ours.

Besides `ingest.kafka.poller`, this is the only module that uses kafka-python's classes. It knows nothing of the
messages.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.admin import KafkaAdminClient, NewTopic

from index.errors import BrokerUnavailable, KafkaProblem, MessageTooLarge, TopicMissing
from ingest.kafka import membership, record_batches
from ingest.kafka.settings import KafkaSettings

__all__ = ["Sender", "end_offsets", "make_topics", "native", "new_consumer", "translate_errors"]

_MAX_IN_FLIGHT = 32  # messages of a `Sender` that are not acknowledged yet
_ACKNOWLEDGE_SECONDS = 150
record_batches.install()
membership.install()


@contextmanager
def translate_errors(settings: KafkaSettings) -> Iterator[None]:
    """Translate kafka-python's errors into those of `index.errors`.

    Raises:
        MessageTooLarge: the broker rejects a message because of its size.
        BrokerUnavailable: no connection, or it is refused.
        KafkaProblem: any other error of Kafka.
    """
    shown = f"Kafka at {settings.servers}"
    try:
        yield
    except KafkaProblem:
        raise
    except errors.MessageSizeTooLargeError as error:
        raise MessageTooLarge(
            f"{shown}: the broker rejects a message of this size; lower kafka.inline_bytes or raise its "
            "message.max.bytes"
        ) from error
    except (
        errors.AuthorizationError,
        errors.SaslAuthenticationFailedError,
        errors.UnsupportedSaslMechanismError,
    ) as error:
        raise BrokerUnavailable(
            f"{shown}: refused ({type(error).__name__.removesuffix('Error')}); check the user, the password and the "
            "ACLs"
        ) from error
    except (errors.KafkaTimeoutError, errors.KafkaConnectionError, errors.NodeNotReadyError) as error:
        raise BrokerUnavailable(
            f"{shown}: no answer within {settings.connect_seconds:g} s over {settings.security_protocol}; check the "
            "address, that the broker runs, and that it speaks this protocol"
        ) from error
    except errors.KafkaError as error:
        raise KafkaProblem(f"{shown}: {type(error).__name__}: {error}") from error
    except OSError as error:  # certificates that are missing or invalid
        raise BrokerUnavailable(
            f"{shown}: {error.strerror or error}; check the address and the certificates"
        ) from error


def make_topics(settings: KafkaSettings) -> dict[str, str]:
    """Create those of the four topics that are missing.

    Returns:
        The topic id of each topic, by name; empty when the broker gives none.

    Raises:
        BrokerUnavailable: the broker does not answer.
        TopicMissing: a topic is missing and cannot be created.
    """
    names = (settings.segments, settings.indexed, settings.deadletter, settings.alerts)
    with translate_errors(settings):
        admin = KafkaAdminClient(**settings.client())
        try:
            missing = [t["name"] for t in admin.describe_topics(list(names)) if t["error_code"]]
            if missing:
                # A dead letter is larger than the message it contains; only the latest letter of a key matters.
                extra = {
                    settings.deadletter: {
                        "cleanup.policy": "compact",
                        "max.message.bytes": str(2 * settings.message_bytes),
                    }
                }
                wanted = [
                    NewTopic(name, settings.partitions, settings.replication, topic_configs=extra.get(name, {}))
                    for name in missing
                ]
                try:
                    admin.create_topics(wanted)
                except errors.TopicAlreadyExistsError:  # by another worker
                    pass
                except errors.KafkaError as error:
                    raise TopicMissing(
                        f"Kafka at {settings.servers}: {', '.join(missing)} are missing and cannot be "
                        f"created ({type(error).__name__}); create them, or grant this user the right to"
                    ) from error
                admin.wait_for_topics(list(names), timeout_ms=round(settings.connect_seconds * 1000))
            return {t["name"]: str(t.get("topic_id") or "") for t in admin.describe_topics(list(names))}
        finally:
            admin.close()


def new_consumer(settings: KafkaSettings, **more: Any) -> Any:
    """Create a `KafkaConsumer` that never commits or resets offsets on its own.

    Args:
        more: further arguments of `KafkaConsumer`.

    Raises:
        BrokerUnavailable: the broker does not answer, or refuses the connection.
    """
    # Twice the largest message, so that a dead letter that contains a whole message can be fetched.
    fetch = {"max_partition_fetch_bytes": 2 * settings.message_bytes, "fetch_max_bytes": 8 * settings.message_bytes}
    with translate_errors(settings):
        return KafkaConsumer(
            **{**settings.client(), **fetch, "enable_auto_commit": False, "auto_offset_reset": "none", **more}
        )


def native(partitions: Iterable[Any]) -> list[Any]:
    """Convert (topic, partition) pairs to kafka-python's `TopicPartition`, which its methods require."""
    return [TopicPartition(*partition) for partition in partitions]


def end_offsets(consumer: Any, partitions: Iterable[Any]) -> dict[Any, tuple[int, int]]:
    """The first offset and the next offset of each partition, according to the broker."""
    wanted = native(partitions)
    first, end = consumer.beginning_offsets(wanted), consumer.end_offsets(wanted)
    return {partition: (int(first[partition]), int(end[partition])) for partition in wanted}


@dataclass(slots=True)
class Sender:
    """An idempotent producer with a bounded number of unacknowledged messages. A context manager, safe for threads."""

    settings: KafkaSettings
    """The connection."""
    _producer: Any = None
    _in_flight: deque[Any] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Sender:
        with translate_errors(self.settings), self._lock:
            self._producer = self._new_producer()
        return self

    def _new_producer(self) -> Any:
        return KafkaProducer(
            **self.settings.client(),
            enable_idempotence=True,
            acks="all",
            max_request_size=2 * self.settings.message_bytes + 65_536,
            delivery_timeout_ms=120_000,
            max_block_ms=60_000,
        )

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        """Discard the producer after an error: an idempotent producer that failed once fails on every later message."""
        try:
            with translate_errors(self.settings):
                yield
        except KafkaProblem:
            with self._lock:
                broken, self._producer = self._producer, None
                self._in_flight.clear()
            if broken is not None:
                broken.close(timeout=1)
            raise

    def send(
        self,
        topic: str,
        *,
        key: str | bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        """Send one message; waits for the oldest message in flight when there are too many.

        Raises:
            MessageTooLarge, BrokerUnavailable, KafkaProblem: this message or an earlier one failed. All messages since
                the last successful `flush` must be sent again.
        """
        with self._recovering():
            raw = key.encode() if isinstance(key, str) else key
            with self._lock:
                if self._producer is None:
                    self._producer = self._new_producer()
                kept = [(name, content or b"") for name, content in headers]  # kafka-python sends no null values
                self._in_flight.append(self._producer.send(topic, key=raw, value=value, headers=kept))
                oldest = self._in_flight.popleft() if len(self._in_flight) > _MAX_IN_FLIGHT else None
            if oldest is not None:
                oldest.get(timeout=_ACKNOWLEDGE_SECONDS)

    def flush(self) -> None:
        """Wait until every message is acknowledged. Raises the errors of `send`."""
        with self._recovering():
            with self._lock:
                in_flight, self._in_flight = list(self._in_flight), deque()
            for future in in_flight:
                future.get(timeout=_ACKNOWLEDGE_SECONDS)

    def __exit__(self, *_: object) -> None:
        if self._producer is not None:
            self._producer.close(timeout=3)
