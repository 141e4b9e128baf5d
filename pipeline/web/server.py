"""The desk as a process: `sightline serve`. Opens the store, makes the application, and serves until SIGTERM."""

from __future__ import annotations

from collections.abc import Callable

from index.errors import mask_url
from pipeline.access.authentication import Authentication
from pipeline.audit.log import AuditLog
from pipeline.audit.record import AuditRecord
from pipeline.desk.desk import Desk
from pipeline.service.limits import ServiceLimits
from pipeline.service.server import run_service
from pipeline.web.address import DeskAddress
from pipeline.web.app import make_app
from pipeline.web.guard import DeskGuard

__all__ = ["DeskService", "serve"]


class DeskService:
    """The application over one desk, as `pipeline.service.server` runs it."""

    def __init__(
        self,
        desk: Desk,
        *,
        authentication: Authentication,
        audit_log: AuditLog,
        address: DeskAddress,
        limits: ServiceLimits,
    ) -> None:
        self.desk, self.limits, self.authentication, self.audit_log = desk, limits, authentication, audit_log
        self.app: DeskGuard = make_app(
            desk, authentication=authentication, audit_log=audit_log, address=address, limits=limits
        )

    def drain(self) -> None:
        """Refuse new questions; admitted ones continue. A signal handler calls it."""
        self.desk.drain()

    def stop(self) -> bool:
        """Wait up to `limits.stop_seconds` for the admitted questions, cancel the rest; whether all finished."""
        return self.desk.stop(self.limits.stop_seconds)

    def close(self) -> None:
        """Release what the desk holds."""
        self.desk.close()
        self.audit_log.close()
        self.authentication.close()


def serve(
    desk: Desk,
    *,
    authentication: Authentication,
    audit_log: AuditLog,
    address: DeskAddress,
    port: int,
    limits: ServiceLimits,
    on_listen: Callable[[str], None],
) -> None:
    """Serve a desk until SIGTERM.

    Args:
        desk: the desk.
        authentication: its users, sessions and tokens.
        audit_log: its audit trail.
        address: address to listen on, and how clients reach it.
        port: port to listen on; 0 picks a free one.
        limits: limits of requests.
        on_listen: called with the URL once the desk listens.

    Raises:
        UsageError: others could reach the desk without a password, or passwords would be sent unencrypted.
        ServiceUnavailable: the address is in use.
        StoreError: the audit trail cannot be written.
    """
    address.check(users=authentication.required)
    audit_log.append(AuditRecord("local", "serve", (), {"host": address.host, "port": port}, via="command"))
    service = DeskService(desk, authentication=authentication, audit_log=audit_log, address=address, limits=limits)
    shown = f"[{address.host}]" if ":" in address.host else address.host

    def listening(real: int) -> None:
        """Announce the address, and prepare the first search."""
        on_listen(mask_url(f"{'https' if address.tls else 'http'}://{shown}:{real}"))
        desk.warm()

    run_service(service, host=address.host, port=port, tls=address.tls, on_listen=listening)
