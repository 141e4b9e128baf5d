"""Output on terminals that are narrow, or know ASCII only."""

from __future__ import annotations

import io
import sys

import pytest

from pipeline.console import print_error, print_json, print_line, progress, working


def test_ascii_terminals_get_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii", write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, "ascii", write_through=True))
    print_line("18× real time, 前门")
    print_json({"stream": "前门"})
    print_error("tau must lie above −1 …")
    assert out.getvalue() == b'18x real time, \\u524d\\u95e8\n{\n "stream": "\\u524d\\u95e8"\n}\n'
    assert err.getvalue() == b"sightline: tau must lie above -1 ...\n"


@pytest.mark.parametrize("columns", [30, 60, 80, 160])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_progress_bar_fits_its_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding, write_through=True))
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as bar:
        task = bar.add_task("a-long-name-of-a-camera.mp4 (3/10)", total=10, detail="25 frames/s, 25 times real time")
        bar.update(task, advance=4)
    with working("loading the encoders"):
        pass
    text = raw.getvalue().decode(encoding)
    for line in text.replace("\r", "\n").split("\n"):
        plain = "".join(part.partition("m")[2] if i else part for i, part in enumerate(line.split("\x1b[")))
        assert len(plain) <= columns, repr(line)


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress(quiet=True) as bar, working("loading", quiet=True):
        bar.add_task("x", total=1, detail="")
    assert capsys.readouterr().err == ""
