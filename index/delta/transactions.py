"""Versions of application transactions at a version of a table, followed through its log.

deltalake reads all entries of the log since the last checkpoint for each application that it is asked about, from an
object store one request each. Here what is known of an application at one version is carried to a later one by reading
the entries between, once for all applications; a writer's own commits need no reading at all. What is unknown, or whose
entries were removed, is asked of deltalake.

Does not know which versions a writer expects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltalake import DeltaTable

from index.delta.objects import file_system

__all__ = ["Transactions"]

_MOST_ENTRIES = 50
"""Entries that are read at most; asking deltalake costs about as many on average."""


@dataclass(slots=True)
class Transactions:
    """The known versions of applications in one table."""

    uri: str
    """Path or URL of the table."""
    _known: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """For each application the version of the table at which it was known last, and its version then."""

    def at(self, table: DeltaTable, apps: Sequence[str]) -> dict[str, int | None]:
        """The version of each application at the version of `table`, None for one without any."""
        now = table.version()
        behind = [app for app in apps if app in self._known and self._known[app][0] != now]
        if behind:
            self._follow(behind, now)
        for app in apps:
            if app not in self._known or self._known[app][0] != now:
                self._known[app] = now, table.transaction_version(app)
        return {app: self._known[app][1] for app in apps}

    def advance(self, version: int, reached: Mapping[str, int]) -> None:
        """Note a commit of this process, which made `version` of the table and set these applications.

        Delta refuses a commit beside another one of the same application, so no entry between matters to these.
        """
        self._known.update({app: (version, reached_version) for app, reached_version in reached.items()})

    def _follow(self, apps: Sequence[str], now: int) -> None:
        """Carry applications to the version `now` of the table, as far as the entries can be read."""
        first = min(self._known[app][0] for app in apps) + 1
        if not first <= now < first + _MOST_ENTRIES:
            return
        system, place = (None, self.uri) if "://" not in self.uri else file_system(self.uri)
        for version in range(first, now + 1):
            name = f"{place.rstrip('/')}/_delta_log/{version:020d}.json"
            try:
                entry = Path(name).read_bytes() if system is None else system.cat_file(name)
                found = dict(_transactions(entry))
            except (OSError, ValueError, KeyError, TypeError):  # removed behind a checkpoint, or damaged
                return
            for app in apps:
                at, reached = self._known[app]
                if at == version - 1:
                    self._known[app] = version, found.get(app, reached)


def _transactions(entry: bytes) -> list[tuple[str, int]]:
    """The transactions of one entry of a log: application and version."""
    lines = [line for line in entry.splitlines() if b'"txn"' in line]
    actions = [json.loads(line) for line in lines]
    return [(str(action["txn"]["appId"]), int(action["txn"]["version"])) for action in actions if "txn" in action]
