"""Records of what commands do to a store, such as `forget`: written at once, by the account that runs the command.

The trail is in the store. Its anchor is kept in the state folder where that can be written, which a container that
only compacts a store may not allow.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from index.errors import SightlineError
from index.tables import normalize_url
from pipeline.access.database import make_state_folder
from pipeline.access.state import state_folder
from pipeline.audit.anchor import Anchor, keep_anchor
from pipeline.audit.log import AuditTable
from pipeline.audit.record import AuditRecord

__all__ = ["command_record", "record_command"]

_log = structlog.get_logger("sightline.audit")


def command_record(
    action: str, streams: Sequence[str] = (), detail: Mapping[str, Any] | None = None, *, outcome: str = "done"
) -> AuditRecord:
    """The record of what the account that runs this process does now."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return AuditRecord(user, action, tuple(streams), detail or {}, "command", socket.gethostname(), outcome)


def record_command(
    store: str,
    action: str,
    streams: Sequence[str] = (),
    detail: Mapping[str, Any] | None = None,
    *,
    outcome: str = "done",
) -> None:
    """Add a record of a command to the trail of a store, which exists. Returns when it is stored.

    Raises:
        StoreError: the trail cannot be written.
    """
    table = AuditTable(f"{normalize_url(store)}/audit")
    table.create()
    last = table.append([command_record(action, streams, detail, outcome=outcome)])
    try:
        keep_anchor(make_state_folder(state_folder(store)), table.uri, Anchor(last.sequence, last.digest))
    except SightlineError as error:
        _log.info("the anchor of the audit trail is not kept", problem=str(error))
