"""Where Kafka is, how to be let in, and the bounds of what goes through it.

Names that exist in every Kafka client (security protocol, SASL mechanism, CA file) are passed through as they are.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

__all__ = ["ConsumeSettings", "KafkaSettings"]


class KafkaSettings(BaseModel):
    """How to reach Kafka.

    servers: `host:port`, several separated by commas. prefix: what the four topics' names begin with. partitions,
    replication: of topics that are made, −1 for the broker's default. inline_bytes: the largest segment that travels
    inside its message; a larger one needs a place of its own. message_bytes: the largest message, at most the broker's
    `message.max.bytes`. objects: prefixes of URIs that segments may be fetched from; nothing else is ever read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: str = "localhost:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: SecretStr | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password: SecretStr | None = None
    check_hostname: bool = True

    prefix: str = Field(default="sightline", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    partitions: int = Field(default=-1, ge=-1, le=10_000)
    replication: int = Field(default=-1, ge=-1, le=64)

    inline_bytes: int = Field(default=512 * 2**10, ge=0, le=64 * 2**20)
    message_bytes: int = Field(default=1_000_000, ge=1024, le=128 * 2**20)
    object_bytes: int = Field(default=256 * 2**20, ge=1)
    objects: tuple[str, ...] = ()

    connect_seconds: float = Field(default=30.0, gt=0, le=600)
    session_seconds: float = Field(default=45.0, ge=2, le=1800)
    poll_seconds: float = Field(default=300.0, ge=1, le=86_400)

    @model_validator(mode="after")
    def _login(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL") and not (self.sasl_mechanism and self.username and self.password):
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism, username and password")
        return self

    @property
    def segments(self) -> str:
        return f"{self.prefix}.segments"

    @property
    def indexed(self) -> str:
        return f"{self.prefix}.indexed"

    @property
    def deadletter(self) -> str:
        return f"{self.prefix}.deadletter"

    @property
    def alerts(self) -> str:
        return f"{self.prefix}.alerts"

    def client(self) -> dict[str, Any]:
        """What every client of kafka-python takes."""
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
    """The bounds of one worker.

    queue_segments: read and not yet decoded. batch_frames: of one encoder batch. commit_segments and commit_seconds:
    most of one commit. decoders: processes at once. attempts: at one segment. ahead_seconds: how far in the future a
    camera's clock may be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue_segments: int = Field(default=32, ge=1, le=10_000)
    batch_frames: int = Field(default=32, ge=1, le=4096)
    commit_segments: int = Field(default=64, ge=1, le=10_000)
    commit_seconds: float = Field(default=2.0, ge=0, le=600)
    decoders: int = Field(default=2, ge=1, le=64)
    attempts: int = Field(default=3, ge=1, le=100)
    ahead_seconds: float = Field(default=300.0, ge=0)
