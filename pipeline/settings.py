"""Settings: `SIGHTLINE_*` in the environment over a TOML file over the defaults. Unknown names are refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from index.errors import UsageError
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.live.config import LiveSettings

__all__ = ["Settings", "load_settings"]

_PREFIX = "SIGHTLINE_"
_NOT_SETTINGS = {"SIGHTLINE_CONFIG", "SIGHTLINE_GPU"}


class Settings(BaseSettings):
    """What a command takes when it is not told.

    store: URL of the store. profile: name or TOML path. device: cpu, cuda, or None to choose. patches, epsilon: how a
    new store keeps patches, fp16 when None (see `index.patches.codec`). segment_seconds: footage of one commit.
    stall_seconds, memory_bytes, max_pixels: limits of the decoder's process. service: URL of a model service that
    answers in place of this process. service_token, service_token_file: its token, on either side. kafka,
    consume, live: tables of their own, `SIGHTLINE_KAFKA_SERVERS` in the environment.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="forbid", frozen=True
    )

    store: str = "sightline-store"
    profile: str = "micro"
    device: str | None = None
    patches: Literal["fp16", "int8", "differential"] | None = None
    epsilon: float | None = Field(default=None, ge=0, lt=1)
    segment_seconds: int = Field(default=300, ge=1, le=86_400)
    stall_seconds: float = Field(default=60.0, gt=0)
    memory_bytes: int = Field(default=6 * 2**30, ge=256 * 2**20)
    max_pixels: int = Field(default=64_000_000, ge=1)
    service: str | None = None
    service_token: SecretStr | None = None
    service_token_file: Path | None = None
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    consume: ConsumeSettings = Field(default_factory=ConsumeSettings)
    live: LiveSettings = Field(default_factory=LiveSettings)


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings; `path`, else `$SIGHTLINE_CONFIG`, else `sightline.toml` here if there is one.

    Raises:
        UsageError: a file that is missing or not TOML, an unknown name, or a value that does not fit.
    """
    chosen = path or (Path(os.environ[f"{_PREFIX}CONFIG"]) if f"{_PREFIX}CONFIG" in os.environ else None)
    file = chosen or Path("sightline.toml")
    values: dict[str, Any] = {}
    if chosen is not None or file.is_file():
        try:
            values = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: not a settings file ({error})") from None
    known = set(Settings.model_fields) - set(_TABLES)
    known |= {f"{table}_{name}" for table, model in _TABLES.items() for name in model.model_fields}
    for name in os.environ:
        if name.startswith(_PREFIX) and name not in _NOT_SETTINGS and name.removeprefix(_PREFIX).lower() not in known:
            raise UsageError(
                f"{name}: no such setting; known are {', '.join(sorted(_PREFIX + k.upper() for k in known))}"
            )
    values = _without_environment(values, _PREFIX)
    for table in _TABLES:
        if isinstance(values.get(table), dict):
            values[table] = _without_environment(values[table], f"{_PREFIX}{table.upper()}_")
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise UsageError(f"{file if values else 'settings'}: {where}: {first['msg']}") from None


_TABLES: dict[str, type[BaseModel]] = {"kafka": KafkaSettings, "consume": ConsumeSettings, "live": LiveSettings}


def _without_environment(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Those that the environment does not set."""
    return {name: value for name, value in values.items() if f"{prefix}{name.upper()}" not in os.environ}
