"""A small world: two videos, models of a few thousand random weights, a store made of them, and the command itself."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import structlog

from ingest.video_writer import VideoWriter
from pipeline.cli.main import main
from tests.support.command import BEGAN, FRAMES, LENGTHS, Command, Result


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """front.mp4 and back.mp4: coloured noise that changes every second, `back` beginning a minute after `front`."""
    folder = tmp_path_factory.mktemp("footage")
    rng = np.random.default_rng(5)
    for late, (name, seconds) in enumerate(LENGTHS.items()):
        created = BEGAN + timedelta(minutes=late)
        with VideoWriter(folder / f"{name}.mp4", 64, 48, fps=5, gop=5, created=created) as writer:
            for _ in range(seconds):
                ground = rng.integers(0, 256, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
                for _ in range(5):
                    writer.write(ground)
    return folder


@pytest.fixture
def sightline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Run the command in this process: `sightline("ask", …)`. Logging and warnings are put back afterwards."""

    def run(*arguments: object, at: Path | None = None) -> Result:
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        monkeypatch.chdir(at or tmp_path)
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            main()
        structlog.reset_defaults()
        out, err = capsys.readouterr()
        return Result(int(stopped.value.code or 0), out, err)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        yield run


@pytest.fixture(scope="session")
def filled(footage: Path, profile: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with both videos; read only, see `store` for one to change."""
    from index.store import Store
    from ingest.file_ingest import ingest_sources
    from model.encoders.encoder import load_encoders
    from model.profiles.profile import load_profile

    encoders = load_encoders(load_profile(profile), "cpu")
    opened = Store.create(tmp_path_factory.mktemp("stores") / "filled", encoders.pair)
    report = ingest_sources([footage], store=opened, encoders=encoders, segment_seconds=10)
    assert report.frames == FRAMES
    return opened.url


@pytest.fixture
def store(filled: str, tmp_path: Path) -> str:
    """A copy of the filled store."""
    shutil.copytree(filled, tmp_path / "store")
    return str(tmp_path / "store")
