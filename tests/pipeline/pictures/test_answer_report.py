"""The report: self-contained, escaped, and drawn to scale."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from index.window import Window
from pipeline.pictures.answer_report import Reported, StageTime, render_report, write_report
from pipeline.pictures.timeline import CELLS, WIDTH, heat_strip
from pipeline.questions.asker import Asked, Selection

BEGAN = 1_709_280_000_000_000
SECOND = 1_000_000
NASTY = '<script>alert("x")</script>'
JPEG = b"\xff\xd8 a picture \xff\xd9"


def item(*, truth: str | None = "red", streams: int = 1, question: str = "What colour?") -> Reported:
    n = 100
    index = np.repeat(np.arange(streams, dtype=np.int32), n)
    times = np.tile(BEGAN + np.arange(n, dtype=np.int64) * SECOND, streams)
    names = [f"camera-{i + 1}" for i in range(streams)]
    window = Window(names, index, times, np.zeros(n * streams), np.zeros((n * streams, 2), np.float32))
    scores = np.linspace(0.1, 0.4, n * streams).astype(np.float32)
    keyframes = np.array([40, 90, 10], np.int64)
    asked = Asked(
        question=question,
        answer="red",
        option="red",
        probabilities={"red": 0.75, NASTY: 0.25},
        keyframes=[],
        frames=n,
        window_frames=n,
        visual_tokens=123,
        timings_seconds={"dks": 0.25, "total": 1.5},
        notices=["a notice"],
    )
    pictures = {(names[0], f"2024-03-01T08:{s // 60:02d}:{s % 60:02d}Z"): JPEG for s in (40, 90, 10)}
    evidence = [(BEGAN + 35 * SECOND, BEGAN + 45 * SECOND)]
    return Reported(asked, Selection(window, keyframes, scores, {}), pictures, names[0], "colour", truth, evidence)


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", [item()], title="Title", stages=[StageTime("render", 2.0, "H.264")])
    text = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}" in text
    assert text.count("<img") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_every_text_is_escaped() -> None:
    text = render_report([item(question=NASTY, truth=NASTY)], title=NASTY, subtitle=NASTY, facts=[(NASTY, NASTY)])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 6


def test_answers_are_shown_beside_the_truth() -> None:
    text = render_report([item(), item(truth="blue"), item(truth=None)], title="T")
    assert "1 of 2 answers are right" in text
    assert text.count('class="verdict right"') == 1
    assert text.count('class="verdict wrong"') == 1
    assert "75 %" in text
    assert "08:00:35 to 08:00:45" in text
    assert "a notice" in text


def test_marks_and_evidence_are_to_scale() -> None:
    text = render_report([item()], title="T")
    marks = [float(x) for x in re.findall(r'd="M([\d.]+) 14V38"', text)]
    assert marks == [10 * WIDTH / 100, 40 * WIDTH / 100, 90 * WIDTH / 100]
    assert 'x="350.0" y="10" width="100.0"' in text
    assert text.count('class="proof"') == 1  # the keyframe at 40 s lies in the evidence


def test_each_stream_has_its_lane_and_evidence_is_in_its_own() -> None:
    text = render_report([item(streams=2)], title="T")
    assert text.count('rx="3" fill="#f1f5f9"') == 2
    assert text.count("fill-opacity") == 1


def test_the_heat_strip_takes_the_best_of_each_cell_and_leaves_gaps_open() -> None:
    times = BEGAN + np.array([0, 1, 2, 500, 999], np.int64) * SECOND
    scores = np.array([0.0, 1.0, 0.5, 0.2, 0.0], np.float32)
    cells = heat_strip(times, scores, start=BEGAN, end=BEGAN + 1000 * SECOND, low=0.0, high=1.0)
    assert [cell.x for cell in cells] == [0.0, WIDTH / 2, WIDTH - WIDTH / CELLS]
    assert cells[0].colour == "#312e81"  # the darkest: a score of 1
    assert cells[2].colour == "#f1f5f9"
    flat = heat_strip(times, np.full(5, 0.5, np.float32), start=BEGAN, end=BEGAN + 1000 * SECOND, low=0.5, high=0.5)
    assert {cell.colour for cell in flat} == {"#f1f5f9"}


def test_stages_fill_the_bar() -> None:
    text = render_report([], title="T", stages=[StageTime("a", 1.0), StageTime("b", 3.0)])
    assert 'x="0.0" y="0" width="250.0"' in text
    assert 'x="250.0" y="0" width="750.0"' in text
    assert "4.0 s in all" in text


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("pipeline.pictures.answer_report.render_report", lambda *_, **__: "\udcff")
    with pytest.raises(UnicodeEncodeError):
        write_report(path, [], title="T")
    assert path.read_text() == "old"


def test_footage_without_gaps_has_a_timeline_without_gaps() -> None:
    for seconds in (1, 2, 3, 60, 240, 251, 3600):
        times = BEGAN + np.arange(seconds, dtype=np.int64) * SECOND
        scores = np.zeros(seconds, np.float32)
        cells = heat_strip(times, scores, start=BEGAN, end=BEGAN + seconds * SECOND, low=0.0, high=1.0)
        edges = [cell.x for cell in cells] + [float(WIDTH)]
        assert all(edge <= cell.x + cell.width for cell, edge in zip(cells, edges[1:], strict=True)), seconds


def test_a_single_question_has_no_number_and_an_empty_head_no_card() -> None:
    one = render_report([item(truth=None)], title="T")
    assert "<h2>What colour?</h2>" in one
    assert one.count('class="card"') == 1
    assert "<h2>2. What colour?</h2>" in render_report([item(), item()], title="T")
