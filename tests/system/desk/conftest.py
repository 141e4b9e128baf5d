"""One real `sightline serve` over rendered footage, and one Chromium, for all tests of the desk's page.

The tests of one process share them. They end with the last test of this folder, because Playwright keeps an event loop
in the thread of the tests, in which no other test could run its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import chromium, desk_server, window
from tests.support.desk_page import CAMERAS, SECONDS, WAIT, sightline


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with footage of two cameras, and a store of it."""
    folder = tmp_path_factory.mktemp("desk")
    minutes = SECONDS / 60
    sightline(folder, "render", "--seed", 7, "--minutes", minutes, "--cameras", len(CAMERAS), "--out", "footage")
    sightline(folder, "ingest", "footage", "--store", "store", "--profile", "micro")
    return folder


@pytest.fixture(scope="package")
def desk(home: Path) -> Iterator[str]:
    """The URL of the desk of one user, on loopback; the first search, which loads the encoders, is done."""
    with desk_server(home, home / "store", "--footage", str(home)) as url:
        httpx.post(f"{url}/api/v1/search", json={"text": "a dog"}, timeout=4 * WAIT / 1000).raise_for_status()
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium; what is expected of its pages may take `WAIT` milliseconds."""
    expect.set_options(timeout=WAIT)
    with chromium() as started:
        yield started


@pytest.fixture(scope="package")
def streams(desk: str) -> list[dict[str, Any]]:
    """What the desk says of its streams."""
    items: list[dict[str, Any]] = httpx.get(f"{desk}/api/v1/streams", timeout=WAIT / 1000).json()["items"]
    return items


@pytest.fixture
def page(browser: Browser, desk: str) -> Iterator[Page]:
    """A page of the desk; no script fails in it, and nothing breaks its content security policy."""
    with window(browser, desk) as opened:
        opened.page.set_default_timeout(WAIT)
        yield opened.page
