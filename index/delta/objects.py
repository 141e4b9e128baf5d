"""Object stores: one place that finds endpoint, region and credentials, for every library that reads or writes them.

Delta's client and s3fs each look for them in their own way: the one ignores profiles, the other `AWS_REGION` and
`AWS_ALLOW_HTTP`. Here they are found once, and both get the same. For S3, the first that is set counts:

    endpoint     AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, `services` or `endpoint_url` of the profile
    region       AWS_REGION, AWS_DEFAULT_REGION, `region` of the profile
    keys         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, with AWS_SESSION_TOKEN; those of the profile

The profile is AWS_PROFILE, or `default`, of the files of the AWS command line (AWS_SHARED_CREDENTIALS_FILE and
AWS_CONFIG_FILE). The files are read again when they change, so that keys may be replaced while a worker runs. Keys that
a service hands out (instance roles, web identity) are left to each client, which renews them. An endpoint with http
needs AWS_ALLOW_HTTP=true.

`object_reason` says what went wrong in words of this project. The module does not know what the objects mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from index.delta.failures import reason_of
from index.errors import SightlineError, StoreDenied, mask_url

__all__ = ["S3Access", "delta_options", "file_system", "object_reason", "open_object", "s3_access"]

_S3 = ("s3://", "s3a://")
_TRUE = ("1", "true", "yes", "on")
_REQUESTS = {"retries": {"mode": "standard", "total_max_attempts": 3}, "connect_timeout": 3}
"""Of each request to S3: up to 3 s between attempts, and 3 s to connect."""
_ROUNDS = 2
"""How often s3fs repeats that; with its default, 5, an address that does not answer would take 50 s."""


@dataclass(frozen=True, slots=True)
class S3Access:
    """Where an S3 service is, and with which keys it is used. What is None is left to the client."""

    endpoint: str | None
    """URL of the service; that of AWS when None."""

    region: str | None
    """Name of the region."""

    key: str | None
    """The access key."""

    secret: str | None
    """Its secret."""

    token: str | None
    """The session token of temporary keys."""


def s3_access() -> S3Access:
    """Where S3 is for this process, see the module's docstring; a cached value while nothing changed."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _s3_access(settings, tuple(_changed(path) for path in _files(os.environ)))


def delta_options(url: str) -> dict[str, str] | None:
    """The options of Delta's client for a table at `url`; None for a local path or another kind of object store."""
    if not url.startswith(_S3):
        return None
    found = s3_access()
    options = {
        "AWS_ENDPOINT_URL": found.endpoint,
        "AWS_REGION": found.region,
        "AWS_ACCESS_KEY_ID": found.key,
        "AWS_SECRET_ACCESS_KEY": found.secret,
        "AWS_SESSION_TOKEN": found.token,
    }
    return {name: value for name, value in options.items() if value} or None


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a path or URL, and the path within it.

    Raises:
        StoreDenied: the endpoint is http and AWS_ALLOW_HTTP is not set.
        ValueError, ImportError: of fsspec, for an unknown scheme, or one whose package is not installed.
    """
    if not url.startswith(_S3):
        system, path = fsspec.core.url_to_fs(url)
        return system, path
    found = s3_access()
    if (found.endpoint or "").startswith("http://") and os.environ.get("AWS_ALLOW_HTTP", "").lower() not in _TRUE:
        raise StoreDenied(
            f"{mask_url(url)}: the endpoint is http, which is not encrypted; set AWS_ALLOW_HTTP=true if that is "
            "intended"
        )
    options: dict[str, Any] = {
        "endpoint_url": found.endpoint,
        "key": found.key,
        "secret": found.secret,
        "token": found.token,
        "client_kwargs": {"region_name": found.region} if found.region else None,
        "config_kwargs": _REQUESTS,
    }
    system, path = fsspec.core.url_to_fs(url, **{name: value for name, value in options.items() if value})
    system.retries = _ROUNDS  # a setting of the class, which has no argument
    return system, path


def open_object(url: str, mode: str = "rb") -> Any:
    """Open a file or object as fsspec does; folders and buckets are not made.

    Raises:
        StoreDenied, ValueError, ImportError: as `file_system`. Each file system has its own exceptions for the rest.
    """
    system, path = file_system(url)
    return system.open(path, mode)


def object_reason(error: BaseException) -> str:
    """What a failure of a file system means, as a short phrase that holds neither credentials nor a library's text."""
    return str(error) if isinstance(error, SightlineError) else reason_of(error)


@lru_cache(maxsize=8)
def _s3_access(settings: tuple[tuple[str, str], ...], changed: tuple[int, ...]) -> S3Access:
    """`s3_access` for this environment and these times of change of the files."""
    import botocore.configprovider  # which a store on a disk does without
    import botocore.credentials
    import botocore.session

    values = dict(settings)
    session = botocore.session.Session()
    try:
        profile, whole = session.get_scoped_config(), session.full_config
    except Exception as error:  # a profile that does not exist, a file that does not parse
        raise StoreDenied(
            f"the profile {values.get('AWS_PROFILE', 'default')!r} cannot be read from the files of the AWS command "
            f"line ({type(error).__name__}); check AWS_PROFILE, AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE"
        ) from None
    name = session.profile or "default"
    endpoint = botocore.configprovider.ConfiguredEndpointProvider(whole, profile, "s3", values).provide()
    providers = (
        botocore.credentials.EnvProvider(values),
        botocore.credentials.SharedCredentialProvider(session.get_config_variable("credentials_file"), name),
        botocore.credentials.ConfigProvider(session.get_config_variable("config_file"), name),
    )
    keys = None
    for provider in providers:
        try:
            keys = keys or provider.load()
        except Exception as error:  # half a pair of keys
            raise StoreDenied(
                f"the keys of S3 are incomplete ({type(error).__name__}); set both AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or neither"
            ) from None
    return S3Access(
        endpoint=endpoint or None,
        region=values.get("AWS_REGION") or values.get("AWS_DEFAULT_REGION") or profile.get("region"),
        key=keys and keys.access_key,
        secret=keys and keys.secret_key,
        token=keys and keys.token,
    )


def _files(values: Mapping[str, str]) -> tuple[Path, Path]:
    """The files of the AWS command line."""
    home = Path(values.get("HOME") or "/") / ".aws"
    named = (
        values.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials",
        values.get("AWS_CONFIG_FILE") or home / "config",
    )
    return Path(named[0]).expanduser(), Path(named[1]).expanduser()


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
