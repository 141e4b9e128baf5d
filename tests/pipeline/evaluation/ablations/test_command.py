"""The command `eval ablate` over rendered footage with a tiny profile."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command import Command


def test_a_run_goes_on_with_its_next_row(sightline: Command, profile: str, tmp_path: Path) -> None:
    """A second run answers nothing again; another run in the same folder is an error."""
    work, out = tmp_path / "work", tmp_path / "run"
    common = ("--profile", profile, "--work", work, "--streams", 1, "--seconds", 60, "--each", 1, "--quiet")
    command = ("eval", "ablate", *common, "--out", out, "--training-streams", 1, "--training-steps", 1)
    assert sightline(*command, "--group", "mergers").code == 0
    report = json.loads((out / "report.json").read_text())
    rows = report["groups"]["mergers"]
    assert rows[0]["against_base"] is None
    assert len(report["trained"]) == 4
    assert all(row["accuracy"]["total"] == report["head"]["questions"] for row in rows)
    assert "Q-former, trained here" in (out / "report.html").read_text()
    written = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert sightline(*command, "--group", "mergers").code == 0
    assert written == {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert sightline(*command, "--seed", 7).code == 2
    assert "give one of" in sightline(*command, "--group", "colours").err
