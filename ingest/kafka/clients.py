"""Kafka's clients, made from the settings; their errors in one sentence each; the four topics.

The only module that names kafka-python's classes beside `ingest.kafka.poller`. Everything heavy is imported when called.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from index.errors import BrokerUnavailable, KafkaProblem, MessageTooLarge, TopicMissing
from ingest.kafka.settings import KafkaSettings

__all__ = ["Sender", "end_offsets", "make_topics", "native", "new_consumer", "translate_errors"]

_IN_FLIGHT = 32


@contextmanager
def translate_errors(settings: KafkaSettings) -> Iterator[None]:
    """Turn kafka-python's errors into ours."""
    from kafka import errors

    shown = f"Kafka at {settings.servers}"
    try:
        yield
    except KafkaProblem:
        raise
    except errors.MessageSizeTooLargeError as error:
        raise MessageTooLarge(
            f"{shown}: the broker refuses a message of this size; lower kafka.inline_bytes or raise its message.max.bytes"
        ) from error
    except (
        errors.AuthorizationError,
        errors.SaslAuthenticationFailedError,
        errors.UnsupportedSaslMechanismError,
    ) as error:
        raise BrokerUnavailable(
            f"{shown}: refused ({type(error).__name__.removesuffix('Error')}); check the user, the password and the ACLs"
        ) from error
    except (errors.KafkaTimeoutError, errors.KafkaConnectionError, errors.NodeNotReadyError) as error:
        raise BrokerUnavailable(
            f"{shown}: no answer within {settings.connect_seconds:g} s over {settings.security_protocol}; check the address, "
            "that the broker runs, and that it speaks this protocol"
        ) from error
    except errors.KafkaError as error:
        raise KafkaProblem(f"{shown}: {type(error).__name__}: {error}") from error
    except OSError as error:  # certificates that are not there or do not fit
        raise BrokerUnavailable(
            f"{shown}: {error.strerror or error}; check the address and the certificates"
        ) from error


def make_topics(settings: KafkaSettings) -> dict[str, str]:
    """Make those of the four topics that are missing; the topic id of each, empty where the broker gives none.

    Raises:
        BrokerUnavailable: nobody answers.
        TopicMissing: one is missing and may not be made.
    """
    from kafka import errors
    from kafka.admin import KafkaAdminClient, NewTopic

    names = (settings.segments, settings.indexed, settings.deadletter, settings.alerts)
    with translate_errors(settings):
        admin = KafkaAdminClient(**settings.client())
        try:
            missing = [t["name"] for t in admin.describe_topics(list(names)) if t["error_code"]]
            if missing:
                # A dead letter is a little larger than the message in it, and the latest of a key is all that counts.
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
                except errors.TopicAlreadyExistsError:  # another worker was quicker
                    pass
                except errors.KafkaError as error:
                    raise TopicMissing(
                        f"Kafka at {settings.servers}: {', '.join(missing)} are missing and cannot be made "
                        f"({type(error).__name__}); make them, or give this user the right to"
                    ) from error
                admin.wait_for_topics(list(names), timeout_ms=round(settings.connect_seconds * 1000))
            return {t["name"]: str(t.get("topic_id") or "") for t in admin.describe_topics(list(names))}
        finally:
            admin.close()


def new_consumer(settings: KafkaSettings, **more: Any) -> Any:
    """A consumer that commits and resets nothing by itself. Raises BrokerUnavailable."""
    from kafka import KafkaConsumer

    # Twice what a message may have, so that a dead letter with a whole message in it can be fetched.
    fetch = {"max_partition_fetch_bytes": 2 * settings.message_bytes, "fetch_max_bytes": 8 * settings.message_bytes}
    with translate_errors(settings):
        return KafkaConsumer(
            **{**settings.client(), **fetch, "enable_auto_commit": False, "auto_offset_reset": "none", **more}
        )


def native(partitions: Iterable[Any]) -> list[Any]:
    """As kafka-python's own `TopicPartition`, which it insists on."""
    from kafka import TopicPartition

    return [TopicPartition(*partition) for partition in partitions]


def end_offsets(consumer: Any, partitions: Iterable[Any]) -> dict[Any, tuple[int, int]]:
    """First offset and next offset of each partition."""
    those = native(partitions)
    first, end = consumer.beginning_offsets(those), consumer.end_offsets(those)
    return {partition: (int(first[partition]), int(end[partition])) for partition in those}


@dataclass(slots=True)
class Sender:
    """An idempotent producer with a bounded number of messages on their way, for any thread. A context manager."""

    settings: KafkaSettings
    _producer: Any = None
    _waiting: deque[Any] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Sender:
        with translate_errors(self.settings), self._lock:
            self._producer = self._made()
        return self

    def _made(self) -> Any:
        from kafka import KafkaProducer

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
        """After an error the producer is made anew: an idempotent one that was refused once refuses everything."""
        try:
            with translate_errors(self.settings):
                yield
        except KafkaProblem:
            with self._lock:
                broken, self._producer = self._producer, None
                self._waiting.clear()
            if broken is not None:
                broken.close(timeout=1)
            raise

    def send(
        self, topic: str, *, key: str | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Hand over one message; waits for the oldest ones when too many are on their way.

        Raises:
            MessageTooLarge, BrokerUnavailable, KafkaProblem: for this message or an earlier one. Those that were not
                acknowledged by `flush` must be sent again.
        """
        with self._recovering():
            raw = None if key is None else key.encode()
            with self._lock:
                if self._producer is None:
                    self._producer = self._made()
                self._waiting.append(self._producer.send(topic, key=raw, value=value, headers=list(headers)))
                oldest = self._waiting.popleft() if len(self._waiting) > _IN_FLIGHT else None
            if oldest is not None:
                oldest.get(timeout=150)

    def flush(self) -> None:
        """Return when every message is acknowledged. Raises as `send`."""
        with self._recovering():
            with self._lock:
                waiting, self._waiting = list(self._waiting), deque()
            for future in waiting:
                future.get(timeout=150)

    def __exit__(self, *_: object) -> None:
        if self._producer is not None:
            self._producer.close(timeout=10)
