"""Tampering with an audit trail is found: any byte, any row, any end, any exchange."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from index.delta.table import StoreTable
from pipeline.audit.anchor import Anchor, keep_anchor, read_anchor
from pipeline.audit.log import AuditLog, AuditTable
from pipeline.audit.record import GENESIS, AuditRecord, ChainedRecord, chain, record_rows
from pipeline.audit.verification import chain_problems, read_export, verify_trails


def records(count: int) -> list[ChainedRecord]:
    made = [AuditRecord("ann", "export", ("gate",), {"number": number}, at=number) for number in range(count)]
    return chain(made, 0, GENESIS)


LENGTH = 9
CHAIN = records(LENGTH)
END = Anchor(CHAIN[-1].sequence, CHAIN[-1].digest)


def test_a_chain_as_it_was_made_has_no_problems() -> None:
    assert chain_problems(CHAIN) == []
    assert chain_problems(CHAIN, anchor=END, last=LENGTH) == []
    assert chain_problems(CHAIN, anchor=Anchor(3, CHAIN[2].digest)) == []
    assert chain_problems([]) == []


@given(
    st.integers(0, LENGTH - 1),
    st.sampled_from([name for name in ChainedRecord.__slots__ if name not in ("sequence", "at")]),
    st.text(max_size=8),
)
def test_a_changed_text_is_found(place: int, name: str, value: str) -> None:
    changed = [*CHAIN]
    changed[place] = dataclasses.replace(CHAIN[place], **{name: value})  # type: ignore[arg-type]
    assert bool(chain_problems(changed, anchor=END)) == (changed != CHAIN)


@given(st.integers(0, LENGTH - 1), st.sampled_from(["sequence", "at"]), st.integers(-(2**40), 2**40))
def test_a_changed_number_is_found(place: int, name: str, value: int) -> None:
    changed = [*CHAIN]
    changed[place] = dataclasses.replace(CHAIN[place], **{name: value})  # type: ignore[arg-type]
    assert bool(chain_problems(changed, anchor=END)) == (changed != CHAIN)


@given(st.lists(st.sampled_from(CHAIN), max_size=LENGTH + 3))
def test_any_other_choice_or_order_of_records_is_found(chosen: Sequence[ChainedRecord]) -> None:
    assert bool(chain_problems(chosen, anchor=END)) == (list(chosen) != CHAIN)


@given(st.integers(1, LENGTH - 1), st.booleans())
def test_a_tail_that_is_written_again_is_found(kept: int, shorter: bool) -> None:
    """Somebody who knows the format removes the last records, and chains others to the rest."""
    forged = [AuditRecord("eve", "view", (), {}, at=each.at) for each in CHAIN[kept : None if not shorter else -1]]
    again = [*CHAIN[:kept], *chain(forged, kept, CHAIN[kept - 1].digest)]
    assert chain_problems(again) == [], "the chain alone does not show it"
    assert chain_problems(again, anchor=END)


def test_a_problem_says_what_and_where() -> None:
    assert chain_problems([*CHAIN[:3], *CHAIN[5:]]) == ["records 4 to 5 are missing"]
    assert chain_problems([*CHAIN[:3], *CHAIN[4:]]) == ["record 4 is missing"]
    assert chain_problems([CHAIN[0], CHAIN[0]]) == ["record 1 is there twice"]
    assert chain_problems(CHAIN[:7], anchor=END) == ["records 8 to 9 are missing, which this machine stored"]
    assert chain_problems(CHAIN[:7], last=9) == ["records 8 to 9 are missing"]
    assert chain_problems(CHAIN, last=7) == ["records 8 to 9 are not Sightline's: something else added what is there"]
    changed = [dataclasses.replace(CHAIN[0], user="eve"), *CHAIN[1:]]
    assert chain_problems(changed) == ["record 1 was changed"]
    assert len(chain_problems([dataclasses.replace(each, user="eve") for each in records(500)])) <= 22


# ---- the table ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a state folder, and a trail of several commits."""
    place = tmp_path_factory.mktemp("written")
    StoreTable(f"{place}/store/segments", "segments").create({})
    opened = AuditLog.open(f"{place}/store", place / "state")
    for number in range(5):
        opened.append(AuditRecord("ann", "export", ("gate",), {"number": number}))
    opened.close()
    return place


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written / "store", tmp_path / "store")
    shutil.copytree(written / "state", tmp_path / "state")
    uri = AuditTable(f"{written}/store/audit").uri
    anchor = read_anchor(tmp_path / "state", uri)
    assert anchor is not None
    keep_anchor(tmp_path / "state", f"{tmp_path}/store/audit", anchor)
    assert problems_of(tmp_path) == []
    return tmp_path


