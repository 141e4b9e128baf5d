"""The page of figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from index.errors import UsageError
from pipeline.figures import figures_page

ROOT = Path(__file__).parents[2]


def test_units_come_from_names_and_bars_from_the_largest_of_a_column(tmp_path: Path) -> None:
    rows = [{"size": "a<b", "wall_seconds": 0.25, "ours": {"peak_bytes": 1024}}, {"wall_seconds": 1.0, "ok": True}]
    (tmp_path / "made_up.json").write_text(json.dumps({"command": "sightline x", "ratio": 2.0, "rows": rows}))
    text = figures_page(tmp_path)
    assert "Made up" in text
    assert "<code>sightline x</code>" in text
    assert "2.00×" in text
    assert "250 ms" in text
    assert "1 KiB" in text
    assert "yes" in text
    assert "–" in text
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert re.findall(r"width: ([\d.]+)%", text) == ["23.0", "92.0", "92.0"]


def test_a_share_with_its_interval_is_one_cell(tmp_path: Path) -> None:
    share = {"right": 9, "total": 10, "share": 0.9, "low": 0.6, "high": 0.98}
    half = {"right": 1, "total": 2, "share": 0.45, "low": 0.1, "high": 0.9}
    (tmp_path / "x.json").write_text(json.dumps({"accuracy": {"dks": {"what": share}, "uniform": {"what": half}}}))
    text = figures_page(tmp_path)
    assert "90% (60% to 98%)" in text
    assert "<td>uniform</td>" in text
    assert re.findall(r"width: ([\d.]+)%", text) == ["92.0", "46.0"]


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
        assert data["command"], file
        assert data["machine"], file
