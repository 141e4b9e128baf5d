"""Settings of the commands: `SIGHTLINE_*` environment variables, then a TOML file, then the defaults.

Unknown names raise an error, so that a misspelt setting is noticed.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.errors import UsageError, validation_message
from index.maintenance.rules import RetentionRule
from ingest.decoding.limits import DecodeLimits, Decoder
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.live.config import LiveSettings
from pipeline.access.oidc_settings import OidcSettings

__all__ = ["Settings", "load_settings"]

_PREFIX = "SIGHTLINE_"
_NOT_SETTINGS = {"SIGHTLINE_CONFIG", "SIGHTLINE_GPU"}


class Settings(BaseSettings):
    """Settings of every command, in the order of precedence: options, environment variables, settings file, defaults.

    Each field is a key of the settings file and an environment variable, such as `SIGHTLINE_STORE`; the fields of
    `kafka`, `consume`, `live` and `oidc` are keys of a table, and variables such as `SIGHTLINE_KAFKA_SERVERS`.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    store: str = "sightline-store"
    """URL or path of the store."""
    profile: str = "micro"
    """Model profile: micro, edge, vilamp, videochat_flash, or the path of a TOML file."""
    device: str | None = None
    """Device of the models, such as cpu or cuda; by default a GPU if there is one."""
    patches: Literal["fp16", "int8", "differential"] | None = None
    """Patch encoding of a new store; fp16 (exact) by default."""
    epsilon: float | None = Field(default=None, ge=0, lt=1)
    """With differential patches: a patch is stored again if 1 − cosine to its stored state is larger than this."""
    segment_seconds: int = Field(default=300, ge=1, le=86_400)
    """Length of the footage that `ingest` and `backfill` commit at once, in seconds."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """Longest time without progress of a process that decodes a file, in seconds."""
    memory_bytes: int = Field(default=6 * 2**30, ge=256 * 2**20)
    """Largest memory of a process that decodes a file, in bytes."""
    window_bytes: int = Field(default=2**30, ge=2**20)
    """Most bytes of frame vectors that one question holds in memory; a window with more is read in parts, with the same
    keyframes."""
    max_pixels: int = Field(default=64_000_000, ge=1)
    """Largest width × height of a video frame."""
    decoder: Decoder = "software"
    """Where video is decoded: `software`; `gpu`, on an NVIDIA GPU, and in software what that cannot decode; or
    `gpu-only`, where that is an error."""
    require_sandbox: bool = False
    """Refuse to read footage on a machine where the processes that decode it cannot be confined."""
    service: str | None = None
    """URL of a model service that answers in place of this process."""
    service_token: SecretStr | None = None
    """Bearer token of the model service, for the service itself and for its clients."""
    service_token_file: Path | None = None
    """File with the bearer token; it takes precedence over `service_token`."""
    retention: dict[str, RetentionRule] = Field(default_factory=dict)
    """How long footage stays in the store, by pattern of streams, which `compact` applies: tables such as
    `[retention."gate-*"]` with `days`, `bytes` or both. The first pattern that matches a stream counts; a stream that
    none matches stays for ever."""
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    """Table of the Kafka settings."""
    consume: ConsumeSettings = Field(default_factory=ConsumeSettings)
    """Table of the limits of a Kafka worker, which `watch` uses as well."""
    live: LiveSettings = Field(default_factory=LiveSettings)
    """Table of the settings of live cameras."""
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    """Table of the OpenID Connect provider that users of the desk may come from."""

    @property
    def decode_limits(self) -> DecodeLimits:
        """Resource limits of the processes that decode files."""
        return DecodeLimits(
            pixels=self.max_pixels,
            memory_bytes=self.memory_bytes,
            stall_seconds=self.stall_seconds,
            require_sandbox=self.require_sandbox,
            decoder=self.decoder,
        )


_TABLES: dict[str, type[BaseModel]] = {
    "kafka": KafkaSettings,
    "consume": ConsumeSettings,
    "live": LiveSettings,
    "oidc": OidcSettings,
}


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from the environment and from `path`, `$SIGHTLINE_CONFIG` or `./sightline.toml`.

    Of the three files the first that is given is read; `./sightline.toml` need not exist.

    Raises:
        UsageError: the file is missing or not TOML, a name is unknown, or a value is invalid.
    """
    chosen = path or (Path(os.environ[f"{_PREFIX}CONFIG"]) if f"{_PREFIX}CONFIG" in os.environ else None)
    file = chosen or Path("sightline.toml")
    values: dict[str, Any] = {}
    if chosen is not None or file.is_file():
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"{file}: not a settings file ({why})") from None
    _check_environment()
    values = _without_environment(values, _PREFIX)
    for table in _TABLES:
        if isinstance(values.get(table), dict):
            values[table] = _without_environment(values[table], f"{_PREFIX}{table.upper()}_")
    try:
        return Settings(**values)
    except ValidationError as error:
        raise UsageError(f"{file if values else 'settings'}: {validation_message(error)}") from None


def _check_environment() -> None:
    """Raise UsageError if a variable begins with `SIGHTLINE_` and is not a setting."""
    known = set(Settings.model_fields) - set(_TABLES)
    known |= {f"{table}_{name}" for table, model in _TABLES.items() for name in model.model_fields}
    for name in os.environ:
        if name.startswith(_PREFIX) and name not in _NOT_SETTINGS and name.removeprefix(_PREFIX).lower() not in known:
            names = sorted(_PREFIX + each.upper() for each in known)
            raise UsageError(f"{name}: no such setting; known are {', '.join(names)}")


def _without_environment(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`values` without those that an environment variable sets, which has precedence over the file."""
    return {name: value for name, value in values.items() if f"{prefix}{name.upper()}" not in os.environ}
