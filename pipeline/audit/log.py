"""The audit trail of a store: an append-only Delta table, written by any number of processes.

    <store>/audit    where the store can be written
    <state>/audit    where it cannot, or does not exist yet; `AuditLog.notice` says so

Each commit adds the next records of the chain (`pipeline.audit.record`) together with a Delta transaction whose version
is the last sequence number. Two writers that read the same end of the chain therefore conflict, and the second one
chains its records anew.

Records are written by one thread, all that wait at once in one commit. `append` returns when its record is stored; that
of a view may be stored up to `GROUP_SECONDS` later. The number of records that wait is bounded: then `append` waits,
and raises if nothing can be stored.

After each commit the end of the chain is kept in the state folder (the *anchor*), so that a trail whose last records
were removed, or that was replaced as a whole, does not verify.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import structlog
from deltalake import WriterProperties
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from index.delta.failures import retry_conflicts, translate_errors
from index.delta.table import StoreTable
from index.errors import CommitFenced, SightlineError, StoreDenied, StoreError, StoreUnavailable, mask_url
from index.tables import normalize_url, store_exists
from pipeline.access.caller import Caller
from pipeline.access.database import make_state_folder
from pipeline.access.roles import Action
from pipeline.audit.anchor import Anchor, keep_anchor
from pipeline.audit.record import GENESIS, SCHEMA, AuditRecord, ChainedRecord, chain, record_rows, rows_of_table

__all__ = ["GROUPED", "GROUP_SECONDS", "AuditLog", "AuditTable", "audit_tables"]

GROUP_SECONDS = 1.0
"""Longest time after which a view is stored."""

GROUPED = frozenset({Action.VIEW.value, "search", "play", "moment", "frames", "thumbnail", "streams"})
"""The actions whose records may be stored after the reply."""

_CHAIN = "sightline.audit"
_MAX_WAITING = 10_000
_MAX_BATCH = 2_000
_WAIT_SECONDS = 30.0
_RETRY_SECONDS = 2.0
_WINDOW = 20_000  # records in memory while the trail is read
_WRITER = WriterProperties(compression="ZSTD", compression_level=3)
_log = structlog.get_logger("sightline.audit")


class AuditTable:
    """One trail: a Delta table with the chain.

    Args:
        uri: path or URL of the table.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._table = StoreTable(uri, "audit", schema=SCHEMA, writer=_WRITER, partitions=())
        self._end: tuple[int, str] | None = None

    def exists(self) -> bool:
        """Whether there is a trail at this place."""
        return self._table.exists()

    def create(self) -> None:
        """Create the table, if it does not exist. Raises StoreDenied."""
        if not self.exists():
            self._table.create({})

    @retry(
        retry=retry_if_exception_type(CommitFenced),
        stop=stop_after_attempt(30),
        wait=wait_random_exponential(0.02, max=1),
        reraise=True,
    )
    def append(self, records: Sequence[AuditRecord]) -> ChainedRecord:
        """Add records to the end of the chain, in one commit; returns the last one. Raises StoreError."""
        sequence, digest = self._read_end()
        chained = chain(records, sequence, digest)
        last = chained[-1]
        self._table.append_and_advance(record_rows(chained), {_CHAIN: (sequence or None, last.sequence)})
        self._end = (last.sequence, last.digest)
        return last

    def last_sequence(self) -> int:
        """The sequence number of the last record, by the log of the table; 0 if there is none."""
        return self._table.transaction_versions([_CHAIN])[_CHAIN] or 0

    def _read_end(self) -> tuple[int, str]:
        sequence = self.last_sequence()
        if not sequence:
            return 0, GENESIS
        if self._end is None or self._end[0] != sequence:
            found = list(self._rows(pc.field("sequence") == sequence))
            if not found:
                _log.warning("the last record of the audit trail is missing", trail=mask_url(self.uri))
            self._end = (sequence, found[0].digest if found else GENESIS)
        return self._end

    def read(self, start: int = 1, end: int | None = None) -> Iterator[ChainedRecord]:
        """The records with start ≤ sequence < end, by sequence; a bounded number is in memory. Raises StoreError."""
        where = pc.field("sequence") >= start
        if end is not None:
            where &= pc.field("sequence") < end
        with translate_errors(self.uri):
            dataset = self._table.dataset()
            numbers = dataset.to_table(columns=["sequence"], filter=where)["sequence"]
            ordered = numbers.take(pc.sort_indices(numbers))
            low = 0
            while low < len(ordered):
                first = ordered[low].as_py()
                last = ordered[min(low + _WINDOW, len(ordered)) - 1].as_py()
                yield from self._rows((pc.field("sequence") >= first) & (pc.field("sequence") <= last), dataset)
                low = pc.sum(pc.less_equal(ordered, last)).as_py()

    def newest(
        self,
        limit: int,
        *,
        before: int | None = None,
        start: int | None = None,
        end: int | None = None,
        user: str | None = None,
        action: str | None = None,
    ) -> list[ChainedRecord]:
        """The newest records that match, newest first.

        Args:
            limit: most records.
            before: only records with a smaller sequence number.
            start: UTC microseconds, inclusive.
            end: UTC microseconds, exclusive.
            user: name of the user.
            action: the action.
        """
        where = pc.field("sequence") >= 0
        if before is not None:
            where &= pc.field("sequence") < before
        if start is not None:
            where &= pc.field("at") >= pa.scalar(start, pa.timestamp("us", "UTC"))
        if end is not None:
            where &= pc.field("at") < pa.scalar(end, pa.timestamp("us", "UTC"))
        if user is not None:
            where &= pc.field("user") == user
        if action is not None:
            where &= pc.field("action") == action
        with translate_errors(self.uri):
            dataset = self._table.dataset()
            numbers = dataset.to_table(columns=["sequence"], filter=where)["sequence"]
            ordered = numbers.take(pc.sort_indices(numbers, sort_keys=[("sequence", "descending")]))
            chosen = ordered.slice(0, limit)
            if not len(chosen):
                return []
            wanted = pads.field("sequence").isin(chosen.combine_chunks())
            return list(reversed(list(self._rows(wanted, dataset))))

    def compact(self) -> None:
        """Merge small files, and remove log entries that are not needed any more."""

        @retry_conflicts
        def merge() -> None:
            with translate_errors(self.uri):
                self._table.open().optimize.compact(writer_properties=_WRITER)

        if self.exists():
            merge()
            self._table.vacuum()
            self._table.clean_log()

    def _rows(self, where: pads.Expression, dataset: pads.Dataset | None = None) -> Iterator[ChainedRecord]:
        with translate_errors(self.uri):
            found = (dataset or self._table.dataset()).to_table(columns=SCHEMA.names, filter=where)
            yield from rows_of_table(found.take(pc.sort_indices(found, sort_keys=[("sequence", "ascending")])))


