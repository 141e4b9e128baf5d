"""The audit trail: what is stored when, by many writers, on stores that cannot be written; masking; reading; export."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from index.delta.table import StoreTable
from index.errors import StoreDenied, StoreFull, StoreUnavailable
from pipeline.access.caller import Caller
from pipeline.audit import log as audit_log
from pipeline.audit.export import export_trail
from pipeline.audit.log import AuditLog, AuditTable, audit_tables
from pipeline.audit.record import AuditRecord
from pipeline.audit.verification import chain_problems, read_export, verify_trails


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """An empty store: what the trail needs of it is that it exists."""
    place = tmp_path / "store"
    StoreTable(f"{place}/segments", "segments").create({})
    return place


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def trail(store: Path, state: Path) -> Iterator[AuditLog]:
    opened = AuditLog.open(str(store), state)
    yield opened
    opened.close()


def done(action: str, **detail: Any) -> AuditRecord:
    return AuditRecord("ann", action, ("gate",), detail)


def table_of(store: Path) -> AuditTable:
    return AuditTable(f"{store}/audit")


def test_a_record_is_stored_when_append_returns(trail: AuditLog, store: Path, state: Path) -> None:
    trail.append(done("export", kind="clip"))
    (held,) = table_of(store).read()
    assert held.document() == {
        "sequence": 1,
        "at": held.document()["at"],
        "user": "ann",
        "via": "local",
        "origin": "local",
        "action": "export",
        "outcome": "done",
        "streams": ["gate"],
        "detail": {"kind": "clip"},
        "previous": "0" * 64,
        "digest": held.computed(),
    }
    assert abs(held.at / 1e6 - time.time()) < 60
    assert not verify_trails(str(store), state)


def test_views_are_stored_together_and_soon(trail: AuditLog, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), AuditTable.append

    def late(self: AuditTable, records: Any) -> Any:
        assert go.wait(300)
        return real(self, records)

    monkeypatch.setattr(AuditTable, "append", late)
    for number in range(200):
        trail.append(done("view", number=number))  # a view does not wait: nothing can be stored yet
    go.set()
    trail.append(done("hold"))  # what was acknowledged before is stored with it
    held = list(table_of(store).read())
    assert [record.document()["detail"].get("number") for record in held] == [*range(200), None]
    assert len(list((store / "audit").glob("*.parquet"))) < 20
    trail.append(done("view", number=200))
    deadline = time.monotonic() + 120
    while sum(1 for _ in table_of(store).read()) < 202:
        assert time.monotonic() < deadline, "a view is stored without anything after it"
        time.sleep(0.1)


def test_what_is_acknowledged_survives_a_kill(store: Path, state: Path) -> None:
    program = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from pipeline.audit.log import AuditLog\n"
        "from pipeline.audit.record import AuditRecord\n"
        "log = AuditLog.open(sys.argv[1], Path(sys.argv[2]))\n"
        "for number in range(3): log.append(AuditRecord('ann', 'export', (), {'number': number}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(store), str(state)], check=False, timeout=120)
    assert [record.document()["detail"]["number"] for record in table_of(store).read()] == [0, 1, 2]
    assert not verify_trails(str(store), state)


def test_many_writers_make_one_chain(store: Path, tmp_path: Path) -> None:
    logs = [AuditLog.open(str(store), tmp_path / f"state{number}") for number in range(3)]

    def write(log: AuditLog, name: str) -> None:
        for number in range(10):
            log.append(done("export", name=f"{name}{number}"))

    threads = [threading.Thread(target=write, args=(log, f"{index}.")) for index, log in enumerate(logs) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    held = list(table_of(store).read())
    assert [record.sequence for record in held] == list(range(1, 61))
    assert len({record.detail for record in held}) == 30
    for number in range(3):
        assert not verify_trails(str(store), tmp_path / f"state{number}")


def test_the_trail_of_a_store_that_cannot_be_written_is_in_the_state_folder(
    store: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = store / "audit"
    blocked.write_text("")  # root may write to any folder, so that modes would not stop the test

    real = AuditTable.create

    def denied(self: AuditTable) -> None:
        if self.uri == str(blocked):
            raise StoreDenied("read-only")
        real(self)

    monkeypatch.setattr(AuditTable, "create", denied)
    opened = AuditLog.open(str(store), state)
    assert opened.notice is not None
    assert "read-only" in opened.notice
    assert str(state / "audit") in opened.notice
    opened.append(done("export"))
    opened.close()
    assert [record.action for record in AuditTable(str(state / "audit")).read()] == ["export"]


def test_a_store_that_becomes_read_only_loses_nothing(
    trail: AuditLog, store: Path, state: Path, monkeypatch: Any
) -> None:
    trail.append(done("export", number=0))
    real = AuditTable.append

    def denied(self: AuditTable, records: Any) -> Any:
        if self.uri == f"{store}/audit":
            raise StoreDenied("read-only")
        return real(self, records)

    monkeypatch.setattr(AuditTable, "append", denied)
    trail.append(done("view", number=1))
    trail.append(done("export", number=2))
    assert trail.notice is not None
    numbers = [[r.document()["detail"]["number"] for r in table.read()] for table in audit_tables(str(store), state)]
    assert numbers == [[0], [1, 2]]
    assert not verify_trails(str(store), state)


def test_what_cannot_be_recorded_is_not_done(trail: AuditLog, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failing = AuditTable.append, True

    def full(self: AuditTable, records: Any) -> Any:
        if failing:
            raise StoreFull("no space left")
        return real(self, records)

    monkeypatch.setattr(AuditTable, "append", full)
    monkeypatch.setattr(audit_log, "_RETRY_SECONDS", 0.05)
    trail.append(done("view", number=0))  # acknowledged: stored when there is space
    with pytest.raises(StoreFull):
        trail.append(done("export"))
    with pytest.raises(StoreFull):
        trail.append(done("view", number=1))
    failing = False
    trail.append(done("view", number=2))
    trail.flush()
    assert [record.document()["detail"].get("number") for record in table_of(store).read()] == [0, 2]
    trail.append(done("hold"))
    assert sum(1 for _ in table_of(store).read()) == 3


def test_views_that_wait_are_bounded(trail: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = AuditTable.append

    def slow(self: AuditTable, records: Any) -> Any:
        gate.wait(300)
        return real(self, records)

    monkeypatch.setattr(AuditTable, "append", slow)
    monkeypatch.setattr(audit_log, "_MAX_WAITING", 50)
    monkeypatch.setattr(audit_log, "_WAIT_SECONDS", 0.2)
    for number in range(50):
        trail.append(done("view", number=number))
    with pytest.raises(StoreUnavailable):
        trail.append(done("view"))
    gate.set()


def test_a_stop_stores_what_waits(store: Path, state: Path) -> None:
    opened = AuditLog.open(str(store), state)
    opened.append(done("view"))
    opened.close()
    assert sum(1 for _ in table_of(store).read()) == 1
    with pytest.raises(StoreUnavailable):
        opened.append(done("view"))


def test_secrets_are_masked(trail: AuditLog, store: Path) -> None:
    secrets = ["hunter2hunter2", "sl_abcdefgh_" + "s3cret-" * 6, "rtsppass", "abcdef0123456789abcdef"]
    detail = {
        "password": secrets[0],
        "nested": {"api_token": secrets[1], "Authorization": f"Bearer {secrets[3]}"},
        "question": f"what does {secrets[1]} open, and Bearer {secrets[3]}?",
        "source": f"rtsp://admin:{secrets[2]}@10.0.0.1/stream?token={secrets[3]}",
        "list": [f"https://x:{secrets[2]}@h/", {"client_secret": secrets[0]}],
        "visual_tokens": 12,
        f"password={secrets[0]}": 1,
    }
    trail.append(AuditRecord(f"token={secrets[3]}", "export", (), detail, origin=f"http://a:{secrets[2]}@b"))
    (held,) = table_of(store).read()
    text = repr(held)
    assert not [secret for secret in secrets if secret in text]
    assert '"visual_tokens":12' in held.detail
    assert "sl_abcdefgh_***" in held.detail


def test_texts_from_outside_are_bounded_and_valid() -> None:
    record = AuditRecord(
        "ann",
        "search",
        tuple(f"s{number}" for number in range(1_000)),
        {
            "text": "x" * 100_000,
            "bad": "\ud800",
            "nan": float("nan"),
            "deep": [[[[[[1]]]]]],
            "many": list(range(1_000)),
        },
    )
    assert len(record.streams) == 256
    assert record.detail["streams_left_out"] == 744
    assert len(record.detail["text"]) <= 2_001
    assert record.detail["bad"] == "?"
    assert record.detail["nan"] == "nan"
    assert len(record.detail["many"]) == 256


def test_the_caller_is_in_the_record() -> None:
    record = AuditRecord.of(Caller("ann", (), origin="10.0.0.1", via="token"), "search", ["gate"], {"text": "a car"})
    assert (record.user, record.origin, record.via, record.streams) == ("ann", "10.0.0.1", "token", ("gate",))


def test_the_newest_records_are_read_in_pages(trail: AuditLog, store: Path) -> None:
    for number in range(7):
        trail.append(AuditRecord("ann" if number % 2 else "eve", "export", (), {}, at=1_000_000 * number), grouped=True)
    trail.flush()
    table = table_of(store)
    assert [r.sequence for r in table.newest(3)] == [7, 6, 5]
    assert [r.sequence for r in table.newest(3, before=5)] == [4, 3, 2]
    assert [r.sequence for r in table.newest(9, user="ann")] == [6, 4, 2]
    assert [r.sequence for r in table.newest(9, start=1_000_000, end=3_000_000)] == [3, 2]
    assert table.newest(9, action="hold") == []


def test_the_trail_is_read_in_windows(trail: AuditLog, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_WINDOW", 4)
    for _ in range(11):
        trail.append(done("export"), grouped=True)
    trail.flush()
    assert [record.sequence for record in table_of(store).read()] == list(range(1, 12))
    assert [record.sequence for record in table_of(store).read(3, 8)] == [3, 4, 5, 6, 7]


def test_compaction_keeps_the_chain(trail: AuditLog, store: Path, state: Path) -> None:
    for _ in range(6):
        trail.append(done("export"))
    trail.table.compact()
    trail.append(done("export"))
    assert [record.sequence for record in table_of(store).read()] == list(range(1, 8))
    assert not verify_trails(str(store), state)


def test_an_export_can_be_verified(trail: AuditLog, store: Path, tmp_path: Path) -> None:
    for _ in range(5):
        trail.append(done("export"), grouped=True)
    trail.flush()
    assert export_trail(table_of(store), tmp_path / "trail.parquet") == 5
    exported = list(read_export(tmp_path / "trail.parquet"))
    assert exported == list(table_of(store).read())
    assert not chain_problems(exported)
