"""Which cameras there are: `cameras.toml`, or URLs of the command line. And the bounds of live reading.

[[cameras]]
stream = "gate"
url = "rtsp://user:password@10.0.0.5/main"
transport = "udp"        # of RTSP; tcp when it is not said
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from index.errors import UsageError, mask_url, validation_message
from index.schemas import StreamId
from ingest.sources.start_time import stream_name
from ingest.sources.url_policy import LIVE_SCHEMES, UrlPolicy

__all__ = ["CameraConfig", "CameraList", "LiveSettings", "cameras_of", "read_cameras"]

Transport = Literal["tcp", "udp"]


class CameraConfig(BaseModel):
    """One camera: the stream its frames belong to, where it is, and how RTSP brings them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    stream: StreamId
    url: str = Field(max_length=4096)
    transport: Transport = "tcp"

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if urlsplit(value).scheme.lower() not in LIVE_SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in sorted(LIVE_SCHEMES - {"loop"}))
            raise ValueError(f"{mask_url(value)} is not a live source; use {schemes} or loop:PATH")
        return value

    @property
    def shown(self) -> str:
        """The URL without credentials."""
        return mask_url(self.url)


class CameraList(BaseModel):
    """The whole of `cameras.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    cameras: tuple[CameraConfig, ...] = Field(default=(), max_length=1024)

    @model_validator(mode="after")
    def _once(self) -> CameraList:
        names = [camera.stream for camera in self.cameras]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two cameras are named {twice}; give each its own stream, as in NAME=URL")
        return self


class LiveSettings(BaseModel):
    """The bounds of reading cameras.

    folder: where segments wait and the state is kept; one running command each. connect_seconds: to open a camera;
    stall_seconds: without a packet. backoff_seconds, backoff_most_seconds: first and longest pause before the next try.
    segment_seconds: least length of a segment. spool_bytes: of all segments that wait to be stored or sent; past that
    the oldest are dropped and counted. memory_bytes: of one camera's process. hosts, networks, private, files: see
    `ingest.sources.url_policy.UrlPolicy`; cameras are named by the operator, so private networks and files are allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Path("sightline-live")
    connect_seconds: float = Field(default=10.0, gt=0, le=600)
    stall_seconds: float = Field(default=10.0, gt=0, le=600)
    backoff_seconds: float = Field(default=1.0, gt=0, le=600)
    backoff_most_seconds: float = Field(default=60.0, gt=0, le=3600)
    segment_seconds: float = Field(default=10.0, ge=0.5, le=600)
    spool_bytes: int = Field(default=4 * 2**30, ge=2**20)
    memory_bytes: int = Field(default=2 * 2**30, ge=256 * 2**20)
    hosts: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    private: bool = True
    files: bool = True

    @field_validator("networks")
    @classmethod
    def _cidr(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return UrlPolicy(networks=value).networks

    @property
    def policy(self) -> UrlPolicy:
        return UrlPolicy.operator(hosts=self.hosts, networks=self.networks, private=self.private, files=self.files)


def read_cameras(path: Path) -> CameraList:
    """The cameras of a TOML file. Raises UsageError for one that is missing, not TOML, or does not fit."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a list of cameras ({error})") from None
    return _checked(values, str(path))


def cameras_of(urls: Sequence[str], transport: str = "tcp") -> CameraList:
    """The cameras of URLs, each perhaps with `NAME=` before it; by the URL's last part without. Raises UsageError."""
    cameras = []
    for each in urls:
        named = re.match(r"([A-Za-z0-9._-]+)=(?=[a-z]+:)", each)
        url = each[named.end() :] if named else each
        cameras.append({"stream": named[1] if named else _named(url), "url": url, "transport": transport})
    return _checked({"cameras": cameras}, "cameras")


def _named(url: str) -> str:
    parts = urlsplit(url)
    if parts.path.strip("/"):
        return stream_name(parts.path.rstrip("/"))
    return re.sub(r"[^A-Za-z0-9_]+", "-", f"{parts.hostname or parts.scheme}-{parts.port or ''}").strip("-")


def _checked(values: object, where: str) -> CameraList:
    try:
        return CameraList.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {validation_message(error)}") from None
