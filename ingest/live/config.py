"""The list of cameras (`cameras.toml`, or URLs of the command line) and the settings of live reading.

[[cameras]]
stream = "gate"
url = "rtsp://user:password@10.0.0.5/main"
transport = "udp"        # of RTSP; tcp by default
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
from ingest.sources.naming import read_name
from ingest.sources.url_policy import LIVE_SCHEMES, UrlPolicy

__all__ = ["CameraConfig", "CameraList", "LiveSettings", "cameras_of", "read_cameras"]

Transport = Literal["tcp", "udp"]


class CameraConfig(BaseModel):
    """One camera."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    stream: StreamId
    """The stream of its frames."""
    url: str = Field(max_length=4096)
    """Its URL: rtsp, rtmp, http(s) (HLS), udp, srt, or `loop:PATH` for a file that is played in a loop."""
    transport: Transport = "tcp"
    """The transport of RTSP."""

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
    """The content of `cameras.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    cameras: tuple[CameraConfig, ...] = Field(default=(), max_length=1024)
    """The cameras; each has its own stream."""

    @model_validator(mode="after")
    def _unique(self) -> CameraList:
        names = [camera.stream for camera in self.cameras]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two cameras are named {twice}; give each its own stream, as in NAME=URL")
        return self


class LiveSettings(BaseModel):
    """The limits of reading cameras."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    folder: Path = Path("sightline-live")
    """The folder of the spool and the status file; each running command needs its own."""
    connect_seconds: float = Field(default=10.0, gt=0, le=600)
    """Seconds to open a camera."""
    stall_seconds: float = Field(default=10.0, gt=0, le=600)
    """Seconds without a packet after which a camera counts as stalled and is opened again."""
    backoff_seconds: float = Field(default=1.0, gt=0, le=600)
    """The first pause before a failed camera is opened again; it doubles with each failure."""
    backoff_most_seconds: float = Field(default=60.0, gt=0, le=3600)
    """The longest of these pauses."""
    segment_seconds: float = Field(default=10.0, ge=0.5, le=600)
    """The minimum length of a segment."""
    spool_bytes: int = Field(default=4 * 2**30, ge=2**20)
    """The largest size of all segments that wait to be stored or sent; beyond it the oldest are dropped and counted."""
    memory_bytes: int = Field(default=2 * 2**30, ge=256 * 2**20)
    """The largest address space of the process of one camera."""
    hosts: tuple[str, ...] = ()
    """Shell patterns of the hosts that cameras may be on; any host when empty. See `ingest.sources.url_policy`."""
    networks: tuple[str, ...] = ()
    """Networks, in CIDR notation, that cameras may be in although another rule forbids it."""
    private: bool = True
    """Whether cameras may be in private networks. The operator names the cameras, so this is allowed by default."""
    files: bool = True
    """Whether a camera may be a local file, `loop:PATH`."""

    @field_validator("networks")
    @classmethod
    def _cidr(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return UrlPolicy(networks=value).networks

    @property
    def policy(self) -> UrlPolicy:
        """The URLs that cameras may have."""
        return UrlPolicy.operator(hosts=self.hosts, networks=self.networks, private=self.private, files=self.files)


def read_cameras(path: Path) -> CameraList:
    """Read the cameras of a TOML file.

    Raises:
        UsageError: the file is missing, not TOML, or invalid.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a list of cameras ({error})") from None
    return _validate(values, str(path))


def cameras_of(urls: Sequence[str], transport: str = "tcp") -> CameraList:
    """The cameras of URLs of the command line.

    Args:
        urls: URLs, or `NAME=URL` to name the stream; otherwise the stream is derived from the last part of the URL.
        transport: the transport of RTSP, `tcp` or `udp`.

    Raises:
        UsageError: a URL or a name is invalid, or two cameras have one name.
    """
    cameras = []
    for each in urls:
        named = re.match(r"([A-Za-z0-9._-]+)=(?=[a-z]+:)", each)
        url = each[named.end() :] if named else each
        cameras.append({"stream": named[1] if named else _default_name(url), "url": url, "transport": transport})
    return _validate({"cameras": cameras}, "cameras")


def _default_name(url: str) -> str:
    parts = urlsplit(url)
    if parts.path.strip("/"):
        return read_name(parts.path.rstrip("/")).stream
    return re.sub(r"[^A-Za-z0-9_]+", "-", f"{parts.hostname or parts.scheme}-{parts.port or ''}").strip("-")


def _validate(values: object, where: str) -> CameraList:
    try:
        return CameraList.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{where}: {validation_message(error)}") from None
