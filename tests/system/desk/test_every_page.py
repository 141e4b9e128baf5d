"""Every page of the desk in Chromium: accessible, on a phone and on a wide screen, light and dark.

Pictures of every page are written to the folder that DESK_SCREENSHOTS names, or to one of pytest's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import violations, window
from tests.support.desk_page import WAIT, go, moment_of

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are kept."""
    chosen = os.environ.get("DESK_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def filled(desk: str, streams: list[dict[str, Any]]) -> Iterator[str]:
    """The desk, with a question, a standing question and held footage, so that no page of a list is empty."""
    with httpx.Client(base_url=f"{desk}/api/v1", timeout=WAIT / 1000) as client:
        client.post("/ask", json={"question": "What colour was the dog at the door?"}).raise_for_status()
        watched = client.post("/standing", json={"text": "a red dog", "name": "dogs"}).raise_for_status().json()
        part = {"stream": streams[0]["stream_id"], "start": streams[0]["first"], "end": streams[0]["last"]}
        held = client.post("/holds", json={**part, "reason": "case 12"}).raise_for_status().json()
        yield desk
        client.delete(f"/standing/{watched['id']}").raise_for_status()
        client.request("DELETE", f"/holds/{held['id']}", json={"reason": "closed"}).raise_for_status()


PAGES = {
    "streams": "Streams",
    "search?text=a+red+dog&min_percentile=50": "Search",
    "search?text=a+dog&time_of_day=01:00-02:00": "Search",
    "ask": "Ask",
    "moment": "Moment",
    "exports": "Export",
    "standing": "Standing questions",
    "history": "History",
    "admin": "Administration",
    "admin?tab=audit": "Administration",
}
WIDTHS = {"light": (360, 1280), "dark": (390, 2560)}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_accessible(
    browser: Browser, filled: str, streams: list[dict[str, Any]], pictures: Path, theme: str
) -> None:
    """axe finds nothing on any page, on a phone and on a wide screen; pictures of them are kept."""
    routes = {**PAGES, moment_of(streams[0]): streams[0]["stream_id"]}
    found: dict[str, list[str]] = {}
    for width in WIDTHS[theme]:
        size = {"width": width, "height": 800 if width < 1000 else 1000}
        # axe is a script of the test, which the policy of the page would refuse.
        with window(browser, filled, color_scheme=theme, viewport=size, bypass_csp=True) as opened:
            page = opened.page
            for route, heading in routes.items():
                go(page, route, heading)
                expect(page.locator(".spinner")).to_have_count(0)
                page.wait_for_timeout(150)
                name = re.sub(r"\W+", "-", route)[:32].strip("-")
                page.screenshot(path=pictures / f"{name}-{theme}-{width}.png")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (route, width)
                if wrong := violations(page):
                    found[f"{route} {width}"] = wrong
    assert found == {}
