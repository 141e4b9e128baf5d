"""Models of a few thousand random weights, and the command as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model import checkpoints_tiny as tiny
from tests.pipeline.conftest import PROFILE

ROOT = Path(__file__).parents[2]

Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a profile with tiny models."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_clip(folder / "clip")
    tiny.save_siglip(folder / "siglip")
    tiny.save_language(folder / "llm")
    tiny.save_connector(folder / "connector.safetensors")
    (folder / "tiny.toml").write_text(PROFILE)
    return str(folder / "tiny.toml")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command: no settings of whoever runs the tests, no network for model hubs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIGHTLINE_")}
    return {**kept, "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}


@pytest.fixture
def sightline(tmp_path: Path) -> Process:
    """Run the command as a process that starts in an empty folder."""

    def run(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            cwd=tmp_path,
            env=environment(tmp_path, **more),
            capture_output=True,
            text=True,
            check=False,
        )

    return run
