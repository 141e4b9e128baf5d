"""`sightline eval run --service` with a model service in a process of its own: the answers of a run without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.store import Store
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.evaluation.runs.record import AnswerLine, RunFolder
from tests.support.benchmark_data import MAKERS
from tests.support.command import Command
from tests.support.processes import environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def store(profile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store."""
    path = tmp_path_factory.mktemp("service") / "store"
    Store.create(path, load_encoders(load_profile(profile), "cpu").pair)
    return path


@pytest.fixture(scope="module")
def service(profile: str, store: Path) -> Iterator[str]:
    """URL of `sightline model-service` over the store."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline", "model-service", "--store", store, "--port", "0", "--profile", profile],
        cwd=store.parent,
        env=environment(store.parent),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("listening on ").strip()
    finally:
        process.terminate()
        process.wait(300)


def lines(folder: Path) -> dict[str, AnswerLine]:
    """Answers without what differs from run to run."""
    found = RunFolder(folder).answers()
    return {name: line.model_copy(update={"timings_seconds": {}}) for (name, _), line in found.items()}


@pytest.mark.parametrize(("name", "answers"), [("videomme", "generated"), ("egoschema", "likelihood")])
def test_a_service_gives_the_answers_of_this_process(
    sightline: Command, profile: str, store: Path, service: str, clip: Path, tmp_path: Path, name: str, answers: str
) -> None:
    data = MAKERS[name](tmp_path / "data", clip)
    common = ("eval", "run", name, "--data", data, "--store", store, "--answers", answers, "--json")
    # The service comes first, so that its run ingests the videos that the store lacks.
    served = sightline(*common, "--service", service, "--profile", profile, "--out", tmp_path / "served")
    assert served.code == 0, served.err
    assert served.data["states"].get("answered", 0) + served.data["states"].get("unparsed", 0) >= 2
    local = sightline(*common, "--profile", profile, "--out", tmp_path / "local")
    assert local.code == 0, local.err
    mine, theirs = lines(tmp_path / "local"), lines(tmp_path / "served")
    assert {k: v.model_copy(update={"probabilities": []}) for k, v in theirs.items()} == {
        k: v.model_copy(update={"probabilities": []}) for k, v in mine.items()
    }
    for key, line in theirs.items():
        assert line.probabilities == pytest.approx(mine[key].probabilities, abs=1e-5)
    compared = sightline("eval", "compare", tmp_path / "local", tmp_path / "served", "--json").data
    # A service does not tell all settings of its profile.
    assert [each.split(":")[0] for each in compared["differences"]] == ["profile_digest", "service"]
    assert compared["changed"] == []


def test_a_profile_that_the_service_does_not_run_is_refused(
    sightline: Command, store: Path, service: str, tmp_path: Path
) -> None:
    result = sightline(
        *("eval", "run", "egoschema", "--data", tmp_path, "--store", store, "--out", tmp_path / "run"),
        *("--service", service, "--profile", "edge"),
    )
    assert result.code == 2
    assert "the service runs tiny; leave --profile out" in result.err
