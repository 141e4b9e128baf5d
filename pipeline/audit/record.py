"""A record of the audit trail, and the chain that makes a change to it visible.

A record says who did what, when, from where and on which streams. Passwords, tokens and credentials in URLs are masked
when it is made, and its texts and lists are bounded. In the trail each record has a sequence number, the digest of the
record before it, and a digest of its own over both and its content, so that a record that is changed, removed, added or
moved breaks the chain. The digest is SHA-256 over JSON with sorted keys, no blanks and ASCII only.

This module does not know where the trail is stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from index.errors import mask_url
from index.records import from_micros
from pipeline.access.caller import Caller

__all__ = ["GENESIS", "SCHEMA", "AuditRecord", "ChainedRecord", "chain", "record_rows", "rows_of_table"]

GENESIS = "0" * 64
"""What stands for the digest before the first record."""

SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("user", pa.string(), nullable=False),
        pa.field("via", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("streams", pa.string(), nullable=False, metadata={"unit": "JSON list"}),
        pa.field("detail", pa.string(), nullable=False, metadata={"unit": "JSON object"}),
        pa.field("previous", pa.string(), nullable=False, metadata={"unit": "SHA-256, hex"}),
        pa.field("digest", pa.string(), nullable=False, metadata={"unit": "SHA-256, hex"}),
    ]
)
"""Columns of the trail."""

_MAX_TEXT = 2_000
_MAX_ITEMS = 256
_MAX_DEPTH = 4
_SECRET_KEY = re.compile(r"passw|secret|token|credential|authorization|cookie|(?:^|_)key$", re.IGNORECASE)
_TOKEN = re.compile(r"(sl_[a-z2-7]{8})_[A-Za-z0-9_-]{20,}")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/._~=-]{8,}")
_URL_USER = re.compile(r"(?<=://)[^\s/@]*@")


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One thing that somebody did. What is given is masked and bounded."""

    user: str
    """Name of the user; `local` without users, or the account of this machine that ran a command."""
    action: str
    """What was done, such as `search` or `users.add`."""
    streams: tuple[str, ...] = ()
    """The streams concerned."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, as JSON has them."""
    via: str = "local"
    """How the user was authenticated: local, session, oidc, token, mcp or command."""
    origin: str = "local"
    """Address that the request came from."""
    outcome: str = "done"
    """done, refused or failed."""
    at: int = field(default_factory=lambda: time.time_ns() // 1_000)
    """UTC microseconds."""

    def __post_init__(self) -> None:
        for name in ("user", "action", "via", "origin", "outcome"):
            object.__setattr__(self, name, _clean_text(getattr(self, name)))
        streams = tuple(_plain_text(name) for name in self.streams[:_MAX_ITEMS])
        detail = _clean(dict(self.detail), 0)
        if len(self.streams) > _MAX_ITEMS:
            detail["streams_left_out"] = len(self.streams) - _MAX_ITEMS
        object.__setattr__(self, "streams", streams)
        object.__setattr__(self, "detail", detail)

    @classmethod
    def of(
        cls,
        caller: Caller,
        action: str,
        streams: Sequence[str] = (),
        detail: Mapping[str, Any] | None = None,
        *,
        outcome: str = "done",
    ) -> AuditRecord:
        """The record of what a caller did now."""
        return cls(caller.name, str(action), tuple(streams), detail or {}, caller.via, caller.origin, outcome)


@dataclass(frozen=True, slots=True)
class ChainedRecord:
    """A record of the trail with its place in the chain; texts are as they are stored."""

    sequence: int
    """Place in the trail, from 1."""
    at: int
    """UTC microseconds."""
    user: str
    """As `AuditRecord.user`."""
    via: str
    """As `AuditRecord.via`."""
    origin: str
    """As `AuditRecord.origin`."""
    action: str
    """As `AuditRecord.action`."""
    outcome: str
    """As `AuditRecord.outcome`."""
    streams: str
    """JSON list of streams."""
    detail: str
    """JSON object of further facts."""
    previous: str
    """Digest of the record before, `GENESIS` for the first."""
    digest: str
    """Digest of this record."""

    def computed(self) -> str:
        """The digest that the content and the previous digest have."""
        content = {name: getattr(self, name) for name in self.__slots__ if name != "digest"}
        return hashlib.sha256(_canonical(content).encode("ascii")).hexdigest()

    def document(self) -> dict[str, Any]:
        """The record as an API or a person reads it."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain["at"] = from_micros(self.at)
        return {**plain, "streams": json.loads(self.streams), "detail": json.loads(self.detail)}


def chain(records: Iterable[AuditRecord], sequence: int, digest: str) -> list[ChainedRecord]:
    """The records as they follow the record with this sequence number and digest."""
    chained = []
    for record in records:
        sequence += 1
        texts = (record.user, record.via, record.origin, record.action, record.outcome)
        values = (*texts, _canonical(list(record.streams)), _canonical(record.detail), digest)
        unsigned = ChainedRecord(sequence, record.at, *values, "")
        digest = unsigned.computed()
        chained.append(ChainedRecord(sequence, record.at, *values, digest))
    return chained


def record_rows(records: Sequence[ChainedRecord]) -> pa.Table:
    """Rows of `SCHEMA`."""
    columns = {name: [getattr(record, name) for record in records] for name in SCHEMA.names}
    return pa.table({name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names}, SCHEMA)


def rows_of_table(rows: pa.Table) -> list[ChainedRecord]:
    """The records of rows of `SCHEMA`."""
    columns = {name: rows[name] for name in SCHEMA.names}
    columns["at"] = columns["at"].cast(pa.int64())
    values = [column.to_pylist() for column in columns.values()]
    ordered = dict(zip(columns, values, strict=True))
    return [ChainedRecord(*row) for row in zip(*(ordered[name] for name in ChainedRecord.__slots__), strict=True)]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _clean(value: Any, depth: int) -> Any:
    """A value as JSON has it, masked and bounded."""
    if _is_number(value):
        return value if math.isfinite(value or 0) else str(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        items = list(value.items())[:_MAX_ITEMS]
        return {
            _clean_text(str(key))[:100]: (
                _clean(item, depth + 1) if _is_number(item) or not _SECRET_KEY.search(str(key)) else "***"
            )
            for key, item in items
        }
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [_clean(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    return _clean_text(str(value))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _clean_text(text: str) -> str:
    masked = _BEARER.sub(r"\1 ***", _TOKEN.sub(r"\1_***", mask_url(_plain_text(text[: 4 * _MAX_TEXT]))))
    masked = _URL_USER.sub("***@", masked)
    return masked if len(masked) <= _MAX_TEXT else f"{masked[:_MAX_TEXT]}…"


def _plain_text(text: str) -> str:
    """A text that UTF-8 can represent."""
    return text.encode("utf-8", "replace").decode()
