"""`sightline train micro` from nothing, a few steps of everything: what comes out is a profile that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import Process

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

PLAN = {"seed": 3, "cameras": 2, "clips": 6, "encoder_steps": 2, "encoder_batch": 8, "language_share": 1e-6}
PROFILE = """
name = "fresh"
notice = "two steps of training"
k = 4
tau = 0.85
max_frames = 500
timestamps = true
frame_encoder = { name = "fresh-clip", source = { folder = "clip" } }
patch_encoder = { name = "fresh-siglip", source = { folder = "siglip" }, layer = -1, post_layernorm = true }
language_model = { source = { folder = "llm" }, max_context = 1500, max_new_tokens = 6 }
connector = { source = { folder = "connector.safetensors" } }
"""


def test_what_was_trained_answers_and_a_second_run_changes_nothing(tmp_path: Path, sightline: Process) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "fresh"
    plan.write_text(json.dumps(PLAN))
    first = sightline("train", "micro", "--out", out, "--plan", plan)
    assert first.returncode == 0, first.stderr
    history = json.loads((out / "training.json").read_text())["history"]
    assert set(history) == {"clip", "siglip", "language"}
    curves = (out / "training.svg").read_text()
    assert all(name in curves for name in ("clip", "siglip", "language", "answers right"))

    weights = sorted(path for path in out.rglob("*.safetensors"))
    assert {path.parent.name for path in weights} == {"clip", "siglip", "llm", "fresh"}
    before = [path.read_bytes() for path in weights]
    again = sightline("train", "micro", "--out", out, "--plan", plan)
    assert again.returncode == 0, again.stderr
    assert [path.read_bytes() for path in weights] == before

    (out / "fresh.toml").write_text(PROFILE)
    for command in (
        ("render", "--seed", 5, "--minutes", 0.5, "--cameras", 1, "--out", "footage"),
        ("ingest", "footage", "--store", "store", "--profile", out / "fresh.toml"),
    ):
        done = sightline(*command)
        assert done.returncode == 0, done.stderr
    asked = sightline("ask", "Where was it?", "--store", "store", "--profile", out / "fresh.toml", "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["frames"] == 30
