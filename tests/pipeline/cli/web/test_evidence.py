"""The `evidence` command, as an investigator uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from index.store import Store
from pipeline.audit.log import AuditTable
from tests.support.command import Command
from tests.support.played import record_segments, render_pattern, store_file
from tests.support.records import PAIR

WINDOW = ("--stream", "gate", "--from", "2024-03-01T08:00:04Z", "--to", "2024-03-01T08:00:09Z")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_pattern(tmp_path_factory.mktemp("video") / "gate.mp4", seconds=20)


@pytest.fixture
def store(video: Path, tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "store", PAIR)
    store_file(made, video, "gate", 20)
    return made


def audited(store: Store) -> list[tuple[str, str, dict[str, str]]]:
    """Action, outcome and detail of every record of the trail."""
    return [(r.action, r.outcome, json.loads(r.detail)) for r in AuditTable(f"{store.url}/audit").read()]


def test_make_a_bundle_and_verify_it_elsewhere(sightline: Command, store: Store, tmp_path: Path) -> None:
    place = ("--store", store.url, "--state", tmp_path / "state")
    made = sightline("evidence", "create", "case.zip", *WINDOW, "--reason", "case 7", *place)
    assert made.code == 0, made.err
    assert "case.zip: 50 frames of footage, 5 pictures, signed with " in made.out
    (tmp_path / "key.pem").write_text(sightline("evidence", "key", *place).out)
    store_away = tmp_path / "store-away"
    Path(store.url).rename(store_away)
    whole = sightline("evidence", "verify", "case.zip", "--key", "key.pem")
    assert whole.code == 0, whole.err
    assert "whole and unchanged" in whole.out
    assert "compare its fingerprint" not in whole.err
    assert "compare its fingerprint" in sightline("evidence", "verify", "case.zip").err
    run = subprocess.run(  # by a program that loads neither torch nor FFmpeg nor the store
        [sys.executable, "-c", "import sys; from pipeline.evidence.verification import verify_bundle as v; "
         "print(v('case.zip').manifest.stream_id); assert not {'torch', 'av', 'deltalake'} & set(sys.modules)"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout == "gate\n", run.stderr
    data = bytearray((tmp_path / "case.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "case.zip").write_bytes(data)
    assert sightline("evidence", "verify", "case.zip", "--key", "key.pem").code == 1
    store_away.rename(store.url)
    ((action, outcome, detail),) = audited(store)
    assert (action, outcome, detail["reason"]) == ("export", "done", "case 7")


def test_blur_and_wrong_usage(sightline: Command, store: Store, tmp_path: Path) -> None:
    place = ("--reason", "case 7", "--store", store.url, "--state", tmp_path / "state")
    made = sightline("evidence", "create", "bundle", *WINDOW, *place, "--blur", "0.25,0.25,0.75,0.75", "--json")
    assert json.loads(made.out)["clip"]["encoded_again"] is True
    assert sightline("evidence", "verify", "bundle").code == 0
    for wrong in ("0.1,0.2", "a,b,c,d", "0.5,0,0.4,1", "nan,0,1,1"):
        refused = sightline("evidence", "create", "other", *WINDOW, *place, "--blur", wrong)
        assert refused.code == 2, wrong
    assert "exists" in sightline("evidence", "create", "bundle", *WINDOW, *place).err
    elsewhere = sightline("evidence", "create", "third", *WINDOW, *place, "--footage", tmp_path / "empty")
    assert "no clip" in elsewhere.out


def test_hold_list_and_release(sightline: Command, store: Store, video: Path, tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    record_segments(tape, video, "gate", 10)
    place = ("--store", store.url)
    state = (*place, "--state", tmp_path / "state", "--recordings", tape)
    held = json.loads(sightline("evidence", "hold", *WINDOW, "--reason", "case 7", *state, "--json").out)
    assert (held["stream_id"], held["start"], held["reason"]) == ("gate", "2024-03-01T08:00:04Z", "case 7")
    assert [p.name for p in (tape / ".holds").iterdir()] == [f"{held['id']}.json"]
    listed = sightline("evidence", "holds", *place)
    assert f"{held['id']}: gate, 2024-03-01T08:00:04Z to 2024-03-01T08:00:09Z, held by " in listed.out
    assert sightline("forget", "--stream", "gate", *place, "--yes").code == 1
    assert sightline("evidence", "release", "0" * 16, "--reason", "closed", *state).code == 2
    released = sightline("evidence", "release", held["id"], "--reason", "case closed", *state)
    assert f"{held['id']} is released" in released.out
    assert not list((tape / ".holds").iterdir())
    assert "nothing is held" in sightline("evidence", "holds", *place).err
    assert sightline("forget", "--stream", "gate", *place, "--yes").code == 0
    records = audited(store)
    actions = [action for action, _, _ in records]
    assert actions == ["hold", "forget", "forget", "release", "forget", "forget"]  # a deletion is recorded twice
    assert [records[0][1], records[3][1], records[-1][1]] == ["done"] * 3
    assert records[2][1] != "done"
    second = records[3]
    assert (second[2]["held_because"], second[2]["reason"]) == ("case 7", "case closed")
