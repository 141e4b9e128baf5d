"""Replies about the audit trail."""

from __future__ import annotations

from typing import Any

from index.records import rfc3339
from pipeline.audit.record import ChainedRecord
from pipeline.web.schemas.fields import Reply, TimeText

__all__ = ["AuditPage", "AuditReply"]


class AuditReply(Reply):
    """A record of the audit trail."""

    seq: int
    """Place in the trail, from 1."""
    at: TimeText
    """When, RFC 3339."""
    user: str
    """Who."""
    via: str
    """How the user was authenticated: local, session, oidc, token, mcp or command."""
    origin: str
    """Address that the request came from."""
    action: str
    """What was done."""
    outcome: str
    """done, refused or failed."""
    streams: list[str]
    """The streams concerned."""
    detail: dict[str, Any]
    """Further facts."""
    digest: str
    """SHA-256 over the record and the digest of the one before."""

    @classmethod
    def of(cls, record: ChainedRecord) -> AuditReply:
        """The reply about a record."""
        read = record.document()
        same = ("user", "via", "origin", "action", "outcome", "streams", "detail", "digest")
        return cls(seq=record.sequence, at=rfc3339(record.at), **{name: read[name] for name in same})


class AuditPage(Reply):
    """Records of the audit trail, newest first."""

    items: list[AuditReply]
    """The records."""
    next: str | None
    """Value of `cursor` for the records before these; null at the end."""
    notices: list[str]
    """Remarks, such as that the store cannot be written and the trail is elsewhere."""
