"""The large index built with Beam: the shards of the local build, resumed after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.errors import BackfillFailed, UsageError
from index.search.ann.builder import ShardPlan
from index.store import Store
from pipeline.backfill.index_job import build_index
from pipeline.cli.main import app
from tests.support.large_stores import PAIR, STREAMS, exact, files_of, fill, places, queries
from tests.support.processes import environment

FRAMES = 3000
SHARD = 1000

KILLED = """
import os, signal
from index.search.ann import shard
from pipeline.cli.main import run

before, written = shard.write_atomically, []

def write(path, data, **settings):
    written.append(path)
    if len(written) == 2:  # the manifest of the second shard: its arrays are there
        os.kill(os.getpid(), signal.SIGKILL)
    before(path, data, **settings)

shard.write_atomically = write
run()
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with 3,000 frames and no index."""
    store = Store.create(tmp_path_factory.mktemp("archive") / "store", PAIR)
    fill(store)
    return Path(store.url)


@pytest.fixture(scope="module")
def expected(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the index that one process builds."""
    folder = tmp_path_factory.mktemp("local") / "store"
    shutil.copytree(filled, folder)
    assert Store.open(folder).vectors.large.build(shard_rows=SHARD).shards == 3
    return files_of(folder / "ann")


def test_beam_builds_the_shards_of_the_local_build_and_nothing_the_second_time(
    filled: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    built = build_index(store, shard_rows=SHARD)
    assert (built.rows, built.shards, built.trained) == (FRAMES, 3, True)
    assert files_of(tmp_path / "store" / "ann") == expected
    again = build_index(store, shard_rows=SHARD)
    assert (again.rows, again.shards, again.trained) == (0, 0, False)
    assert store.verify() == []


def test_a_killed_job_leaves_whole_shards_and_the_next_build_goes_on(
    filled: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(filled, tmp_path / "store")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = [sys.executable, str(script), "index", "build", "--store", str(tmp_path / "store")]
    arguments += ["--runner", "DirectRunner", "--shard-frames", str(SHARD)]
    died = subprocess.run(arguments, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    (half,) = (tmp_path / "store" / "ann").glob("*.part")
    assert (half / "lists.bin").is_file()
    assert not (half / "manifest.json").exists()
    store = Store.open(tmp_path / "store")
    store.vectors.flat_rows = 0
    large, query = store.vectors.large, queries(1)[0]
    kept = sum(map(len, large.catalog.shards()))
    assert 0 < kept < FRAMES
    assert store.vectors.moments(query, STREAMS, None, None) is not None, "the index is used"
    assert places(store.search(query, top=50)) == places(exact(store).search(query, top=50))
    arguments = ["index", "build", "--store", store.url, "--shard-frames", str(SHARD), "--json"]
    again = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (again["rows"], again["trained"]) == (FRAMES - kept, False)
    assert files_of(tmp_path / "store" / "ann") == expected
    assert places(store.search(query, top=50)) == places(exact(store).search(query, top=50))


def test_work_that_is_done_twice_leaves_one_shard(
    filled: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(filled, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    large = store.vectors.large

    def twice(plans: Sequence[ShardPlan]) -> None:
        for plan in (*plans, *plans):
            large.write_planned(plan)

    large.build(shard_rows=SHARD, elsewhere=twice)
    assert files_of(tmp_path / "store" / "ann") == expected


def test_a_worker_that_does_not_see_the_codebook_fails_the_job(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "store")
    store, codebook = Store.open(tmp_path / "store"), tmp_path / "store" / "ann" / "codebook.npz"
    write = type(store.vectors.large).write_planned

    def blind(large: object, plan: object) -> str:
        codebook.unlink(missing_ok=True)
        return write(large, plan)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store.vectors.large), "write_planned", blind)
        with pytest.raises(BackfillFailed, match="run the same build again"):
            build_index(store, shard_rows=SHARD)
    with pytest.raises(UsageError, match="--runner Cray is unknown"):
        build_index(store, runner="Cray")
