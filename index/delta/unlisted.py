"""Files in the folders of a table that no version of it lists: those of commits that were refused, or killed before.

They are told from files of commits in progress by a change of the table between two looks: whoever began before it
cannot commit any more. `index.commits.deletion` removes them; all others are removed after `table.GRACE_HOURS`.

This module does not know whose files they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from index.delta.failures import translate_errors
from index.delta.objects import file_system
from index.delta.table import StoreTable
from index.schemas import partition_folder

__all__ = ["partition_files", "remove_unlisted"]

_FENCE = "sightline.fence"


def partition_files(table: StoreTable, stream_id: str, until: str | None = None) -> list[str]:
    """The files in the folder of a stream, listed or not, of days up to `until` (YYYY-MM-DD; all when None)."""
    with translate_errors(table.uri):
        files, folder = file_system(f"{table.uri}/{partition_folder(stream_id)}")
        found = [str(path) for path in files.find(folder)]
    return [path for path in found if until is None or _day(path) <= until]


def remove_unlisted(table: StoreTable, found: Sequence[str]) -> None:
    """Remove those of the `found` files that no version lists, nor has listed: what was replaced, `purge` removes.

    A property of the table is changed first, which conflicts with each commit that was begun before; its writer begins
    again, with new files. A writer that commits files which it wrote before it looked at the table
    (`index.commits.bulk`) must be fenced off by a property that its commit requires.
    """
    if not found:
        return
    table.configure({_FENCE: str(time.time_ns())})
    with translate_errors(table.uri):
        newest = table.open()
        known = newest.get_add_actions()["path"].to_pylist()
        known += newest.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False)
        names = {_name(path) for path in known}
        files, _ = file_system(table.uri)
        for path in found:
            if _name(path) not in names:
                with suppress(FileNotFoundError):  # another process removes them too
                    files.rm_file(path)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _day(path: str) -> str:
    return path.rpartition("/date=")[2].split("/")[0] if "/date=" in path else ""
