"""The `sightline` command as a separate process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


Process = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a command: without the settings of the person who runs the tests, and without model hubs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIGHTLINE_")}
    return {**kept, "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}
