"""The desk as a process: `sightline serve`. Opens the store, makes the application, and serves until SIGTERM."""

from __future__ import annotations

from collections.abc import Callable

from index.errors import UsageError, mask_url
from pipeline.desk.desk import Desk, DeskSettings
from pipeline.service.client import ServiceClient
from pipeline.service.guard import RequestGuard, is_loopback
from pipeline.service.limits import ServiceLimits
from pipeline.service.server import run_service
from pipeline.web.app import Guard, make_app

__all__ = ["DeskService", "check_users", "serve"]


class DeskService:
    """The application over one desk, as `pipeline.service.server` runs it."""

    def __init__(self, desk: Desk, *, limits: ServiceLimits, guard: Guard | None = None) -> None:
        self.desk, self.limits = desk, limits
        self.app: RequestGuard = make_app(desk, limits=limits, guard=guard)

    def drain(self) -> None:
        """Refuse new questions; admitted ones continue. A signal handler calls it."""
        self.desk.drain()

    def stop(self) -> bool:
        """Wait up to `limits.stop_seconds` for the admitted questions, cancel the rest; whether all finished."""
        return self.desk.stop(self.limits.stop_seconds)

    def close(self) -> None:
        """Release what the desk holds."""
        self.desk.close()


def check_users(host: str, *, users: bool) -> None:
    """Check that a desk without users listens on a loopback address only. Raises UsageError."""
    if not users and not is_loopback(host):
        raise UsageError(
            f"--host {host} is reachable from other machines, so users are required: add the first with "
            "`sightline users add`, or listen on 127.0.0.1"
        )


def serve(
    settings: DeskSettings,
    *,
    host: str,
    port: int,
    limits: ServiceLimits,
    on_listen: Callable[[str], None],
    connect: Callable[[], ServiceClient] | None = None,
    guard: Guard | None = None,
) -> None:
    """Open the store and serve until SIGTERM.

    Args:
        settings: what the desk is started with.
        host: address to listen on.
        port: port to listen on; 0 picks a free one.
        limits: limits of requests.
        on_listen: called with the URL once the desk listens.
        connect: returns the client of a model service; None to run the models in this process.
        guard: sets the caller of each request; without it there is one user, on loopback.

    Raises:
        UsageError: there are no users, and the address is not a loopback address.
        ServiceUnavailable: the address is in use.
        StoreError: the store cannot be opened.
    """
    check_users(host, users=guard is not None)
    desk = Desk(settings, connect=connect)
    service = DeskService(desk, limits=limits, guard=guard)
    shown = f"[{host}]" if ":" in host else host

    def listening(real: int) -> None:
        """Announce the address, and prepare the first search."""
        on_listen(mask_url(f"http://{shown}:{real}"))
        desk.warm()

    run_service(service, host=host, port=port, on_listen=listening)
