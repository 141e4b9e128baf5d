"""`sightline alerts` from a terminal: added, listed, tried on stored frames, removed."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from index.standing_questions import AlertRule, StandingQuestionStore, make_question
from index.store import Store
from tests.support.command import BEGAN, Command


def test_add_list_remove(sightline: Command, store: str, profile: str) -> None:
    added = sightline(
        "alerts", "add", "a red car at the gate", "--stream", "front", "--name", "gate", "--store", store,
        "--profile", profile, "--json",
    )  # fmt: skip
    assert (added.code, added.err) == (0, "note: random weights\n")
    assert added.data["text"] == "a red car at the gate"
    assert added.data["streams"] == ["front"]
    assert added.data["encoder"] == "tiny-siglip"
    again = sightline(
        "alerts", "add", "a red car at the gate", "--stream", "front", "--name", "gate", "--store", store,
        "--profile", profile,
    )  # fmt: skip
    assert again.code == 0
    assert again.out.startswith(f"{added.data['id']}  gate  front")
    assert sightline("alerts", "add", "a dog", "--floor", "0.2", "--store", store, "--profile", profile).code == 0
    listed = sightline("alerts", "list", "--store", store, "--json").data
    assert [(q["name"], q["streams"], q["rule"]["floor"]) for q in listed] == [
        ("gate", ["front"], 0.05),
        ("a dog", [], 0.2),
    ]
    assert "2 standing questions" in sightline("alerts", "list", "--store", store).out
    assert sightline("alerts", "remove", "gate", "--store", store).code == 0
    gone = sightline("alerts", "remove", "gate", "--store", store)
    assert gone.code == 1
    assert "no standing questions of that id or name" in gone.err
    assert [q["name"] for q in sightline("alerts", "list", "--store", store, "--json").data] == ["a dog"]


def test_wrong_usage_is_one_line(sightline: Command, store: str, profile: str, tmp_path: Path) -> None:
    for arguments in (
        ("add", " "),
        ("add", "a dog", "--stream", "../x"),
        ("add", "a dog", "--floor", "9"),
        ("test",),
        ("test", "--floor", "1"),
    ):
        done = sightline("alerts", *arguments, "--store", store, *(("--profile", profile)))
        assert done.code == 2, arguments
        assert len([line for line in done.err.splitlines() if not line.startswith("note")]) == 1
    assert sightline("alerts", "list", "--store", tmp_path / "nowhere").code == 1


def test_a_store_of_other_encoders_is_refused(sightline: Command, store: str) -> None:
    done = sightline("alerts", "add", "a dog", "--store", store, "--profile", "micro")
    assert done.code == 1
    assert "holds vectors of tiny-clip and tiny-siglip" in done.err


def test_stored_frames_are_gone_through_by_the_scorer(
    sightline: Command, store: str, profile: str, tmp_path: Path
) -> None:
    """Coloured noise and random weights: some second is always a little above the median of those before."""
    opened = Store.open(store)
    vector = opened.patches(opened.window(["front"]))[20].astype("float32").max(0)
    rule = AlertRule(floor=1e-4, spread=0, warm_up=10, raise_frames=1, of_frames=1, clear_seconds=1, every=1)
    unit = vector / (vector**2).sum() ** 0.5
    StandingQuestionStore(store).add(make_question("like that", unit, opened.encoders.patch, rule=rule, created_at=0))
    done = sightline("alerts", "test", "--store", store, "--stream", "front", "--pictures", tmp_path / "p", "--json")
    assert (done.code, done.err) == (0, "")
    alerts = [json.loads(line) for line in done.out.splitlines()]
    raised = [alert for alert in alerts if alert["state"] == "raised"]
    assert raised
    assert {alert["text"] for alert in alerts} == {"like that"}
    assert all(alert["score"] > alert["threshold"] for alert in raised)
    assert all(alert["start"] >= BEGAN.replace(second=10).isoformat().replace("+00:00", "Z") for alert in raised)
    assert len({(alert["id"], alert["state"]) for alert in alerts}) == len(alerts)
    for alert in raised:
        assert Image.open(alert["picture"]).size == (64, 48)
    people = sightline("alerts", "test", "--store", store, "--stream", "front")
    assert people.out.splitlines()[-1] == f"{len(raised)} alerts"
    none = sightline("alerts", "test", "--store", store, "--text", "a dog", "--profile", profile)
    assert none.out.splitlines()[-1] == "0 alerts"  # still learning the camera
    assert sightline("alerts", "test", "--store", store, "--stream", "side").code == 1
