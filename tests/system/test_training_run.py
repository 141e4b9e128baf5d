"""`sightline train run` on `micro` and rendered footage, from the command line; and in two processes by accelerate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import gated_command
from tests.support.gate import Gate
from tests.support.processes import Process, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

PLAN = """
profile: micro
stage: 1
data: {{datasets: [{{json_path: footage/qa.jsonl, sampling_strategy: all}}]}}
max_frames: 16
learning_rates: {{mlp_k: 1.0e-3, mlp_n: 1.0e-3, language_model: 1.0e-3}}
freeze: [vision_encoder]
accumulation: {accumulation}
steps: {steps}
workers: 1
cache: cache
"""


@pytest.fixture
def questions(tmp_path: Path, sightline: Process) -> int:
    """Footage of a minute, and one question about each of its events, which `micro` was never taught to answer so."""
    done = sightline("render", "--seed", 5, "--minutes", 1, "--cameras", 1, "--out", "footage")
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "footage" / "truth.json").read_text())["events"]
    samples = [
        {
            "conversations": [
                {"from": "human", "value": f"<video>\nWhat did the {event['actor']} at the {event['place']} do?"},
                {"from": "gpt", "value": f"the {event['colour']} {event['actor']} was at the {event['place']}"},
            ],
            "video": f"{event['stream_id']}.mp4",
        }
        for event in events
    ]
    (tmp_path / "footage" / "qa.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return len(samples)


def _log(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines(keepends=True) if line[-1] == "\n"]


def test_micro_learns_goes_on_where_it_was_and_answers(tmp_path: Path, sightline: Process, questions: int) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.format(accumulation=2, steps=8))
    first = sightline("train", "run", "plan.yaml", "--out", "out", "--stop-after", 4)
    assert first.returncode == 0, first.stderr
    assert f"{questions} samples" in first.stdout
    assert [line.split()[-1] for line in first.stdout.splitlines() if line.startswith("vision_encoder")] == ["frozen"]
    second = sightline("train", "run", "plan.yaml", "--out", "out")
    assert second.returncode == 0, second.stderr
    losses = [line["loss"] for line in _log(tmp_path / "out")]
    assert len(losses) == 8
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])

    # Its encoders are those of `micro`, so that a store of `micro` answers with what was trained.
    profile = tmp_path / "out" / "last" / "model" / "profile.toml"
    done = sightline("ingest", "footage", "--store", "store")
    assert done.returncode == 0, done.stderr
    asked = sightline("ask", "Where was it?", "--store", "store", "--profile", profile, "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["frames"] == 60


@pytest.mark.usefixtures("questions")
def test_a_run_that_was_killed_is_the_run_that_was_not(tmp_path: Path, profile: str, sightline: Process) -> None:
    plan = PLAN.format(accumulation=2, steps=60).replace("profile: micro", f"profile: {profile}")
    (tmp_path / "plan.yaml").write_text(plan + "save_every: 5\n")
    whole = sightline("train", "run", "plan.yaml", "--out", "whole", OMP_NUM_THREADS="1")
    assert whole.returncode == 0, whole.stderr
    # It stops before its last steps, so that the kill comes in the middle however late it comes.
    command = gated_command.command("in-training", Gate(tmp_path / "gate"))
    child = subprocess.Popen(
        [*command, "train", "run", "plan.yaml", "--out", "broken"],
        cwd=tmp_path,
        env=environment(tmp_path, OMP_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    log, deadline = tmp_path / "broken" / "log.jsonl", time.monotonic() + 600
    while child.poll() is None and time.monotonic() < deadline and (not log.exists() or len(_log(log.parent)) < 12):
        time.sleep(0.005)
    assert child.poll() is None  # alive, and in the middle of its work
    os.killpg(child.pid, signal.SIGKILL)  # its decoders and workers too
    assert child.wait() == -signal.SIGKILL
    assert 12 <= len(_log(log.parent)) <= gated_command.STEPS < 60
    finished = sightline("train", "run", "plan.yaml", "--out", "broken", OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    logs = [[{**line, "seconds": 0} for line in _log(tmp_path / out)] for out in ("whole", "broken")]
    assert logs[0] == logs[1]
    files = [tmp_path / out / "last" / "model" / "llm" / "model.safetensors" for out in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("questions")
def test_two_processes_are_one_with_twice_the_samples(tmp_path: Path, sightline: Process) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.format(accumulation=2, steps=3))
    alone = sightline("train", "run", "plan.yaml", "--out", "alone")
    assert alone.returncode == 0, alone.stderr
    (tmp_path / "plan.yaml").write_text(PLAN.format(accumulation=1, steps=3))
    # What `accelerate launch --multi_gpu` starts too; gloo joins processes that have no GPU.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for stop in (2, 1):  # the second time it goes on
        command = [
            *launch,
            "-m",
            "pipeline.cli",
            "train",
            "run",
            "plan.yaml",
            "--out",
            "both",
            "--stop-after",
            str(stop),
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(tmp_path, OMP_NUM_THREADS="1"),
            capture_output=True,
            text=True,
            check=False,
            timeout=1500,
        )
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "both" / "plan.json").read_text())["processes"] == 2
    states = sorted(path.name for path in (tmp_path / "both" / "last" / "state").glob("random_states_*"))
    assert states == ["random_states_0.pkl", "random_states_1.pkl"]
    one, two = _log(tmp_path / "alone"), _log(tmp_path / "both")
    assert [line["frames"] for line in one] == [line["frames"] for line in two]
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=2e-3)
    np.testing.assert_allclose([line["gradient"] for line in two], [line["gradient"] for line in one], rtol=2e-2)
    from safetensors.torch import load_file

    weights = [load_file(tmp_path / out / "last" / "model" / "connector.safetensors") for out in ("alone", "both")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-3)
