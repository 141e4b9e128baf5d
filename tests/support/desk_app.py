"""The complete application of a desk over a small store, with the users ann and eve, called without a network."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from starlette.types import Receive, Scope, Send

from index.store import Store
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.access.authentication import Authentication
from pipeline.access.oidc import OidcLogin
from pipeline.access.sessions import csrf_token
from pipeline.audit.log import AuditLog
from pipeline.audit.record import ChainedRecord
from pipeline.desk.desk import Desk, DeskSettings
from pipeline.questions.asker import WINDOW_BYTES
from pipeline.service.limits import ServiceLimits
from pipeline.web.address import DeskAddress
from pipeline.web.app import make_app
from pipeline.web.guard import session_cookie
from tests.support.desk_access import add_users
from tests.support.records import BEGAN, PAIR, make_records, make_segment

BASE = "http://localhost:8080"
API = "/api/v1"


@dataclass
class DeskApp:
    """An application, and what belongs to it."""

    authentication: Authentication
    audit: AuditLog
    desk: Desk
    app: Any
    place: Path

    def ask(self, method: str, path: str, base: str = BASE, **options: Any) -> httpx.Response:
        """The reply to a request."""
        port = httpx.URL(base).port or (443 if base.startswith("https") else 80)

        async def served(scope: Scope, receive: Receive, send: Send) -> None:
            """The application behind a server that listens on the port of the URL."""
            await self.app({**scope, "server": ("127.0.0.1", port), "state": {}}, receive, send)

        async def send() -> httpx.Response:
            """Send the request."""
            async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def session(self, name: str) -> dict[str, str]:
        """The headers of a new session of a user."""
        return self.headers_of(self.authentication.sessions.begin(name, "session"))

    @staticmethod
    def headers_of(chosen: str) -> dict[str, str]:
        """The headers of requests in a session."""
        cookie = session_cookie(secure=False, port=8080)
        return {"Cookie": f"{cookie}={chosen}", "X-CSRF-Token": csrf_token(chosen)}

    def token(self, name: str, *scopes: str) -> dict[str, str]:
        """The headers of requests with a new token of a user."""
        return {"Authorization": f"Bearer {self.authentication.tokens.make(name, 'test', scopes, 1)[1]}"}

    def recorded(self, action: str | None = None) -> list[ChainedRecord]:
        """The records of the audit trail, oldest first."""
        self.audit.flush()
        return [record for record in self.audit.table.read() if action in (None, record.action)]

    def close(self) -> None:
        """Release what the desk holds."""
        self.desk.close()
        self.audit.close()
        self.authentication.close()


def make_store(
    place: Path, streams: tuple[str, ...] = ("gate-1", "gate-2", "yard"), *, micro: bool = False, seconds: int = 20
) -> None:
    """A store of random frames of each stream; with `micro` its vectors have the sizes and names of that profile."""
    pair = load_encoders(load_profile("micro"), "cpu").pair if micro else PAIR
    picture = io.BytesIO()
    Image.new("RGB", (64, 36), "red").save(picture, "JPEG")
    made = Store.create(place, pair)
    for number, stream in enumerate(streams):
        records = make_records(stream, BEGAN, seconds, seed=number, pair=pair, picture=picture.getvalue())
        made.append(make_segment(records, 0, f"file {stream}"), records)


def desk_app(
    place: Path,
    *,
    users: bool = True,
    oidc: OidcLogin | None = None,
    address: DeskAddress | None = None,
    micro: bool = False,
    store: Path | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> DeskApp:
    """The application of a desk in a folder with a state folder; over `store`, or else over one that is made there."""
    if store is None:
        store = place / "store"
        make_store(store, micro=micro)
    if users:
        add_users(place / "state")
    authentication = Authentication(place / "state", oidc=oidc)
    audit = AuditLog.open(str(store), place / "state")
    settings = DeskSettings(store=str(store), state=place / "state", device="cpu", window_bytes=window_bytes)
    desk = Desk(settings, audit=audit.record, database=authentication.database if micro else None)
    app = make_app(
        desk,
        authentication=authentication,
        audit_log=audit,
        address=address or DeskAddress(),
        limits=ServiceLimits(),
    )
    return DeskApp(authentication, audit, desk, app, place)
