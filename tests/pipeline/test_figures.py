"""The page of figures: sections from results, its charts, and the committed page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from index.errors import UsageError
from pipeline.figures import figures_page
from pipeline.figures.charts import Bar, Interval, Line, bars, intervals, lines
from pipeline.figures.units import count, factor, flops, percent, seconds, signed, size

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
ASK = {
    "command": "sightline bench ask",
    "machine": "a <test>",
    "profile": "micro",
    "rows": [
        {
            "frames": frames,
            "keyframes": 28,
            "visual_tokens": 1000 + frames,
            "patch_bytes": 13_824 * frames,
            "seconds": {
                "window": 0.02,
                "dfm": 0.2 * k,
                "prefill": 3.0 * k,
                "first_token": 3.2 * k,
                "total": 3.5 * k,
                "wall": 4.0 * k,
            },
        }
        for frames, k in ((1_200, 1), (10_000, 8))
    ],
}


def test_the_page_in_the_repository_shows_the_figures_in_it() -> None:
    assert (ROOT / "docs" / "figures.html").read_text() == figures_page(BENCHMARKS)


def test_every_figure_says_how_it_was_measured() -> None:
    for file in BENCHMARKS.glob("*.json"):
        data = json.loads(file.read_text())
        assert data["command"], file
        assert data["machine"], file


def test_every_result_has_a_section_and_every_link_a_target() -> None:
    text = figures_page(BENCHMARKS)
    assert "Other results" not in text
    for file in BENCHMARKS.glob("*.json"):
        assert f"benchmarks/{file.name}" in text, file
    anchors = set(re.findall(r'<section id="(\w+)"', text))
    assert set(re.findall(r'href="#(\w+)"', text)) == anchors
    assert re.findall(r'(?:src|href)="(?!#)', text) == []  # self-contained
    for question in (
        "How fast is decoding?",
        "How fast is ingest?",
        "What does micro get right?",
        "Can alerts be trusted?",
    ):
        assert question in text


def test_a_section_states_its_finding_in_numbers(tmp_path: Path) -> None:
    shutil.copy(BENCHMARKS / "dks.json", tmp_path)
    (tmp_path / "ask.json").write_text(json.dumps(ASK))
    text = figures_page(tmp_path)
    assert (
        "Selecting 32 keyframes from 10,000 frames takes 8.0 ms on one core, 228× as fast as the naive algorithm"
        in text
    )
    assert (
        "A question over 10,000 frames (2.8 hours) is answered in 32 s with the micro profile; prefill is 75 % of"
        in text
    )
    assert "first token" not in text  # a sum of stages is none
    assert "a &lt;test&gt;" in text
    assert re.findall(r'<section id="(\w+)"', text) == ["dks", "ask"]  # and none of missing results


def test_a_result_without_a_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "made_up.json").write_text(json.dumps({"command": "sightline <x>", "rows": []}))
    assert "made_up.json: <code>sightline &lt;x&gt;</code>" in figures_page(tmp_path)


@pytest.mark.parametrize("content", [None, "[]", "{"])
def test_files_that_are_no_results_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UsageError, match="sightline bench"):
        figures_page(tmp_path)


@pytest.mark.parametrize("content", [{}, {"rows": []}, {"rows": [{"frames": "many"}], "k": 1}])
def test_a_result_that_lacks_a_field_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "dks.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"^dks\.json: not a result of its benchmark"):
        figures_page(tmp_path)


# ---- charts ------------------------------------------------------------------------------------------------------


def _numbers(svg: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {attribute}="([\d.]+)"', svg)]


def test_bars_are_in_proportion_and_labels_escaped() -> None:
    svg = bars([Bar("a < b", 4.0, "4 s"), Bar("half", 2.0, "2 s", 1), Bar("none", 0.0, "0 s")], title='"quoted"')
    full, half, none = _numbers(svg, "width")
    assert full == pytest.approx(2 * half, abs=0.1)
    assert none == 2
    assert "a &lt; b" in svg
    ElementTree.fromstring(svg)


def test_intervals_lie_on_one_axis() -> None:
    svg = intervals([Interval("x", 0.5, 0.25, 0.75, "50 %")], title="t", mark=(0.25, "chance"))
    [middle] = _numbers(svg, "cx")
    low, high = map(float, re.findall(r'whisker s0" d="M([\d.]+) \d+H([\d.]+)', svg)[0])
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert f"M{low:.1f} 19V" in svg  # the mark at 25 % is where the interval begins
    ElementTree.fromstring(svg)


def test_lines_are_straight_for_powers() -> None:
    points = [(10.0**i, 10.0 ** (2 * i)) for i in range(4)]
    svg = lines(
        [Line("square", points, 0), Line("dot", [(10, 10)], 1)],
        title="t",
        x_label="x",
        x_text=str,
        y_text=str,
        y_goal=5,
    )
    xs, ys = _numbers(svg, "cx"), _numbers(svg, "cy")
    steps = [(b - a, d - c) for a, b, c, d in zip(xs[:3], xs[1:4], ys[:3], ys[1:4], strict=True)]
    assert all(step == pytest.approx(steps[0], abs=0.2) for step in steps)
    assert svg.count('class="line') == 1
    ElementTree.fromstring(svg)


def test_a_short_axis_has_ticks_between_the_powers() -> None:
    svg = lines([Line("a", [(12, 1), (60, 2)], 0)], title="t", x_label="x", x_text=lambda v: f"x{v:g}", y_text=str)
    assert re.findall(r">x(\d+)<", svg) == ["20", "50"]


def test_numbers_have_units_and_few_digits() -> None:
    assert [seconds(v) for v in (0.008, 0.05, 0.5, 3.46, 12.4, 1000)] == [
        "8.0 ms",
        "50 ms",
        "0.50 s",
        "3.5 s",
        "12 s",
        "17 min",
    ]
    assert [factor(v) for v in (1.057, 6.67, 59.8, 1228)] == ["1.06×", "6.7×", "60×", "1,228×"]
    assert [percent(v) for v in (0, 0.0939, 0.8349, 0.9951, 1)] == ["0 %", "9.4 %", "83 %", "99.5 %", "100 %"]
    assert [signed(v) for v in (-0.006, 0.0856)] == ["−0.6 %", "+8.6 %"]
    assert [size(v) for v in (12, 65_171_456, 1_679_705_654)] == ["12 B", "65 MB", "1.68 GB"]
    assert [count(10_800), flops(73.4e9), flops(1.2e12)] == ["10,800", "73 GFLOP/s", "1.2 TFLOP/s"]
