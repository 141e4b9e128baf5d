"""The URL policy: which schemes, hosts and addresses may be read.

The policy depends on who names the source. An operator's cameras are in private networks; a URL in a message or a
playlist must not give access to them. A URL is therefore checked together with the addresses of its host, and the
connection goes to an address that was checked (`CheckedUrl.address`). The name is not resolved a second time, because
a hostile name server could answer differently (DNS rebinding). Addresses that no camera has, such as the link-local
address at which clouds serve credentials, are reached only if `networks` contains them.

This module opens no connection. Its callers check each URL before they connect, redirects and playlist entries too.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, field_validator

from index.errors import SourceDenied, SourceNotFound, mask_url

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

__all__ = ["LIVE_SCHEMES", "CheckedUrl", "UrlPolicy", "check_url"]

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "srt", "loop"})
_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_LOCAL = frozenset({"loop", "file"})  # schemes that read local files
_LISTENS = frozenset({"udp"})  # schemes that listen for packets and connect to nothing
_DENIED = tuple(
    ipaddress.ip_network(network)
    for network in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "0.0.0.0/8", "::/128")
)


class UrlPolicy(BaseModel):
    """What may be read. By default, network sources at addresses of the public Internet."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schemes: frozenset[str] = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "http", "https"})
    """Schemes, without `://`."""
    hosts: tuple[str, ...] = ()
    """Shell patterns of host names; empty allows every host."""
    private: bool = False
    """Whether addresses outside the public Internet are allowed."""
    networks: tuple[str, ...] = ()
    """Networks in CIDR notation that are allowed in any case."""
    files: bool = False
    """Whether local files (`loop:` and `file:`) are allowed."""

    @field_validator("networks")
    @classmethod
    def _cidr(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network, strict=False)  # its ValueError names the problem
        return value

    @classmethod
    def operator(cls, **rest: Any) -> UrlPolicy:
        """The policy for sources that the operator names: private networks and local files are allowed too."""
        return cls(**{"schemes": LIVE_SCHEMES, "private": True, "files": True, **rest})


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """A URL that may be read."""

    url: str
    """The URL as it was given."""
    scheme: str
    """In lower case."""
    host: str | None
    """Name or address, None for a local file."""
    port: int | None
    """The URL's port, or the scheme's default."""
    address: str | None
    """The address to connect to, None if there is no connection."""

    @property
    def pinned(self) -> str:
        """The URL with the address in place of the host."""
        if self.address is None or self.host is None:
            return self.url
        parts = urlsplit(self.url)
        host = f"[{self.address}]" if ":" in self.address else self.address
        user, at, _ = parts.netloc.rpartition("@")
        port = f":{parts.port}" if parts.port else ""
        return urlunsplit(SplitResult(parts.scheme, f"{user}{at}{host}{port}", parts.path, parts.query, parts.fragment))


Resolver = Callable[[str, int], list[str]]


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host name, from the system's resolver. Raises OSError if there are none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def check_url(url: str, policy: UrlPolicy, *, resolve: Resolver = resolve_host) -> CheckedUrl:
    """Check a URL and resolve its host.

    Args:
        url: may contain credentials; they are masked in errors.
        policy: what may be read.
        resolve: host and port to addresses.

    Raises:
        SourceDenied: the policy forbids the scheme, the host, or any of the host's addresses.
        SourceNotFound: `url` is not a URL, or its host has no address.
    """
    shown = mask_url(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SourceNotFound(f"{shown}: not a URL ({error}); check its spelling") from None
    scheme = parts.scheme.lower()
    if scheme not in policy.schemes or (scheme in _LOCAL and not policy.files):
        allowed = ", ".join(sorted(policy.schemes - (frozenset() if policy.files else _LOCAL)))
        raise SourceDenied(
            f"{shown}: {f'{scheme}://' if scheme else 'a path'} is not allowed here; allowed are {allowed}"
        )
    if scheme in _LOCAL:
        return CheckedUrl(url, scheme, None, None, None)
    host = parts.hostname
    if scheme in _LISTENS:
        return CheckedUrl(url, scheme, host, port, None)
    if not host:
        raise SourceNotFound(f"{shown}: the URL has no host; write {scheme}://HOST/PATH")
    if policy.hosts and not any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in policy.hosts):
        raise SourceDenied(f"{shown}: the host does not match {', '.join(policy.hosts)}; allow it with live.hosts")
    port = port or _PORTS.get(scheme, 0)
    try:
        addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in resolve(host, port)]
    except (OSError, UnicodeError, ValueError) as error:
        raise SourceNotFound(f"{shown}: the host has no address ({error}); check its name") from None
    if not addresses:
        raise SourceNotFound(f"{shown}: the host has no address; check its name")
    # All of them: a name that has an inner address beside a public one is not trusted.
    for address in addresses:
        _check_address(address, policy, shown)
    return CheckedUrl(url, scheme, host, port, str(addresses[0]))


def _check_address(address: IPv4Address | IPv6Address, policy: UrlPolicy, shown: str) -> None:
    hidden = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    address = hidden or address
    if any(address in ipaddress.ip_network(network, strict=False) for network in policy.networks):
        return
    if any(address in network for network in _DENIED):
        raise SourceDenied(
            f"{shown}: {address} is a reserved address; allow its network with live.networks if it is a camera"
        )
    if not policy.private and (not address.is_global or address.is_multicast):
        raise SourceDenied(
            f"{shown}: {address} is not an address of the public Internet; allow its network with live.networks"
        )
