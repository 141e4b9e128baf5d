"""The URL policy: which schemes, hosts and addresses may be read.

The policy depends on who names the source. An operator's cameras are in private networks; a URL in a message or a
playlist must not give access to them. A URL is therefore checked together with the addresses of its host, and the
connection goes to an address that was checked (`CheckedUrl.address`). The name is not resolved a second time, because
a hostile name server could answer differently (DNS rebinding). Addresses that no camera has, such as those at which
clouds serve credentials, are reached only if `networks` contains them. An IPv6 address that stands for an IPv4 address
(mapped, compatible, SIIT, 6to4, NAT64, Teredo) is checked as that one.

This module opens no connection. Its callers check each URL before they connect, redirects and playlist entries too.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, field_validator

from index.errors import SourceDenied, SourceNotFound, mask_url

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

__all__ = ["LIVE_SCHEMES", "CheckedUrl", "UrlPolicy", "check_url", "split_url"]

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "srt", "loop"})
_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_LOCAL = frozenset({"loop", "file"})  # schemes that read local files
_LISTENS = frozenset({"udp"})  # schemes that listen for packets and connect to nothing
_DENIED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("169.254.0.0/16", "fe80::/10", "0.0.0.0/8", "::/128"),
        # Metadata services of clouds that are not at a link-local address: AWS, Oracle, Alibaba.
        *("fd00:ec2::254/128", "192.0.0.192/32", "100.100.100.200/32"),
    )
)
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_PRIVATE = (ipaddress.ip_network("fec0::/10"), _LOCAL_NAT64)  # not global, and not among those that Python knows
# Prefixes of IPv6 addresses that end in an IPv4 address: RFC 4291 (mapped, compatible), RFC 2765 (SIIT), RFC 6052.
_ENDS_IN_IPV4 = tuple(
    ipaddress.IPv6Network(net) for net in ("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96")
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
    loopback: bool = True
    """Whether the addresses of this machine itself are allowed where private ones are."""
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

    def named_by(self, server: CheckedUrl) -> UrlPolicy:
        """This policy for what a server names, in a redirect or a playlist.

        A public server may name nothing private, a server on another machine nothing on loopback, except by `networks`.
        """
        if server.public:
            return self.model_copy(update={"private": False, "files": False})
        return self if server.loopback else self.model_copy(update={"loopback": False, "files": False})

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
    public: bool = False
    """Whether the address is one of the public Internet."""
    loopback: bool = False
    """Whether it is one of this machine itself."""

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


def split_url(url: str, base: str = "") -> SplitResult:
    """The parts of a URL, which is relative to `base` if that is not empty.

    `urllib.parse.urlsplit` and `urljoin` raise ValueError for some texts; a URL from others is split here.

    Raises:
        SourceNotFound: `url` is not a URL.
    """
    try:
        return urlsplit(urljoin(base, url))
    except ValueError as error:
        raise SourceNotFound(f"{mask_url(url)}: not a URL ({error}); check its spelling") from None


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
    shown, parts = mask_url(url), split_url(url)
    try:
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
    meanings = _meanings(addresses[0])
    return CheckedUrl(
        url,
        scheme,
        host,
        port,
        str(addresses[0]),
        public=all(_is_public(address) for address in meanings),
        loopback=all(address.is_loopback for address in meanings),
    )


def _meanings(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The addresses that packets to `address` may reach: itself, or the IPv4 addresses that it stands for."""
    if address.version == 4:
        return [address]
    bits = int(address)
    last = ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    if any(address in network for network in _ENDS_IN_IPV4) and bits > 1:  # :: and ::1 are addresses of their own
        return [last]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address in _LOCAL_NAT64:  # the length of the prefix is the network's choice: 96 bits, or 48 around bits 64 to 71
        return [address, last, ipaddress.IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)]
    return [address, *(address.teredo or ())]


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not any(address in network for network in _PRIVATE)


def _check_address(address: IPv4Address | IPv6Address, policy: UrlPolicy, shown: str) -> None:
    for meaning in _meanings(address):
        _check_meaning(meaning, policy, shown)


def _check_meaning(address: IPv4Address | IPv6Address, policy: UrlPolicy, shown: str) -> None:
    if any(address in ipaddress.ip_network(network, strict=False) for network in policy.networks):
        return
    if any(address in network for network in _DENIED):
        raise SourceDenied(
            f"{shown}: {address} is a reserved address; allow its network with live.networks if it is a camera"
        )
    if address.is_loopback and not policy.loopback:
        raise SourceDenied(
            f"{shown}: {address} is this machine itself, which another server must not name; allow it with "
            "live.networks"
        )
    if not policy.private and not _is_public(address):
        raise SourceDenied(
            f"{shown}: {address} is not an address of the public Internet; allow its network with live.networks"
        )
