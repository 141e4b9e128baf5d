"""The demo with tiny models, on two minutes of footage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.store import Store
from pipeline.demo.walkthrough import DemoResult, pick_questions, show
from tests.support.command import Command


def question(kind: str, stream: str, text: str) -> dict[str, str]:
    return {"kind": kind, "stream_id": stream, "question": text}


def test_questions_are_of_every_kind_and_of_every_camera() -> None:
    truth = {
        "questions": [
            *[question("what", s, f"{s} {i}") for s in ("a", "b") for i in range(3)],
            question("when", "a", "only a"),
            question("when", "a", "only a, too"),
        ]
    }
    picked = [(q["kind"], q["stream_id"], q["question"]) for q in pick_questions(truth)]
    assert picked == [("what", "a", "a 0"), ("what", "b", "b 0"), ("when", "a", "only a"), ("when", "a", "only a, too")]


@pytest.mark.system
def test_the_whole_demo(sightline: Command, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    first = sightline("demo", "--out", out, "--minutes", "2", "--profile", profile, "--json")
    assert first.code == 0, first.err
    data = first.data
    truth = json.loads((out / "footage" / "truth.json").read_text())
    assert [stage["name"] for stage in data["stages"]] == ["render", "load", "ingest", "ask", "report"]
    assert len(data["answers"]) >= 6
    asked = {(q["stream_id"], q["question"]): q for q in truth["questions"]}
    for answer in data["answers"]:
        known = asked[answer["stream_id"], answer["question"]]
        assert answer["truth"] == known["answer"]
        assert answer["answer"] in known["options"]
        assert answer["right"] == (answer["answer"] == known["answer"])
        assert answer["true_evidence"] == [[e["start"], e["end"]] for e in known["evidence"]]
        assert answer["moments"]
    assert sum(s.frames for s in Store.open(out / "store").streams()) == 240
    report = (out / "report.html").read_text()
    assert report.count("<section") == len(data["answers"])
    assert "data:image/jpeg" in report

    show(DemoResult.model_validate(data))
    shown = capsys.readouterr().out
    assert "Answers beside the truth" in shown
    assert "What each stage took" in shown
    assert f"of {len(data['answers'])} answers are right" in shown

    short = sightline("demo", "--out", out, "--minutes", "0.2", "--profile", profile)  # starts afresh
    assert short.code == 0, short.err
    assert sum(s.frames for s in Store.open(out / "store").streams()) == 24


def test_a_folder_that_no_demo_made_is_left_alone(sightline: Command, profile: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "store").mkdir(parents=True)
    (tmp_path / "mine" / "store" / "precious").touch()
    result = sightline("demo", "--out", tmp_path / "mine", "--profile", profile)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "not from a demo" in result.err
    assert (tmp_path / "mine" / "store" / "precious").exists()


def test_a_demo_without_weights_fails(sightline: Command, models: Path, tmp_path: Path) -> None:
    missing = models / "none.toml"
    missing.write_text((models / "tiny.toml").read_text().replace('folder = "clip"', 'folder = "clap"'))
    result = sightline("demo", "--out", tmp_path / "demo", "--minutes", "0.2", "--profile", missing)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert not (tmp_path / "demo" / "report.html").exists()
