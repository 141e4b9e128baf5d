"""Optional dependencies: without an extra its commands say which one they need, and all others work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from index.errors import EngineMissing, ExtraMissing, SightlineError
from index.extras import EXTRA_OF_MODULE, missing_extra, require_extra
from tests.support.processes import ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# Runs the command with the modules in BLOCKED made impossible to import.
WITHOUT_EXTRAS = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Blocked())
sys.argv[0] = "sightline"
from sightline.__main__ import run
run()
"""
BASE = [
    *("render", "ingest", "watch", "record", "cameras", "clip", "search", "keyframes", "ask", "streams", "verify"),
    *("reindex", "compact", "forget", "demo", "eval", "backfill", "model-service", "alerts", "train", "bench"),
]


def without_extras(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the `sightline` command as if no extra were installed; tests/system/test_wheel.py does without them."""
    blocked = set(EXTRA_OF_MODULE) - {"google", "yaml"}
    if arguments[0] != "train":
        blocked -= {"accelerate"}  # transformers reads from the metadata that it is installed
    return subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{WITHOUT_EXTRAS}", *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_extra_is_declared() -> None:
    apart = {"gpu", "vllm", "scoring", "docs", "dev", "all"}
    assert set(EXTRAS) == {"kafka", "beam", "service", "web", "mcp", "train"} | apart
    assert set(EXTRA_OF_MODULE.values()) <= set(EXTRAS)
    (everything,) = EXTRAS["all"]
    included = re.fullmatch(r"sightline\[([a-z,]+)\]", everything)
    assert included is not None
    assert set(included[1].split(",")) == set(EXTRAS) - apart


def test_no_dependency_is_declared_twice_in_different_ways() -> None:
    seen: dict[str, str] = {}
    for requirement in [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]:
        name = re.split(r"[<>=;\[ ]", requirement)[0]
        assert "://" not in requirement
        if name != "sightline":
            assert seen.setdefault(name, requirement) == requirement


def test_a_missing_module_becomes_one_sentence_that_names_the_extra() -> None:
    error = missing_extra(ModuleNotFoundError("No module named 'kafka'", name="kafka.admin"))
    assert isinstance(error, ExtraMissing)
    assert isinstance(error, SightlineError)
    assert str(error) == "this command needs the extra `kafka` (kafka is not installed): pip install 'sightline[kafka]'"
    assert missing_extra(ModuleNotFoundError("No module named 'numpi'", name="numpi")) is None
    assert missing_extra(ModuleNotFoundError("without a name")) is None
    assert issubclass(EngineMissing, ExtraMissing)


def test_require_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("kafka", "sightline consume")
    monkeypatch.setitem(EXTRA_OF_MODULE, "no_such_module", "kafka")
    with pytest.raises(ExtraMissing, match=r"^sightline consume needs the extra `kafka` \(no_such_module is not"):
        require_extra("kafka", "sightline consume")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("publish film.mp4", "kafka"),
        ("consume --group g --store store", "kafka"),
        ("deadletter list", "kafka"),
        ("alerts watch", "kafka"),
        ("bench consume", "kafka"),
        ("backfill --manifest files.csv --store store", "beam"),
        ("model-service --store store", "service"),
        ("bench service", "service"),
        ("train run plan.yaml --out out", "train"),
        ("train micro --out out", "train"),
    ],
)
def test_a_command_without_its_extra(tmp_path: Path, arguments: str, extra: str) -> None:
    done = without_extras(tmp_path, *arguments.split())
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        rf"sightline: [a-z -]+ needs the extra `{extra}` \(\w+ is not installed\): pip install 'sightline\[{extra}\]'",
        line,
    ), line


@pytest.mark.parametrize("command", BASE)
def test_every_other_command_explains_itself_without_extras(tmp_path: Path, command: str) -> None:
    done = without_extras(tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: sightline" in done.stdout


def test_footage_is_ingested_and_asked_about_without_extras(tmp_path: Path, profile: str) -> None:
    for arguments in (
        "render --seed 2 --minutes 0.2 --cameras 1 --out footage",
        f"ingest footage --store store --profile {profile} --json",
        f"ask where --store store --profile {profile} --json",
        f"alerts add truck --store store --profile {profile}",
        "alerts list --store store",
        "cameras --folder live",
    ):
        done = without_extras(tmp_path, *arguments.split())
        if arguments.startswith("cameras"):
            assert "extra" not in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        if arguments.startswith("ask"):
            assert json.loads(done.stdout)["frames"] == 12
