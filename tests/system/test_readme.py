"""Every command of the README is run, or says what it needs: the network, a GPU, Kafka."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
_FENCE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"# needs (the network|a GPU|Kafka)\b")


def test_the_blocks_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    blocks = [(kind, text) for kind, text in _FENCE.findall((ROOT / "README.md").read_text()) if not _MARK.match(text)]
    assert sum(text.count("sightline ") for kind, text in blocks if kind == "sh") >= 8
    assert any(kind == "python" for kind, _ in blocks)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    command = binaries / "sightline"
    command.write_text(
        f"#!{sys.executable}\nfrom pipeline.cli.main import run\nif __name__ == '__main__':\n    run()\n"
    )
    command.chmod(0o755)
    variables = environment(tmp_path, PATH=f"{binaries}{os.pathsep}{os.environ['PATH']}")
    for kind, text in blocks:
        run = ["bash", "-euo", "pipefail", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(run, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        assert done.stdout.strip(), text


def test_make_targets_that_the_readme_names_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?\bmake ([a-z]+)", " ".join(re.findall(r"`[^`]*`", (ROOT / "README.md").read_text()))))
    assert {"demo", "test"} <= named <= targets


def test_files_that_the_readme_links_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
