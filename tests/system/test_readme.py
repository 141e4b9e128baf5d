"""Every command of the README and of the guides runs, or says what it needs: the network, a GPU, Kafka, cameras, Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.documents import GUIDES, Block, blocks_of
from tests.support.processes import ROOT, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def _run(blocks: Iterable[Block], folder: Path) -> None:
    """Run blocks in their order in `folder`; each must succeed and print something."""
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    command = binaries / "sightline"
    command.write_text(
        f"#!{sys.executable}\nfrom pipeline.cli.main import run\nif __name__ == '__main__':\n    run()\n"
    )
    command.chmod(0o755)
    variables = environment(folder, PATH=f"{binaries}{os.pathsep}{os.environ['PATH']}")
    for block in blocks:
        if not block.executable:
            continue
        run = ["bash", "-euo", "pipefail", "-c"] if block.kind == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*run, block.text], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block.text}\n{done.stderr}"
        assert done.stdout.strip(), block.text


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's blocks have run."""
    folder = tmp_path_factory.mktemp("readme")
    _run(blocks_of(ROOT / "README.md"), folder)
    return folder


def test_the_blocks_of_the_readme_run_in_their_order(after_readme: Path) -> None:
    blocks = [block for block in blocks_of(ROOT / "README.md") if block.executable]
    assert sum(block.text.count("sightline ") for block in blocks if block.kind == "sh") >= 5
    assert any(block.kind == "python" for block in blocks)
    assert (after_readme / "store").is_dir()


@pytest.mark.parametrize("guide", GUIDES)
def test_the_blocks_of_a_guide_run_after_those_of_the_readme(guide: str, after_readme: Path, tmp_path: Path) -> None:
    shutil.copytree(after_readme, tmp_path, dirs_exist_ok=True)
    earlier = [ROOT / "README.md", *(ROOT / "docs" / name for name in GUIDES[: GUIDES.index(guide)])]
    done = {block for page in earlier for block in blocks_of(page)}  # each block runs once
    blocks = [block for block in blocks_of(ROOT / "docs" / guide) if block.executable and block not in done]
    assert blocks
    _run(blocks, tmp_path)


def test_most_commands_of_the_pages_are_executed() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs" / guide for guide in GUIDES)]
    blocks = [block for page in pages for block in blocks_of(page) if block.kind == "sh"]
    executed = sum(block.text.count("sightline ") for block in set(blocks) if block.executable)
    assert executed >= 22
    assert executed > sum(block.text.count("sightline ") for block in set(blocks) if not block.executable)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_make_targets_that_the_readme_names_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = " ".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    named = set(re.findall(r"`?\bmake ([a-z]+)", " ".join(re.findall(r"`[^`]*`", text))))
    assert {"demo", "test", "docs"} <= named <= targets


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_files_that_a_page_of_the_root_links_to_are_there(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    assert links or name != "README.md"
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
