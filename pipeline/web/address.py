"""Where a desk listens, and what follows from that: who may reach it, under which names, and whether over TLS.

Without users a desk listens on loopback only and answers to loopback names only. With users it may listen elsewhere,
over TLS of its own or behind a proxy that has it; passwords never cross a network unencrypted.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from index.errors import UsageError
from pipeline.http.hosts import is_loopback

__all__ = ["DeskAddress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskAddress:
    """The address of a desk, and how clients reach it."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, besides loopback ones, under which clients reach the desk."""
    tls: tuple[Path, Path] | None = None
    """Files with the certificate and the key with which the desk itself speaks TLS."""
    behind_proxy: bool = False
    """Whether all requests come through a proxy that speaks TLS, and adds the client's address to
    `X-Forwarded-For`."""

    @property
    def secure(self) -> bool:
        """Whether browsers reach the desk over https."""
        return self.tls is not None or self.behind_proxy

    @property
    def private(self) -> bool:
        """Whether only processes of this machine reach the desk."""
        return is_loopback(self.host) and not self.behind_proxy

    def check(self, *, users: bool) -> None:
        """Check the address before the desk listens.

        Args:
            users: whether callers must log in.

        Raises:
            UsageError: others could reach the desk without a password, or passwords would be sent unencrypted.
        """
        if not self.private and not users:
            where = "--behind-proxy" if self.behind_proxy else f"--host {self.host}"
            raise UsageError(
                f"{where} lets other machines reach the desk, which has no users: add one with `sightline users add "
                "NAME --grant admin`, or listen on 127.0.0.1"
            )
        if not self.private and not self.secure:
            raise UsageError(
                f"--host {self.host} would send passwords over the network unencrypted: give --tls-cert and --tls-key, "
                "or --behind-proxy if a proxy speaks TLS in front of the desk"
            )

    def answers_to(self, name: str) -> bool:
        """Whether the desk answers requests for a host of this name, so that no other name leads to it.

        A page of another site reaches an address on this network by a name of its own (DNS rebinding), never by the
        address itself.
        """
        if is_loopback(name) or name.lower().rstrip(".") in {host.lower().rstrip(".") for host in self.allowed_hosts}:
            return True
        if self.private:
            return False
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True
