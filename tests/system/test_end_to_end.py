"""The main job with the shipped weights: footage in, right answers out. Fails where the weights are missing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from index.records import parse_rfc3339
from pipeline.questions.asker import Asker
from tests.support.processes import Process

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
SEED, MINUTES, CAMERAS = 31, 6, 2  # footage that training has never seen
FOUND_AT_LEAST = 0.9
RIGHT_AT_LEAST = 0.6  # chance is 0.25; benchmarks/micro.md has the figures over many more questions


def test_rendered_footage_is_ingested_and_asked_about(tmp_path: Path, sightline: Process) -> None:
    made = sightline("render", "--seed", SEED, "--minutes", MINUTES, "--cameras", CAMERAS, "--out", "footage", "--json")
    assert made.returncode == 0, made.stderr
    seen = sightline("ingest", "footage", "--store", "store", "--json")
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["frames"] == 60 * MINUTES * CAMERAS
    questions = json.loads((tmp_path / "footage" / "truth.json").read_text())["questions"]
    assert {q["kind"] for q in questions} == {"what", "colour", "where", "when", "how many", "before/after"}

    first = questions[0]
    options = [part for option in first["options"] for part in ("--option", option)]
    told = sightline("ask", first["question"], *options, "--store", "store", "--stream", first["stream_id"], "--json")
    assert told.returncode == 0, told.stderr
    asked = json.loads(told.stdout)
    assert asked["answer"] in first["options"]
    assert asked["frames"] == 60 * MINUTES

    asker = Asker(tmp_path / "store", "micro", "cpu")
    right, found = 0, 0
    for question in questions:
        answer = asker.ask(question["question"], options=question["options"], streams=[question["stream_id"]])
        if question is first:
            assert answer.answer == asked["answer"]  # the command and the library agree
        times = [parse_rfc3339(frame.captured_at) for frame in answer.keyframes]
        spans = [(parse_rfc3339(e["start"]), parse_rfc3339(e["end"])) for e in question["evidence"]]
        right += answer.answer == question["answer"]
        found += any(start <= at <= end for at in times for start, end in spans)
    assert found >= FOUND_AT_LEAST * len(questions)
    assert right >= RIGHT_AT_LEAST * len(questions)

    both = asker.ask("Where was the red dog?", options=["gate", "door", "bench"])
    assert both.frames == 60 * MINUTES * CAMERAS
    order = [(frame.stream_id, frame.captured_at) for frame in both.keyframes]
    assert {name for name, _ in order} == {"camera-1", "camera-2"}
    assert all(earlier < later for earlier, later in pairwise(order))  # by stream, in time inside each
