"""`sightline doctor`, and commands on a machine where decoders cannot be confined."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ingest.decoding.confinement import LAYERS
from model.profiles.profile import load_profile
from pipeline.readiness import check_profile, memory_need, stored_bytes_an_hour
from tests.support.command import Command

ROOT = Path(__file__).parents[3]
linux = pytest.mark.skipif(sys.platform != "linux", reason="confinement exists on Linux only")


@linux
def test_doctor_reports_this_machine(sightline: Command) -> None:
    done = sightline("doctor", "--json")
    assert done.code == 0, done
    found = done.data
    assert found["sandbox"] == {"sufficient": True, "layers": dict.fromkeys(LAYERS, "")}
    assert found["python"] == platform.python_version()
    assert found["packages"]["deltalake"] == version("deltalake")
    assert {"file", "tcp", "udp", "tls"} <= set(found["protocols"])
    assert found["schemes"]["rtsp"]
    assert found["schemes"]["srt"] == ("srt" in found["protocols"])
    assert {extra["name"] for extra in found["extras"]} >= {"beam", "kafka", "service", "train"}
    text = sightline("doctor").out
    assert "sandbox: landlock" in text
    assert f"Python {platform.python_version()}" in text


def test_doctor_of_a_profile_that_works(sightline: Command, profile: str, tmp_path: Path) -> None:
    done = sightline("doctor", "--profile", profile, "--store", tmp_path / "store", "--json")
    assert done.code == 0, done
    ready = done.data["readiness"]
    assert ready["works"]
    assert {check["name"] for check in ready["checks"]} == {"weights", "memory", "disk", "codecs"}
    assert all(check["works"] for check in ready["checks"])
    text = sightline("doctor", "--profile", "micro", "--store", tmp_path / "store").out
    assert "needs no network" in text
    assert "room for" in text


def test_doctor_of_a_profile_without_weights(sightline: Command, profile: str, tmp_path: Path) -> None:
    changed = tmp_path / "changed.toml"
    changed.write_text(re.sub(r'folder = "[^"]*"', 'folder = "elsewhere"', Path(profile).read_text()))
    done = sightline("doctor", "--profile", changed)
    assert done.code == 1
    assert "elsewhere has no weights" in done.out
    assert "cannot work on this machine" in done.err


def test_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = check_profile(load_profile("vilamp"), str(tmp_path / "store"))
    assert not found.works
    assert "cannot be answered" in found.outlook
    weights = [check.text for check in found.checks if check.name == "weights"]
    assert any("ViLAMP-llava-qwen_sig is not in the cache and the hub is switched off" in text for text in weights)


def test_memory_and_disk_are_counted_from_the_profile() -> None:
    vilamp = load_profile("vilamp")
    need = memory_need(vilamp, 10, 2)
    assert need is not None
    weights, cache, activations = need
    assert weights == pytest.approx(2 * 7.6e9, rel=0.01)  # Qwen2-7B has 7.6 billion parameters
    assert cache == 2 * 2 * 28 * 4 * 128 * 32768  # keys and values, bytes, layers, heads, width, tokens
    assert activations > 0
    assert stored_bytes_an_hour(vilamp) == pytest.approx(6.05e9, rel=0.02)  # half-precision patches, 729 of 1,152
    assert memory_need(vilamp.model_copy(update={"shape": None}), 0, 2) is None


def without_landlock(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as on a kernel without Landlock."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-m", "tests.support.without_landlock", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@linux
def test_doctor_fails_where_a_layer_that_matters_is_missing(tmp_path: Path) -> None:
    done = without_landlock(tmp_path, "doctor", "--json")
    assert done.returncode == 1, done
    sandbox = json.loads(done.stdout)["sandbox"]
    assert not sandbox["sufficient"]
    assert "not implemented" in sandbox["layers"]["landlock"]
    assert sandbox["layers"]["seccomp"] == ""


@linux
def test_commands_warn_without_the_sandbox_and_refuse_where_it_is_required(
    tmp_path: Path, footage: Path, profile: str
) -> None:
    ingest = ("ingest", footage / "back.mp4", "--store", "s", "--profile", profile)
    refusals = [
        without_landlock(tmp_path, *ingest, "--require-sandbox"),
        without_landlock(tmp_path, *ingest, SIGHTLINE_REQUIRE_SANDBOX="true"),
        without_landlock(tmp_path, "record", "cam=loop:x.mp4", "--to", "t", "--require-sandbox"),
        without_landlock(tmp_path, "watch", "cam=loop:x.mp4", "--require-sandbox"),
        without_landlock(tmp_path, "publish", footage, "--require-sandbox"),
        without_landlock(tmp_path, "publish", footage, SIGHTLINE_REQUIRE_SANDBOX="true"),
        without_landlock(tmp_path, "backfill", "--manifest", footage, "--store", "s", "--require-sandbox"),
    ]
    for refused in refusals:
        assert refused.returncode == 1, refused
        last = refused.stderr.splitlines()[-1]
        assert "landlock: landlock: Function not implemented" in last
        assert "leave out --require-sandbox" in last
    assert not (tmp_path / "s").exists()
    done = without_landlock(tmp_path, *ingest)
    assert done.returncode == 0, done
    assert "decoders are not confined" in done.stderr
    assert "12 frames" in done.stdout
