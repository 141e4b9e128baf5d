"""Debian's Chromium, driven by Playwright, and the checks that hold on every page of the desk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.processes import environment

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""The rules of axe that hold on every page: WCAG 2.2 AA, and what axe calls good practice."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. Without Chromium the test is skipped, and fails in CI."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing; .ci/run installs it")
        pytest.skip("needs chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Window:
    """A page of its own session, and what went wrong in it."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._console(message.type, message.text))

    def _console(self, kind: str, text: str) -> None:
        # A reply with an error status is also a line of the console; tests that provoke one look at the page.
        if kind == "error" and not text.startswith("Failed to load resource"):
            self.errors.append(text)


@contextmanager
def window(browser: Browser, base: str, **options: Any) -> Iterator[Window]:
    """A page; no script fails in it, and nothing breaks its content security policy."""
    settings: dict[str, Any] = {
        "base_url": base,
        "viewport": {"width": 1280, "height": 860},
        "timezone_id": "Europe/Berlin",
        "locale": "en-GB",
        "reduced_motion": "reduce",
        **options,
    }
    context = browser.new_context(**settings)
    opened = Window(context)
    yield opened
    context.close()
    assert opened.errors == []


def violations(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now."""
    found = Axe().run(page, options={"runOnly": RULES}).response
    assert len(found["passes"]) > 10  # axe has looked at something
    return [f"{each['id']}: {node['html'][:200]}" for each in found["violations"] for node in each["nodes"]]


@contextmanager
def desk_server(
    home: Path, store: Path, *options: str, profile: str = "micro", state: Path | None = None
) -> Iterator[str]:
    """`sightline serve` over a store; the URL that it announces."""
    command = [sys.executable, "-m", "sightline", "serve", "--store", str(store), "--port", "0"]
    command += ["--state", str(state or home / "state"), "--profile", profile, *options]
    with (
        (home / "serve.log").open("ab") as log,
        subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            found = None
            for line in process.stdout:
                if found := re.search(r"http://[^\s;]+", line):
                    break
            assert found is not None, (home / "serve.log").read_text()[-2000:]
            yield found.group().rstrip("/")
        finally:
            process.terminate()
            process.communicate(timeout=300)
