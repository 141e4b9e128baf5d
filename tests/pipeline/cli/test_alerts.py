"""`sightline alerts` from a terminal: added, listed, tried on stored frames, removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from index.standing_questions import AlertRule, StandingQuestionStore, make_question
from index.store import Store
from ingest.alerts.statistics import ScoreStatistics
from pipeline.cli.alerts import statistics_line
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
        ("add", "a dog", "--warm-up", "2"),
        ("test",),
        ("test", "--warm-up", "20"),
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
    assert all(alert["score"] > alert["threshold"] >= alert["usual"] for alert in raised)  # rounded
    assert all(alert["percentile"] > 50 for alert in raised)  # the median is below the threshold
    assert all(alert["start"] >= BEGAN.replace(second=10).isoformat().replace("+00:00", "Z") for alert in raised)
    assert len({(alert["id"], alert["state"]) for alert in alerts}) == len(alerts)
    for alert in raised:
        assert Image.open(alert["picture"]).size == (64, 48)
    people = sightline("alerts", "test", "--store", store, "--stream", "front")
    assert people.out.splitlines()[-1] == f"{len(raised)} alerts"
    none = sightline("alerts", "test", "--store", store, "--text", "a dog", "--profile", profile)
    *reasons, last = none.out.splitlines()
    assert last == "0 alerts"
    assert [line.split(":")[0] for line in reasons] == ["back  a dog", "front  a dog"]
    assert "no alert is possible: 24 frames, and the first 300 only teach the usual score" in reasons[1]
    machine = sightline("alerts", "test", "--store", store, "--text", "a dog", "--profile", profile, "--json")
    assert machine.out == ""
    assert "no alert is possible: 12 frames" in machine.err
    assert sightline("alerts", "test", "--store", store, "--stream", "side").code == 1


def test_an_unknown_stream_is_refused_or_noted(sightline: Command, store: str, profile: str) -> None:
    tried = sightline("alerts", "test", "--text", "a dog", "--stream", "frnt", "--store", store, "--profile", "none")
    assert (tried.code, tried.out) == (1, "")
    assert tried.err == "sightline: frnt: the store has no such stream; did you mean front? It has back, front\n"
    added = sightline("alerts", "add", "a dog", "--stream", "frnt", "--store", store, "--profile", profile)
    assert added.code == 0
    assert "note: frnt: the store has no such stream; did you mean front?" in added.err
    nothing = sightline("alerts", "test", "--stream", "back", "--store", store)
    assert nothing.out == "0 alerts\n"
    assert "no question applies to these streams" in nothing.err


@pytest.mark.parametrize(
    ("frames", "raised", "suggested", "line"),
    [
        (
            100,
            0,
            0.17,
            "; no alert is possible: 100 frames, and the first 300 only teach the usual score (--warm-up 33",
        ),
        (400, 0, 0.17, ", floor 0.45; --floor 0.17 would raise 2 alerts"),
        (400, 0, None, "; no floor would raise an alert, because the scores vary too much or too little"),
        (400, 1, None, ", floor 0.45; 1 alert"),
    ],
)
def test_the_line_of_scores(frames: int, raised: int, suggested: float | None, line: str) -> None:
    found = ScoreStatistics(
        stream="front",
        name="a dog",
        frames=frames,
        warm_up=300,
        raised=raised,
        median=0.1,
        highest=0.29,
        highest_second=1_709_280_000,
        floor=0.45,
        suggested_floor=suggested,
        suggested_raised=2,
    )
    assert statistics_line(found).startswith("front  a dog: usual score 0.100, highest 0.290 at 2024-03-01T08:00:00Z")
    assert line in statistics_line(found)
