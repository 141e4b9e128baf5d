"""The wheel: built from the tree, it works where the tree is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
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


class Environment:
    """A virtual environment in one place, made anew for each extra.

    uv links the packages from its cache, where the set-up of the tree has put them. The place stays the same so that
    compiled modules, which name it, are compiled once.
    """

    def __init__(self, home: Path, wheel: Path) -> None:
        self.home, self.wheel = home, wheel
        self._extra: str | None = "nothing is installed"

    def install(self, extra: str | None = None) -> Path:
        """Install the wheel and its dependencies, with an extra, into a new environment; return its `sightline`."""
        if extra != self._extra:
            setup = subprocess.run(["bash", "infra/setup.sh", "--uv"], cwd=ROOT, capture_output=True, check=True)
            uv, env = setup.stdout.decode().strip(), str(self.home / "env")
            what = str(self.wheel) if extra is None else f"{self.wheel}[{extra}]"
            subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, env], cwd=ROOT, check=True)
            command = [uv, "pip", "install", "--quiet", "--python", env, "--constraint", "requirements.txt", what]
            offline = subprocess.run([*command, "--offline"], cwd=ROOT, capture_output=True, check=False)
            if offline.returncode != 0:  # the cache was emptied
                subprocess.run(command, cwd=ROOT, check=True)
            self._extra = extra
        return self.home / "env" / "bin" / "sightline"


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    home = tmp_path_factory.mktemp("elsewhere")
    yield Environment(home, wheel)
    shutil.rmtree(home)


@pytest.fixture
def outside(installation: Environment) -> Path:
    """The `sightline` of an environment without any extra."""
    return installation.install()


def _environment(script: Path) -> dict[str, str]:
    home = script.parents[2]
    more = {"SIGHTLINE_KAFKA_CONNECT_SECONDS": "2", "PYTHONPYCACHEPREFIX": str(home / "compiled")}
    variables = environment(home, **more)
    return {name: variables[name] for name in variables.keys() - {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}}


def _run(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *map(str, arguments)],
        cwd=script.parents[2],
        env=_environment(script),
        capture_output=True,
        text=True,
        check=False,
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
    page = ROOT / "pipeline" / "web" / "assets"
    assert {path.relative_to(ROOT).as_posix() for path in page.rglob("*.*")} <= names
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


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("consume --group g --store store", "kafka"),
        ("backfill --manifest footage --store store", "beam"),
        ("model-service --store store", "service"),
        ("train run plan.yaml --out out", "train"),
    ],
)
def test_a_command_names_the_extra_that_is_not_installed(outside: Path, arguments: str, extra: str) -> None:
    done = _run(outside, *arguments.split())
    assert done.returncode == 1
    assert f"needs the extra `{extra}`" in done.stderr
    assert done.stderr.rstrip().endswith(f"pip install 'sightline[{extra}]'")


def test_the_extra_kafka(installation: Environment) -> None:
    script = installation.install("kafka")
    for arguments in ("publish footage", "deadletter list", "alerts watch"):
        done = _run(script, *arguments.split(), "--servers", "127.0.0.1:9")  # the discard port: no broker
        assert done.returncode == 1
        assert "127.0.0.1:9" in done.stderr
        assert "extra" not in done.stderr


def test_the_extra_beam(installation: Environment, profile: str) -> None:
    script = installation.install("beam")
    rendered = _run(script, "render", "--seed", "2", "--minutes", "0.1", "--cameras", "1", "--out", "short")
    assert rendered.returncode == 0, rendered.stderr
    done = _run(script, "backfill", "--manifest", "short", "--store", "store-beam", "--profile", profile, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 6


@pytest.mark.parametrize("extra", ["service", "web"])
def test_the_extras_of_the_service(installation: Environment, profile: str, extra: str) -> None:
    script = installation.install(extra)
    rendered = _run(script, "render", "--seed", "2", "--minutes", "0.1", "--cameras", "1", "--out", "short")
    assert rendered.returncode == 0, rendered.stderr
    ingested = _run(script, "ingest", "short", "--store", "store-service", "--profile", profile)
    assert ingested.returncode == 0, ingested.stderr
    command = [str(script), "model-service", "--store", "store-service", "--port", "0", "--profile", profile]
    with subprocess.Popen(
        command, cwd=script.parents[2], env=_environment(script), stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        assert service.stdout.readline().startswith("listening on http://127.0.0.1:")
        service.terminate()
        service.communicate(timeout=300)
    assert service.returncode == 0


def test_the_extra_train(installation: Environment) -> None:
    done = _run(installation.install("train"), "train", "run", "plan.yaml", "--out", "out")
    assert done.returncode != 0
    assert "plan.yaml: cannot be read" in done.stderr
