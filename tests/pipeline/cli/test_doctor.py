"""`sightline doctor`, and commands on a machine where decoders cannot be confined."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from ingest.decoding.confinement import LAYERS
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


def without_landlock(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as on a kernel without Landlock."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-m", "tests.support.without_landlock", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
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
