"""The files of the desk's page, without a browser: what is loaded, how much it weighs, what the policy allows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT

ASSETS = ROOT / "pipeline" / "web" / "assets"
SCRIPTS = sorted(ASSETS.glob("js/**/*.js"))
MOST_BYTES = 500_000
MOST_LINES = 500


def test_the_page_is_light() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= MOST_BYTES


def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    text = (ASSETS / "index.html").read_text("utf-8")
    assert not re.search(r"\s(?:style|on\w+)=", text)
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style", text)
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert address.startswith("assets/"), address
        assert (ASSETS / address.removeprefix("assets/")).is_file(), address


def test_every_module_is_loaded_with_the_page() -> None:
    """All at once, instead of one after the other as their imports are found."""
    text = (ASSETS / "index.html").read_text("utf-8")
    loaded = set(re.findall(r'(?:src|href)="assets/(js/[^"]+)"', text))
    types_only = {"js/types.js"}
    assert loaded == {path.relative_to(ASSETS).as_posix() for path in SCRIPTS} - types_only


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_text_of_the_server_is_never_parsed_as_markup(path: Path) -> None:
    text = path.read_text("utf-8")
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "setAttribute('style'",
    ):
        assert name not in text, name
    assert len(text.splitlines()) <= MOST_LINES
    assert len(max(text.splitlines(), key=len)) <= 250


def test_the_scripts_have_the_types_that_they_claim() -> None:
    if shutil.which("npm") is None and not os.environ.get("CI"):
        pytest.skip("needs npm")
    done = subprocess.run(["bash", "infra/web/check.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_names_no_registry() -> None:
    assert "resolved" not in (ROOT / "infra" / "web" / "package-lock.json").read_text("utf-8")
