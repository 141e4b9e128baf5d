"""Routes about the audit trail: `GET /audit`, `GET /audit/export`. Reading the trail is recorded too."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from index.errors import UsageError
from index.records import parse_time
from pipeline.access.roles import Action
from pipeline.audit.export import export_trail
from pipeline.audit.record import AuditRecord
from pipeline.web.ranges import BytesResponse, attachment, open_file
from pipeline.web.routes.access import AuditLogOf, require_everywhere
from pipeline.web.routes.guarded import CallerOf, GuardedRouter
from pipeline.web.schemas.audit import AuditPage, AuditReply
from pipeline.web.schemas.fields import Cursor, Limit, MicrosText

__all__ = ["routes"]

routes = GuardedRouter(tag="audit")
_PARQUET = "application/vnd.apache.parquet"
From = Annotated[MicrosText | None, Query(alias="from", description="First time, RFC 3339.")]
To = Annotated[MicrosText | None, Query(alias="to", description="Last time, exclusive, RFC 3339.")]
User = Annotated[str | None, Query(max_length=100, description="Name of a user.")]
Done = Annotated[str | None, Query(max_length=100, description="An action, such as `export`.")]


@routes.get("/audit", action=Action.AUDIT)
def list_audit(
    caller: CallerOf,
    audit: AuditLogOf,
    start: From = None,
    end: To = None,
    user: User = None,
    action: Done = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> AuditPage:
    """Records of the audit trail, newest first."""
    require_everywhere(caller, Action.AUDIT)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise UsageError("cursor: must be `next` of the page before")
    where = {"from": start, "to": end, "user": user, "action": action}
    if cursor is None:
        audit.append(AuditRecord.of(caller, "audit.read", (), _given(where)), grouped=True)
    found = audit.table.newest(
        limit,
        before=None if cursor is None else int(cursor),
        start=parse_time(start, "from"),
        end=parse_time(end, "to"),
        user=user or None,
        action=action or None,
    )
    following = str(found[-1].sequence) if len(found) == limit else None
    notices = [] if audit.notice is None else [audit.notice]
    return AuditPage(items=[AuditReply.of(record) for record in found], next=following, notices=notices)


@routes.get(
    "/audit/export",
    action=Action.AUDIT,
    response_class=Response,
    responses={
        200: {
            "content": {_PARQUET: {"schema": {"type": "string", "format": "binary"}}},
            "description": "The records, a Parquet file.",
        }
    },
)
def export_audit(
    caller: CallerOf,
    audit: AuditLogOf,
    start: From = None,
    end: To = None,
    user: User = None,
) -> Response:
    """The audit trail as a Parquet file. The whole trail can be verified with `sightline audit verify --file`."""
    require_everywhere(caller, Action.AUDIT)
    audit.append(AuditRecord.of(caller, "audit.export", (), _given({"from": start, "to": end, "user": user})))
    with tempfile.NamedTemporaryFile(dir=audit.state, prefix="audit-", suffix=".parquet", delete=False) as file:
        path = Path(file.name)
    try:
        export_trail(audit.table, path, start=parse_time(start, "from"), end=parse_time(end, "to"), user=user or None)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    headers = {"Cache-Control": "private, no-store", "Content-Disposition": attachment("sightline-audit.parquet")}
    return BytesResponse(open_file(path, _PARQUET, remove=True), headers=headers)


def _given(where: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in where.items() if value}
