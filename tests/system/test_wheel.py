"""The wheel: built from the tree, it works where the tree is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy of what git tracks, as anybody else would have it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `sightline` of a new environment that has the wheel, and everything else from this environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False)
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # A .pth line adds the packages of this environment but not its editable install of the tree.
    installed = next(p for p in sys.path if p.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(installed + "\n")
    script = folder / "env" / "bin" / "sightline"
    guarded = "if __name__ == '__main__':\n    run()\n"  # as installers write it; spawned workers import it
    script.write_text(f"#!{folder}/env/bin/python\nfrom sightline.__main__ import run\n{guarded}")
    script.chmod(0o755)
    return script


def _run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    home = script.parents[2]
    variables = {k: v for k, v in environment(home).items() if k != "PYTHONPATH"}
    return subprocess.run(
        [script, *map(str, arguments)], cwd=home, env=variables, capture_output=True, text=True, check=False
    )


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "sightline = sightline.__main__:run" in archive.read(entry).decode()
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert tops == {"index", "ingest", "model", "pipeline", "sightline"}
    for package in tops:
        assert f"{package}/py.typed" in names
        there = {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py")}
        assert there <= names
    assert {"model/profiles/micro.toml", "model/profiles/edge.toml", "model/profiles/vilamp.toml"} <= names
    assert "pipeline/templates/report.html.j2" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_weights_of_micro_are_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "model/micro"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = set(tracked.stdout.split())
    assert {
        "model/micro/clip/open_clip_model.safetensors",
        "model/micro/siglip/model.safetensors",
        "model/micro/llm/model.safetensors",
        "model/micro/connector.safetensors",
    } <= files, "the weights of micro are not in the repository"
    with zipfile.ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())
    assert sum((ROOT / name).stat().st_size for name in files) <= 40 * 10**6


def test_it_works_outside_the_tree(outside: Path, profile: str) -> None:
    where = subprocess.run(
        [outside.parent / "python", "-c", "import sightline, pipeline; print(pipeline.__file__)"],
        cwd=outside.parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(outside.parents[1]))  # not the tree's
    assert _run(outside, "--help").returncode == 0
    rendered = _run(outside, "render", "--seed", "2", "--minutes", "0.3", "--cameras", "1", "--out", "footage")
    assert rendered.returncode == 0, rendered.stderr
    ingested = _run(outside, "ingest", "footage", "--store", "store", "--profile", profile, "--json")
    assert ingested.returncode == 0, ingested.stderr
    assert json.loads(ingested.stdout)["frames"] == 18
    asked = _run(outside, "ask", "what colour was the truck ?", "--store", "store", "--profile", profile, "--json")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["frames"] == 18
