"""The documentation builds without a warning and without the network, and needs no other host when it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]
_NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment(folder, NO_MKDOCS_2_WARNING="1", **_NO_NETWORK),
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


class _Loaded(HTMLParser):
    """What a browser loads for a page without a click."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video") and values.get("src"):
            self.urls.append(str(values["src"]))
        if tag == "link" and "canonical" not in str(values.get("rel")) and values.get("href"):
            self.urls.append(str(values["href"]))


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        parser = _Loaded()
        parser.feed(page.read_text())
        assert [url for url in parser.urls if re.match(r"(https?:)?//", url)] == [], page


def test_pages_link_to_each_other_by_relative_paths(site: Path) -> None:
    for page in sorted({*site.rglob("*.html")} - {site / "404.html"}):  # that one is served at any path
        for link in re.findall(r'<a [^>]*href="([^"#?]+)', page.read_text()):
            if not re.match(r"[a-z]+:", link):
                assert os.path.exists(page.parent / link), f"{page.relative_to(site)}: {link}"


def test_the_generated_references_are_part_of_the_site(site: Path) -> None:
    assert 'id="sightline-ask"' in (site / "reference" / "commands.html").read_text()
    assert "SIGHTLINE_KAFKA_SERVERS" in (site / "reference" / "settings.html").read_text()
    api = (site / "reference" / "python.html").read_text()
    for name in ("ask", "Asker", "search", "Store", "ingest_sources", "read_frames", "select_keyframes", "merge"):
        assert f"sightline.{name}" in api, name
