"""Checks an audit trail, in a store or in an exported file: digests, order, gaps, and its end.

What it finds: a record that was changed, removed, added, doubled or moved; records that are missing at the end, if the
anchor of the state folder or the log of the table still knows them; a file that is damaged. What it cannot find: a
whole trail that was replaced by somebody who can also write to the state folder of every machine that used it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from index.errors import AuditBroken, SightlineError, SourceNotFound, mask_url
from index.tables import normalize_url
from pipeline.audit.anchor import Anchor, read_anchor
from pipeline.audit.log import AuditTable
from pipeline.audit.record import GENESIS, SCHEMA, ChainedRecord, rows_of_table

__all__ = ["chain_problems", "read_export", "trail_problems", "verify_trails"]

_MAX_PROBLEMS = 20


def chain_problems(
    records: Iterable[ChainedRecord], *, anchor: Anchor | None = None, last: int | None = None
) -> list[str]:
    """The problems of a chain, one sentence each; empty if there are none.

    Args:
        records: by sequence number.
        anchor: a record that the chain must contain.
        last: the sequence number that the last record must have.
    """
    problems = list[str]()
    sequence, digest, anchored = 0, GENESIS, anchor is None
    for record in records:
        if record.sequence == sequence:
            problems.append(f"record {sequence} is there twice")
            continue
        if record.sequence != sequence + 1:
            problems.append(f"{_subject(sequence + 1, record.sequence - 1)} missing")
        elif record.previous != digest:
            problems.append(f"record {record.sequence} does not follow the record before it")
        if record.digest != record.computed():
            problems.append(f"record {record.sequence} was changed")
        if anchor is not None and record.sequence == anchor.sequence:
            anchored = True
            if record.digest != anchor.digest:
                problems.append(f"record {record.sequence} is not the one that this machine stored")
        sequence, digest = record.sequence, record.digest
        if len(problems) >= _MAX_PROBLEMS:
            return [*problems, "there may be more problems"]
    if anchor is not None and not anchored and anchor.sequence > sequence:
        problems.append(f"{_subject(sequence + 1, anchor.sequence)} missing, which this machine stored")
    elif last is not None and sequence < last:
        problems.append(f"{_subject(sequence + 1, last)} missing")
    elif last is not None and sequence > last:
        problems.append(f"{_subject(last + 1, sequence)} not Sightline's: something else added what is there")
    return problems


def _subject(first: int, last: int) -> str:
    return f"record {first} is" if first >= last else f"records {first} to {last} are"


def trail_problems(table: AuditTable, state: Path | None) -> list[str]:
    """The problems of one trail, each with its place; empty if there are none or there is no trail.

    Args:
        table: the trail.
        state: the state folder with its anchor; None to do without.
    """
    shown = mask_url(table.uri)
    try:
        anchor = None if state is None else read_anchor(state, table.uri)
        if not table.exists():
            lost = anchor is not None
            return [f"{shown}: the audit trail is missing, of which this machine stored records"] if lost else []
        last = table.last_sequence()
        problems = chain_problems(table.read(), anchor=anchor, last=last)
    except SightlineError as error:
        return [f"audit trail: {error}"]
    return [f"{shown}: audit trail: {problem}" for problem in problems]


def verify_trails(store: str, state: Path) -> list[str]:
    """The problems of the trails of a store: the one in it, and the one in the state folder."""
    places = (f"{normalize_url(store)}/audit", str(state / "audit"))
    return [problem for place in places for problem in trail_problems(AuditTable(place), state)]


def read_export(path: Path) -> Iterator[ChainedRecord]:
    """The records of an exported file, in its order.

    Raises:
        SourceNotFound: the file cannot be read.
        AuditBroken: it is no exported trail, or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.names != SCHEMA.names:
                raise AuditBroken(f"{path}: is no exported audit trail")
            for batch in file.iter_batches(10_000):
                yield from rows_of_table(pa.Table.from_batches([batch]).cast(SCHEMA))
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: there is no such file") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise AuditBroken(f"{path}: cannot be read ({str(error).splitlines()[0][:200]})") from None