def problems_of(place: Path) -> list[str]:
    return verify_trails(f"{place}/store", place / "state")


def read(place: Path) -> list[ChainedRecord]:
    return list(AuditTable(f"{place}/store/audit").read())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 255))
def test_a_changed_byte_of_a_file_is_found_or_changes_nothing(written: Path, which: int, where: int, flip: int) -> None:
    files = sorted(path for path in (written / "store" / "audit").rglob("*") if path.is_file())
    file = files[which % len(files)]
    right, before = file.read_bytes(), read(written)
    place = where % len(right)
    file.write_bytes(right[:place] + bytes([right[place] ^ flip]) + right[place + 1 :])
    try:
        if not problems_of(written):
            assert read(written) == before
    finally:
        file.write_bytes(right)


def test_a_row_that_is_deleted_with_delta_is_found(copy: Path) -> None:
    DeltaTable(f"{copy}/store/audit").delete("sequence = 3")
    (problem,) = problems_of(copy)
    assert problem.endswith("audit trail: record 3 is missing")


def test_the_last_rows_are_missed(copy: Path) -> None:
    DeltaTable(f"{copy}/store/audit").delete("sequence > 3")
    assert [problem.partition("trail: ")[2] for problem in problems_of(copy)] == [
        "records 4 to 5 are missing, which this machine stored"
    ]
    (copy / "state" / "audit-anchors.json").unlink()
    assert [problem.partition("trail: ")[2] for problem in problems_of(copy)] == ["records 4 to 5 are missing"]


def test_two_rows_that_are_exchanged_are_found(copy: Path) -> None:
    held = read(copy)
    swapped = [
        dataclasses.replace(held[1], sequence=3),
        dataclasses.replace(held[2], sequence=2),
    ]
    DeltaTable(f"{copy}/store/audit").delete("sequence = 2 or sequence = 3")
    write_deltalake(f"{copy}/store/audit", record_rows(swapped), mode="append")
    assert problems_of(copy)


def test_a_row_that_is_added_beside_sightline_is_found(copy: Path) -> None:
    held = read(copy)
    forged = chain([AuditRecord("eve", "view")], held[-1].sequence, held[-1].digest)
    write_deltalake(f"{copy}/store/audit", record_rows(forged), mode="append")
    assert [problem.partition("trail: ")[2] for problem in problems_of(copy)] == [
        "record 6 is not Sightline's: something else added what is there"
    ]


def test_an_older_version_of_the_whole_table_is_found(copy: Path) -> None:
    for entry in sorted((copy / "store" / "audit" / "_delta_log").glob("*.json"))[-2:]:
        entry.unlink()
    assert len(read(copy)) == 3
    assert problems_of(copy)


def test_a_trail_that_is_gone_is_missed(copy: Path) -> None:
    shutil.rmtree(copy / "store" / "audit")
    (problem,) = problems_of(copy)
    assert "the audit trail is missing" in problem
    shutil.rmtree(copy / "state")
    assert problems_of(copy) == [], "there was never one, as far as this machine knows"


def test_writing_goes_on_after_tampering_and_the_gap_stays_visible(copy: Path) -> None:
    DeltaTable(f"{copy}/store/audit").delete("sequence > 3")
    opened = AuditLog.open(f"{copy}/store", copy / "state")
    opened.append(AuditRecord("ann", "export"))
    opened.close()
    assert [record.sequence for record in read(copy)] == [1, 2, 3, 6]
    assert any("records 4 to 5 are missing" in problem for problem in problems_of(copy))


def test_a_damaged_anchor_is_reported(copy: Path) -> None:
    (copy / "state" / "audit-anchors.json").write_text("{")
    assert "damaged" in problems_of(copy)[0]
    (copy / "state" / "audit-anchors.json").write_text(json.dumps({f"{copy}/store/audit": [2, "0" * 64]}))
    assert any("not the one that this machine stored" in problem for problem in problems_of(copy))


def test_an_anchor_moves_forward_only(tmp_path: Path) -> None:
    for sequence in (1, 5, 3):
        keep_anchor(tmp_path, "a", Anchor(sequence, str(sequence)))
    keep_anchor(tmp_path, "b", Anchor(2, "2"))
    assert read_anchor(tmp_path, "a") == Anchor(5, "5")
    assert read_anchor(tmp_path, "b") == Anchor(2, "2")
    assert read_anchor(tmp_path, "c") is None


def test_a_file_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PAR1 and something else")
    with pytest.raises(Exception, match="cannot be read"):
        list(read_export(tmp_path / "x"))
