"""The state folder of a desk: users, sessions, history and keys, which are not in the store.

A store may be shared or read-only, so each installation keeps what is its own in a folder of its user: one for each
store, `$XDG_STATE_HOME/sightline/<digest of the store's URL>` on Linux, unless another one is chosen.
"""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_state_path

from index.columns import digest
from index.tables import normalize_url

__all__ = ["state_folder"]


def state_folder(store: str, chosen: Path | None = None) -> Path:
    """The state folder of a store: `chosen`, or the one of this user. It may not exist yet.

    Raises:
        UsageError: `store` is not the URL or path of a store.
    """
    return chosen or user_state_path("sightline", appauthor=False) / digest(normalize_url(store))
