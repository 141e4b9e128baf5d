"""The page of figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from index.errors import UsageError
from pipeline.bench_page import figures_page

ROOT = Path(__file__).parents[2]


def test_units_come_from_names_and_bars_from_the_largest_of_a_column(tmp_path: Path) -> None:
    rows = [{"size": "a<b", "wall_seconds": 0.25, "ours": {"peak_bytes": 1024}}, {"wall_seconds": 1.0, "ok": True}]
    (tmp_path / "made_up.json").write_text(json.dumps({"command": "sightline x", "ratio": 2.0, "rows": rows}))
    text = figures_page(tmp_path)
    assert "Made up" in text and "<code>sightline x</code>" in text
    assert "2.00×" in text and "250 ms" in text and "1 KiB" in text and "yes" in text and "–" in text
    assert "a&lt;b" in text and "a<b" not in text
    assert re.findall(r"width: ([\d.]+)%", text) == ["23.0", "92.0", "92.0"]


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_what_is_not_a_figure(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UsageError, match="sightline bench"):
        figures_page(tmp_path)


def test_the_page_in_the_repository_shows_the_figures_in_it() -> None:
    assert (ROOT / "docs" / "figures.html").read_text() == figures_page(ROOT / "benchmarks")


def test_every_figure_says_how_it_was_measured() -> None:
    for file in (ROOT / "benchmarks").glob("*.json"):
        data = json.loads(file.read_text())
        assert data["command"].startswith("sightline ") and data["machine"], file
