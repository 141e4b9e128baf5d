"""Names and addresses of hosts in requests: loopback or not, and the name in a `Host` header."""

from __future__ import annotations

import ipaddress

__all__ = ["host_name", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address or name, which only this machine can reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(header: bytes) -> str:
    """The name or address in a `Host` header, without the port; an IPv6 address may have brackets."""
    host = header.decode("latin-1")
    if host.startswith("["):
        return host[: host.index("]") + 1] if "]" in host else host
    return host if host.count(":") > 1 else host.partition(":")[0]
