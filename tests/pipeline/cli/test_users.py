"""`users`, `audit`, and the audit records of `forget` and `compact`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deltalake import DeltaTable

from index.store import Store
from pipeline.access.authentication import Authentication
from pipeline.access.caller import Grant
from pipeline.access.roles import Role
from pipeline.audit.log import AuditTable
from tests.support.command import Command
from tests.support.desk_app import make_store

PASSWORD = "correct horse battery"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def password(tmp_path: Path) -> Path:
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return tmp_path / "password"


def records_of(store: Path) -> list[tuple[str, str, dict[str, object]]]:
    return [(each.action, each.outcome, json.loads(each.detail)) for each in AuditTable(f"{store}/audit").read()]


def test_users_are_managed_from_the_terminal(sightline: Command, store: Path, password: Path, tmp_path: Path) -> None:
    at = ("--store", store, "--state", tmp_path / "desk")
    viewer = sightline("users", "add", "eve", "--grant", "viewer:gate-*", "--password-file", password, *at)
    assert viewer.code == 2
    assert "give it the role admin" in viewer.err
    assert sightline("users", "add", "ann", "--grant", "admin", "--password-file", password, *at).code == 0
    assert sightline("users", "add", "eve", "--grant", "viewer:gate-*", "--password-file", password, *at).code == 0
    made = sightline("users", "token", "eve", "--name", "script", "--scope", "view", "--days", "7", *at)
    assert made.out.startswith("sl_")
    assert sightline("users", "grant", "eve", "operator:yard", *at).out == "eve is operator of yard\n"
    assert sightline("users", "revoke", "eve", "gate-*", *at).code == 0
    (password.with_name("new")).write_text("another password")
    assert sightline("users", "password", "eve", "--password-file", password.with_name("new"), *at).code == 0
    listed = sightline("users", "list", "--json", *at).data
    assert [(user["name"], user["grants"]) for user in listed] == [
        ("ann", [{"pattern": "*", "role": "admin"}]),
        ("eve", [{"pattern": "yard", "role": "operator"}]),
    ]
    assert listed[1]["tokens"][0]["name"] == "script"
    desk = Authentication(tmp_path / "desk")
    caller = desk.of_token(made.out.strip(), "10.0.0.1")
    assert caller is not None
    assert caller.grants == (Grant("yard", Role.OPERATOR),)
    assert desk.users.authenticate("eve", "another password") is not None
    assert sightline("users", "remove", "eve", "--token", listed[1]["tokens"][0]["id"], *at).code == 0
    assert desk.of_token(made.out.strip(), "10.0.0.1") is None
    assert sightline("users", "disable", "eve", *at).code == 0
    assert desk.users.authenticate("eve", "another password") is None
    assert sightline("users", "enable", "eve", *at).code == 0
    assert sightline("users", "remove", "ann", *at).code == 2
    assert sightline("users", "remove", "eve", *at).code == 0
    assert sightline("users", "remove", "ann", *at).code == 0
    assert not desk.required
    actions = [action for action, _, _ in records_of(store)]
    assert actions == [
        "users.add",
        "users.add",
        "tokens.make",
        "users.grant",
        "users.revoke",
        "users.password",
        "tokens.revoke",
        "users.change",
        "users.change",
        "users.remove",
        "users.remove",
    ]
    text = repr(records_of(store))
    assert PASSWORD not in text
    assert made.out.strip() not in text


def test_a_password_is_never_an_argument(sightline: Command, store: Path) -> None:
    refused = sightline("users", "add", "ann", "--grant", "admin", "--store", store)
    assert refused.code == 2
    assert "--password-file" in refused.err
    assert "--password-file" in sightline("users", "add", "--help").out
    assert "--password " not in sightline("users", "add", "--help").out


def test_users_may_be_added_before_there_is_a_store(sightline: Command, password: Path, tmp_path: Path) -> None:
    at = ("--store", tmp_path / "later", "--state", tmp_path / "desk")
    added = sightline("users", "add", "ann", "--grant", "admin", "--password-file", password, *at)
    assert added.code == 0
    assert "the audit trail is kept in" in added.err
    assert not (tmp_path / "later").exists()
    assert [record["action"] for record in sightline("audit", "list", "--json", *at).data] == ["users.add"]


def test_forget_is_recorded_and_the_record_stays(sightline: Command, store: Path) -> None:
    assert sightline("forget", "--stream", "gate-*", "--yes", "--store", store).code == 0
    done = records_of(store)
    assert [(action, outcome) for action, outcome, _ in done] == [("forget", "begun"), ("forget", "done")] * 2
    assert done[1][2]["frames"] == 20
    assert [stream.stream_id for stream in Store.open(str(store)).streams()] == ["yard"]
    listed = sightline("audit", "list", "--store", store)
    assert "forget  done  gate-2" in listed.out
    assert sightline("audit", "list", "--user", "nobody", "--store", store).out == ""


def test_what_retention_deletes_is_recorded(sightline: Command, store: Path, tmp_path: Path) -> None:
    config = tmp_path / "rules.toml"
    config.write_text('[retention."gate-1"]\ndays = 1\n')
    assert sightline("compact", "--dry-run", "--config", config, "--store", store).code == 0
    assert not (store / "audit").exists()
    assert sightline("compact", "--config", config, "--store", store).code == 0
    ((action, outcome, detail),) = records_of(store)
    assert (action, outcome, detail["pattern"], detail["frames"]) == ("retention", "done", "gate-1", 20)
    assert sightline("verify", "--store", store).code == 0


def test_verify_finds_a_trail_that_was_changed(sightline: Command, store: Path, tmp_path: Path) -> None:
    for stream in ("gate-1", "gate-2"):
        sightline("forget", "--stream", stream, "--yes", "--store", store)
    assert sightline("verify", "--store", store).out == "no problems\n"
    assert sightline("audit", "verify", "--store", store).out == "no problems\n"
    exported = tmp_path / "trail.parquet"
    assert sightline("audit", "export", exported, "--store", store).out == f"4 records in {exported}\n"
    assert sightline("audit", "verify", "--file", exported).code == 0
    DeltaTable(f"{store}/audit").delete("sequence > 2")
    for command in (("verify",), ("audit", "verify")):
        found = sightline(*command, "--store", store)
        assert found.code == 1
        assert "records 3 to 4 are missing, which this machine stored" in found.out
    raw = bytearray(exported.read_bytes())
    raw[len(raw) // 3] ^= 1
    exported.write_bytes(raw)
    assert sightline("audit", "verify", "--file", exported).code == 1


def test_a_store_without_a_trail(sightline: Command, store: Path) -> None:
    assert "no audit trail yet" in sightline("audit", "list", "--store", store).err
    assert sightline("audit", "verify", "--store", store).out == "no problems\n"