def audit_tables(store: str, state: Path) -> list[AuditTable]:
    """The trails of a store that exist: in the store, and in the state folder. Raises StoreError, UsageError."""
    places = (f"{normalize_url(store)}/audit", str(state / "audit"))
    return [table for table in map(AuditTable, places) if table.exists()]


@dataclass(slots=True)
class _Waiting:
    record: AuditRecord
    grouped: bool
    since: float
    done: threading.Event = field(default_factory=threading.Event)
    error: SightlineError | None = None


class AuditLog:
    """Writes records to the trail of a store. Threads may share it.

    Args:
        table: the trail.
        state: the state folder, for the anchor and for the trail of a store that cannot be written.
        notice: why the trail is in the state folder; None if it is in the store.
    """

    def __init__(self, table: AuditTable, state: Path, notice: str | None = None) -> None:
        self.table, self.state, self.notice = table, state, notice
        self._condition = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._closing = False
        self._failed: SightlineError | None = None
        self._thread = threading.Thread(target=self._run, name="sightline-audit", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, store: str, state: Path) -> AuditLog:
        """Open the trail of a store, and create it where there is none.

        Args:
            store: URL or path of the store.
            state: the state folder.

        Raises:
            StoreError: neither the store nor the state folder can be written.
        """
        make_state_folder(state)
        url = normalize_url(store)
        if store_exists(url):
            try:
                table = AuditTable(f"{url}/audit")
                table.create()
            except StoreDenied:
                return cls._local(state, f"{mask_url(url)} is read-only")
            return cls(table, state)
        return cls._local(state, f"there is no store at {mask_url(url)} yet")

    @classmethod
    def _local(cls, state: Path, why: str) -> AuditLog:
        table = AuditTable(str(state / "audit"))
        table.create()
        return cls(table, state, f"{why}, so the audit trail is kept in {state / 'audit'}")

    def record(
        self,
        caller: Caller,
        action: str,
        streams: Sequence[str] = (),
        detail: Mapping[str, Any] | None = None,
        outcome: str = "done",
    ) -> None:
        """Store what a caller did now; see `append`."""
        self.append(AuditRecord.of(caller, action, streams, detail, outcome=outcome))

    def append(self, record: AuditRecord, *, grouped: bool | None = None) -> None:
        """Store a record. Returns when it is stored, or, if it may be grouped, when it is certain to be.

        Args:
            record: the record.
            grouped: whether it may be stored up to `GROUP_SECONDS` later; by default, if `GROUPED` has its action.

        Raises:
            StoreError: the record could not be stored.
        """
        entry = _Waiting(record, record.action in GROUPED if grouped is None else grouped, time.monotonic())
        with self._condition:
            if not self._condition.wait_for(lambda: len(self._waiting) < _MAX_WAITING, _WAIT_SECONDS):
                raise self._failed or StoreUnavailable("the audit trail cannot be written fast enough; try again")
            if self._closing:
                raise StoreUnavailable("the audit trail is closed; the desk is stopping")
            if self._failed is not None:
                entry.grouped = False  # what cannot be recorded is not shown either
            self._waiting.append(entry)
            self._condition.notify_all()
        if entry.grouped:
            return
        entry.done.wait()
        if entry.error is not None:
            raise entry.error

    def flush(self) -> None:
        """Wait until all records that were appended before are stored. Raises StoreError if that fails."""
        with self._condition:
            for entry in self._waiting:
                entry.since = 0.0
            self._condition.notify_all()
            stored = self._condition.wait_for(lambda: not self._waiting, _WAIT_SECONDS)
        if not stored:
            raise self._failed or StoreUnavailable("the audit trail cannot be written")

    def close(self) -> None:
        """Store what waits, in the state folder if the store fails, and stop."""
        with self._condition:
            if self._closing:
                return
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        if self._waiting:  # the store failed
            entries, self._waiting = self._waiting, []
            self._move("the store failed")
            self._commit(entries)

    # ---- the writer's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._due():
                    self._condition.wait(self._pause() if self._waiting else None)
                if not self._waiting:  # closing
                    return
                batch = self._waiting[:_MAX_BATCH]
            error = self._stored(batch)
            with self._condition:
                self._failed = error
                # Who waits gets the error; what was acknowledged is tried again.
                kept = [entry for entry in batch if error is not None and entry.grouped]
                self._waiting[: len(batch)] = kept
                self._condition.notify_all()
                for entry in batch:
                    entry.error = error
                    entry.done.set()
                if error is not None and self._closing:
                    return
                if error is not None:
                    self._condition.wait(_RETRY_SECONDS)

    def _due(self) -> bool:
        if self._closing:
            return True
        if any(not entry.grouped for entry in self._waiting):
            return True
        return bool(self._waiting) and self._pause() <= 0

    def _pause(self) -> float:
        return self._waiting[0].since + GROUP_SECONDS - time.monotonic()

    def _stored(self, batch: Sequence[_Waiting]) -> SightlineError | None:
        """Store a batch; returns the error if that fails."""
        try:
            self._commit(batch)
        except StoreDenied as error:
            if self.notice is not None:
                return error
            try:
                self._move(f"{mask_url(self.table.uri.removesuffix('/audit'))} is read-only")
                self._commit(batch)
            except StoreError as again:
                return again
        except SightlineError as error:
            _log.warning("the audit trail cannot be written", problem=str(error))
            return error
        except Exception as error:  # a defect must not end the thread that others wait for
            _log.error("the audit trail cannot be written", problem=mask_url(repr(error)))
            return StoreUnavailable("the audit trail cannot be written; see the log")
        return None

    def _move(self, why: str) -> None:
        self.notice = f"{why}, so the audit trail is kept in {self.state / 'audit'}"
        self.table = AuditTable(str(self.state / "audit"))
        self.table.create()
        _log.warning("audit", notice=self.notice)

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        last = self.table.append([entry.record for entry in batch])
        try:
            keep_anchor(self.state, self.table.uri, Anchor(last.sequence, last.digest))
        except SightlineError as error:  # the records are stored
            _log.warning("the anchor of the audit trail cannot be kept", problem=str(error))
