"""The questions that callers asked, in the database of the state folder; in memory where there is none.

A question belongs to the caller who asked it. One about a stream that the caller may no longer see does not exist for
that caller. The newest `MOST` of each caller are kept.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from index.errors import UnknownItem
from pipeline.access.caller import Caller
from pipeline.access.database import StateDatabase

__all__ = ["MOST", "History", "StoredQuestion"]

MOST = 1_000
"""Largest number of questions of one caller."""


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """One question."""

    id: str
    """Id, URL-safe."""
    user: str
    """Name of the caller who asked it."""
    asked: int
    """UTC microseconds."""
    streams: tuple[str, ...]
    """The streams that it is about."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """What was asked and answered, a JSON object."""


class History:
    """Questions of all callers. Any number of threads may use it.

    Args:
        database: the database of the state folder; None to keep questions in memory.
    """

    def __init__(self, database: StateDatabase | None) -> None:
        self._database = database
        self._memory: dict[str, StoredQuestion] = {}
        self._lock = threading.Lock()

    def put(self, question: StoredQuestion) -> None:
        """Store a question, or replace the one with its id."""
        if self._database is None:
            with self._lock:
                self._memory[question.id] = question
                mine = sorted((q for q in self._memory.values() if q.user == question.user), key=lambda q: q.asked)
                for old in mine[:-MOST]:
                    del self._memory[old.id]
            return
        with self._database.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO questions (id, user, asked, streams, document) VALUES (?, ?, ?, ?, ?)",
                question.id,
                question.user,
                question.asked,
                json.dumps(question.streams),
                json.dumps(question.document),
            )
            database.execute(
                "DELETE FROM questions WHERE user = ?1 AND id NOT IN "
                "(SELECT id FROM questions WHERE user = ?1 ORDER BY asked DESC LIMIT ?2)",
                question.user,
                MOST,
            )

    def find(self, caller: Caller, question_id: str) -> StoredQuestion:
        """A caller's question. Raises UnknownItem."""
        if self._database is None:
            found = self._memory.get(question_id)
        else:
            row = self._database.row("SELECT * FROM questions WHERE id = ?", question_id)
            found = None if row is None else _question(row)
        if found is None or not _sees(caller, found):
            raise UnknownItem("there is no such question")
        return found

    def newest(self, caller: Caller, *, before: tuple[int, str] | None, limit: int) -> list[StoredQuestion]:
        """A caller's questions, the newest first.

        Args:
            caller: the caller.
            before: time and id of a question; only those that were asked before it.
            limit: largest number.
        """
        if self._database is None:
            with self._lock:
                held = sorted(self._memory.values(), key=lambda q: (q.asked, q.id), reverse=True)
        else:
            statement = "SELECT * FROM questions WHERE user = ? ORDER BY asked DESC, id DESC"
            held = [_question(row) for row in self._database.rows(statement, caller.name)]
        seen = [each for each in held if _sees(caller, each) and (before is None or (each.asked, each.id) < before)]
        return seen[:limit]

    def remove(self, caller: Caller, question_id: str) -> None:
        """Remove a caller's question. Raises UnknownItem."""
        self.find(caller, question_id)
        if self._database is None:
            with self._lock:
                self._memory.pop(question_id, None)
        else:
            self._database.execute("DELETE FROM questions WHERE id = ?", question_id)


def _question(row: Any) -> StoredQuestion:
    streams = tuple(json.loads(row["streams"]))
    return StoredQuestion(row["id"], row["user"], row["asked"], streams, json.loads(row["document"]))


def _sees(caller: Caller, question: StoredQuestion) -> bool:
    return question.user == caller.name and len(caller.visible(question.streams)) == len(question.streams)
