"""The end of an audit trail as this machine last saw it, kept in the state folder beside the trail's own store.

A chain of digests shows that no record in it was changed, but not that its last ones are missing. The anchor does: the
trail must contain the record with this sequence number and digest. It only moves forward; several processes may move
it.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from index.errors import AuditBroken, StoreDenied, mask_url
from index.files import write_atomically

__all__ = ["Anchor", "keep_anchor", "read_anchor"]

_NAME = "audit-anchors.json"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A record that the trail must contain."""

    sequence: int
    """Its sequence number."""
    digest: str
    """Its digest."""


def read_anchor(state: Path, uri: str) -> Anchor | None:
    """The anchor of the trail at `uri`; None if there is none.

    Raises:
        AuditBroken: the file is damaged.
        StoreDenied: it cannot be read.
    """
    held = _read(state).get(mask_url(uri))
    return None if held is None else Anchor(*held)


def keep_anchor(state: Path, uri: str, anchor: Anchor) -> None:
    """Move the anchor of the trail at `uri` forward. Raises AuditBroken, StoreDenied."""
    try:
        lock = os.open(state / f"{_NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            anchors = _read(state)
            held = anchors.get(mask_url(uri))
            if held is None or held[0] < anchor.sequence:
                anchors[mask_url(uri)] = (anchor.sequence, anchor.digest)
                write_atomically(state / _NAME, json.dumps(anchors, indent=1, sort_keys=True))
        finally:
            os.close(lock)
    except OSError as error:
        raise StoreDenied(f"{state / _NAME}: cannot be written ({error.strerror}); check owner and mode") from None


def _read(state: Path) -> dict[str, tuple[int, str]]:
    path = state / _NAME
    try:
        anchors = json.loads(path.read_bytes())
        return {str(uri): (int(sequence), str(digest)) for uri, (sequence, digest) in anchors.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreDenied(f"{path}: cannot be read ({error.strerror}); check owner and mode") from None
    except (ValueError, TypeError, AttributeError):
        raise AuditBroken(
            f"{path}: the file is damaged; restore it, or delete it to accept the trail as it is"
        ) from None
