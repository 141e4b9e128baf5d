"""Settings of Kafka: the connection, the topics, and the limits of messages and of a worker.

Names that every Kafka client has (security protocol, SASL mechanism, CA file) keep their usual meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

__all__ = ["ConsumeSettings", "KafkaSettings"]


class KafkaSettings(BaseModel):
    """The connection to Kafka, the topics, and the limits on what is read from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    servers: str = "localhost:9092"
    """Bootstrap servers, `host:port`; several are separated by commas."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """The protocol of the brokers."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """The SASL mechanism; required by the SASL protocols."""
    username: str | None = None
    """The SASL user name."""
    password: SecretStr | None = None
    """The SASL password."""
    ca_file: str | None = None
    """PEM file of the certificate authority of the brokers' certificates; the system's authorities when unset."""
    cert_file: str | None = None
    """PEM file of the client certificate."""
    key_file: str | None = None
    """PEM file of the client certificate's key."""
    key_password: SecretStr | None = None
    """The password of `key_file`."""
    check_hostname: bool = True
    """Whether the broker's certificate must match its host name."""

    prefix: str = Field(default="sightline", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    """The first part of the names of the four topics, as in `sightline.segments`."""
    partitions: int = Field(default=-1, ge=-1, le=10_000)
    """The number of partitions of a topic that is created; -1 for the broker's default."""
    replication: int = Field(default=-1, ge=-1, le=64)
    """The replication factor of a topic that is created; -1 for the broker's default."""

    inline_bytes: int = Field(default=512 * 2**10, ge=0, le=64 * 2**20)
    """The largest segment that is sent inside its message; a larger one must be stored as an object."""
    message_bytes: int = Field(default=1_000_000, ge=1024, le=128 * 2**20)
    """The largest message; at most the broker's `message.max.bytes`."""
    object_bytes: int = Field(default=256 * 2**20, ge=1)
    """The largest segment that is fetched or produced."""
    objects: tuple[str, ...] = ()
    """Prefixes of the URIs that segments may be fetched from; no other URI is ever read."""

    connect_seconds: float = Field(default=30.0, gt=0, le=600)
    """Seconds to wait for an answer of the brokers."""
    session_seconds: float = Field(default=45.0, ge=2, le=1800)
    """Seconds without a heartbeat after which the group considers a worker dead."""
    poll_seconds: float = Field(default=300.0, ge=1, le=86_400)
    """Seconds without a poll after which the group considers a worker dead."""

    @model_validator(mode="after")
    def _login(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL") and not (self.sasl_mechanism and self.username and self.password):
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism, username and password")
        return self

    @property
    def segments(self) -> str:
        """The topic of segments."""
        return f"{self.prefix}.segments"

    @property
    def indexed(self) -> str:
        """The topic that announces stored segments."""
        return f"{self.prefix}.indexed"

    @property
    def deadletter(self) -> str:
        """The topic of dead letters."""
        return f"{self.prefix}.deadletter"

    @property
    def alerts(self) -> str:
        """The topic of alerts."""
        return f"{self.prefix}.alerts"

    def client(self) -> dict[str, Any]:
        """The arguments common to all clients of kafka-python."""
        secrets = {"sasl_plain_password": self.password, "ssl_password": self.key_password}
        return {
            "bootstrap_servers": [server.strip() for server in self.servers.split(",")],
            "bootstrap_timeout_ms": round(self.connect_seconds * 1000),
            "security_protocol": self.security_protocol,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.username,
            "ssl_cafile": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
            "ssl_check_hostname": self.check_hostname,
            "reconnect_backoff_max_ms": 5000,
            **{name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None},
        }


class ConsumeSettings(BaseModel):
    """The limits of one process that indexes segments, from Kafka or from live cameras."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    queue_segments: int = Field(default=32, ge=1, le=10_000)
    """The number of segments that are read from Kafka and wait to be decoded."""
    batch_frames: int = Field(default=32, ge=1, le=4096)
    """The number of frames in one encoder batch."""
    commit_segments: int = Field(default=64, ge=1, le=10_000)
    """The largest number of segments in one commit."""
    commit_seconds: float = Field(default=2.0, ge=0, le=600)
    """The longest time that a decoded segment waits for others to share its commit."""
    decoders: int = Field(default=2, ge=1, le=64)
    """The number of decoder processes that run at the same time."""
    attempts: int = Field(default=3, ge=1, le=100)
    """The number of attempts to fetch and decode a segment before it becomes a dead letter."""
    ahead_seconds: float = Field(default=300.0, ge=0)
    """How far in the future a segment may start; a segment beyond that has a wrong clock and becomes a dead letter."""
