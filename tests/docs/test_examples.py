"""The notebook runs from its first cell to its last and shows its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.processes import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
NOTEBOOK = ROOT / "examples" / "relevance.ipynb"


def _notebook() -> Any:
    untyped: Any = nbformat
    return untyped.read(NOTEBOOK, as_version=4)


def _outputs(notebook: Any) -> tuple[str, int]:
    """The text that the cells print, and the number of pictures that they show."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = _notebook()
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text, pictures = _outputs(notebook)
    assert "180 frames" in text
    assert "answer: " in text
    assert pictures == 2


def test_the_committed_notebook_shows_its_pictures() -> None:
    text, pictures = _outputs(_notebook())
    assert "answer: " in text
    assert pictures == 2
    assert NOTEBOOK.stat().st_size < 500_000
