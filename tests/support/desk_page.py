"""The desk's page over rendered footage: its store, and steps that tests of several pages share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page, expect

from tests.support.processes import environment

SECONDS = 40
CAMERAS = ("camera-1", "camera-2")
WAIT = 240_000.0


def sightline(home: Path, *arguments: object) -> None:
    """Run a command to its end."""
    command = [sys.executable, "-m", "sightline", *map(str, arguments)]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def go(page: Page, route: str, heading: str) -> None:
    """Open a view."""
    page.goto(f"/#/{route}")
    expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()


def moment_of(stream: dict[str, Any]) -> str:
    """The route of the newest moment of a stream."""
    return f"moment?stream={stream['stream_id']}&at={quote(stream['last'])}"


def log_in(page: Page, name: str, password: str) -> None:
    """Fill in the form of the log-in."""
    page.goto("/")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def found(number: int, first: int, verdict: str = "not_looked") -> list[dict[str, Any]]:
    """Moments, as `POST /search` replies."""
    return [
        {
            "id": f"m{first + i}",
            "stream_id": f"camera-{i % 9}",
            "start": "2024-05-01T09:12:00Z",
            "end": "2024-05-01T09:12:04Z",
            "best": "2024-05-01T09:12:02Z",
            "score": 0.3,
            "percentile": 99.1,
            "meaning": "higher than 99.1 % of the frames",
            "thumbnail": "/api/v1/thumbnail?stream=camera-1&at=2024-05-01T09:12:02Z",
            "verification": {"state": verdict, "why": "", "probability": None},
        }
        for i in range(number)
    ]
