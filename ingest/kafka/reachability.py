"""Whether a Kafka broker accepts connections, found at once.

A Kafka client waits half a minute for a broker that may be starting. A person who has mistyped an address should not:
commands that are run by hand try to connect first. Does not know Kafka's protocol.
"""

from __future__ import annotations

import socket

from index.errors import BrokerUnavailable
from ingest.kafka.settings import KafkaSettings

__all__ = ["check_brokers"]

_PORT = 9092
_SECONDS = 5.0


def check_brokers(settings: KafkaSettings) -> None:
    """Connect to the brokers, one after the other, until one accepts.

    Raises:
        BrokerUnavailable: none does; the message has the reason for each.
    """
    reasons: list[str] = []
    for server in filter(None, (part.strip() for part in settings.servers.split(","))):
        host, colon, port = server.rpartition(":")
        name, number = (host, port) if colon and port.isdigit() else (server, str(_PORT))
        try:
            with socket.create_connection((name.strip("[]"), int(number)), timeout=_SECONDS):
                return
        except socket.gaierror:
            reasons.append(f"{name} is not the name of a host")
        except TimeoutError:
            reasons.append(f"{server} does not answer")
        except (OSError, OverflowError, UnicodeError) as error:
            reasons.append(f"{server}: {getattr(error, 'strerror', None) or error}")
    raise BrokerUnavailable(
        f"Kafka at {settings.servers}: no broker accepts connections ({'; '.join(reasons) or 'no address is given'}); "
        "start it, or give its address with --servers or kafka.servers"
    )
