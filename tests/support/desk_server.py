"""A desk over a store, served on loopback in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from pipeline.access.authentication import Authentication
from pipeline.audit.log import AuditLog
from pipeline.desk.desk import Desk, DeskSettings
from pipeline.service.limits import ServiceLimits
from pipeline.web.address import DeskAddress
from pipeline.web.app import make_app

__all__ = ["ServedDesk", "served_desk"]


class ServedDesk:
    """A running desk."""

    def __init__(self, url: str, desk: Desk, authentication: Authentication, audited: list[tuple[Any, ...]]) -> None:
        self.url, self.desk, self.authentication, self.audited = url, desk, authentication, audited


@contextmanager
def served_desk(store: str, state: Path, **settings: Any) -> Iterator[ServedDesk]:
    """Serve a store until the block ends. What callers do is noted in `audited`."""
    audited: list[tuple[Any, ...]] = []
    desk = Desk(DeskSettings(store=store, state=state, **settings), audit=lambda *record: audited.append(record))
    authentication = Authentication(state)
    log = AuditLog.open(store, state)
    app = make_app(desk, authentication=authentication, audit_log=log, address=DeskAddress(), limits=ServiceLimits())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 300
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield ServedDesk(f"http://127.0.0.1:{port}", desk, authentication, audited)
        finally:
            server.should_exit = server.force_exit = True
            thread.join(120)
            desk.close()
            authentication.close()
            log.close()
