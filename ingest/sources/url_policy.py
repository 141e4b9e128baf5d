"""Which URLs may be read, and at which address: schemes, hosts, networks, each name resolved once.

Who names a source decides what it may reach. An operator's cameras stand in private networks; a URL out of a message or
a playlist must not be a way into them. So a URL is checked with its host's addresses, and the connection goes to one
that was checked (`CheckedUrl.address`), never to what the name resolves to a second time. Addresses that are nobody's
camera, such as the link-local one where clouds keep credentials, are reached only where a network is named outright.

This module knows nothing of what is read; who opens a connection asks it first, for each redirect and playlist entry.
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
_LOCAL = frozenset({"loop", "file"})  # read files
_LISTENS = frozenset({"udp"})  # waits for packets instead of asking for them
_DENIED = tuple(
    ipaddress.ip_network(network)
    for network in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "0.0.0.0/8", "::/128")
)


class UrlPolicy(BaseModel):
    """What may be read.

    schemes: without `://`. hosts: patterns as of a shell, every host when there is none. private: addresses that are
    not of the public Internet. networks: CIDR, allowed whatever else is not. files: `loop:` and `file:`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schemes: frozenset[str] = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "http", "https"})
    hosts: tuple[str, ...] = ()
    private: bool = False
    networks: tuple[str, ...] = ()
    files: bool = False

    @field_validator("networks")
    @classmethod
    def _cidr(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network, strict=False)  # its ValueError says what is wrong
        return value

    @classmethod
    def operator(cls, **rest: Any) -> UrlPolicy:
        """For sources that the operator named: private networks and files too."""
        return cls(**{"schemes": LIVE_SCHEMES, "private": True, "files": True, **rest})


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """A URL that may be read. `address` is what its host resolved to, None where there is nothing to connect to."""

    url: str
    scheme: str
    host: str | None
    port: int | None
    address: str | None

    @property
    def pinned(self) -> str:
        """The URL with the address in the host's place."""
        if self.address is None or self.host is None:
            return self.url
        parts = urlsplit(self.url)
        host = f"[{self.address}]" if ":" in self.address else self.address
        user, at, _ = parts.netloc.rpartition("@")
        port = f":{parts.port}" if parts.port else ""
        return urlunsplit(SplitResult(parts.scheme, f"{user}{at}{host}{port}", parts.path, parts.query, parts.fragment))


Resolver = Callable[[str, int], list[str]]


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def check_url(url: str, policy: UrlPolicy, *, resolve: Resolver = resolved) -> CheckedUrl:
    """The URL with the address to connect to.

    Raises:
        SourceDenied: the policy forbids its scheme, its host, or any of its addresses.
        SourceNotFound: it is no URL, or its host has no address.
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
        raise SourceDenied(f"{shown}: {scheme or 'a path'} may not be read here; allowed are {allowed}")
    if scheme in _LOCAL:
        return CheckedUrl(url, scheme, None, None, None)
    host = parts.hostname
    if scheme in _LISTENS:
        return CheckedUrl(url, scheme, host, port, None)
    if not host:
        raise SourceNotFound(f"{shown}: names no host; write {scheme}://HOST/PATH")
    if policy.hosts and not any(fnmatch.fnmatchcase(host, pattern.lower()) for pattern in policy.hosts):
        raise SourceDenied(f"{shown}: the host is none of {', '.join(policy.hosts)}; allow it with live.hosts")
    port = port or _PORTS.get(scheme, 0)
    try:
        addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in resolve(host, port)]
    except (OSError, UnicodeError, ValueError) as error:
        raise SourceNotFound(f"{shown}: the host has no address ({error}); check its name") from None
    if not addresses:
        raise SourceNotFound(f"{shown}: the host has no address; check its name")
    # All of them: a name that also leads inside is no name to trust.
    for address in addresses:
        _check_address(address, policy, shown)
    return CheckedUrl(url, scheme, host, port, str(addresses[0]))


def _check_address(address: IPv4Address | IPv6Address, policy: UrlPolicy, shown: str) -> None:
    hidden = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    address = hidden or address
    if any(address in ipaddress.ip_network(network, strict=False) for network in policy.networks):
        return
    if any(address in network for network in _DENIED):
        raise SourceDenied(f"{shown}: {address} is reached only where live.networks names it")
    if not policy.private and (not address.is_global or address.is_multicast):
        raise SourceDenied(
            f"{shown}: {address} is not an address of the public Internet; name it in live.networks to allow it"
        )
