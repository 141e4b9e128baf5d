"""A SQLite database in the state folder: owner-only file, write-ahead log, schema changes in order.

`StateDatabase` opens the file, and brings it to the newest schema by the statements whose number is above the file's
`user_version`. Several processes may use one file: readers do not wait for a writer, and a writer waits up to
`_BUSY_SECONDS` for another one. A transaction takes the write lock when it begins, so that what it reads is what it
changes.

This module does not know what the tables mean.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index.errors import StoreDenied, StoreVersion

__all__ = ["StateDatabase", "make_state_folder"]

_BUSY_SECONDS = 10.0


def make_state_folder(folder: Path) -> Path:
    """Create the folder, for this user only, if it does not exist; returns it.

    Raises:
        StoreDenied: it cannot be created, or another user of this machine may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise StoreDenied(f"{folder}: cannot be the state folder ({error.strerror}); choose another --state") from None
    if mode & 0o022:
        raise StoreDenied(f"{folder}: other users of this machine may write to it; run `chmod go-w {folder}`")
    return folder


class StateDatabase:
    """One SQLite file, used by any number of threads; statements run one at a time.

    Args:
        path: the file, whose folder must exist; it is created with mode 0600.
        migrations: the scripts that make each version of the schema from the one before; never changed, only added to.

    Raises:
        StoreDenied: the file cannot be opened or written.
        StoreVersion: a newer Sightline wrote it.
    """

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(path, 0o600)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA secure_delete = ON")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._migrate(migrations)
        except (OSError, sqlite3.DatabaseError) as error:
            raise StoreDenied(f"{path}: cannot be used as a database ({error}); check owner and mode") from None

    def _migrate(self, migrations: Sequence[str]) -> None:
        with self.transaction():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > len(migrations):
                raise StoreVersion(f"{self.path}: a newer Sightline wrote it; install that version")
            for number in range(version, len(migrations)):
                for statement in migrations[number].split(";"):  # executescript would commit the transaction
                    if statement.strip():
                        self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number + 1}")

    @contextmanager
    def snapshot(self) -> Iterator[StateDatabase]:
        """Have all queries of the block see one state of the database."""
        with self._lock:
            if self._connection.in_transaction:
                yield self
                return
            self._connection.execute("BEGIN")
            try:
                yield self
            finally:
                self._connection.execute("COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[StateDatabase]:
        """Have all statements of the block take effect together when it ends, or none if it raises.

        A transaction inside another one is a part of it.
        """
        with self._lock:
            if self._connection.in_transaction:
                yield self
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def execute(self, statement: str, *values: Any) -> int:
        """Run a statement that changes rows; returns their number."""
        with self._lock:
            return self._connection.execute(statement, values).rowcount

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """The rows that a query finds."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def row(self, statement: str, *values: Any) -> sqlite3.Row | None:
        """The first row that a query finds; None if there is none."""
        found = self.rows(statement, *values)
        return found[0] if found else None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
