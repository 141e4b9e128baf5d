"""`sightline compact` as a person or a supervisor runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index.store import Store
from pipeline.cli.main import app
from tests.support.offset_batches import feed
from tests.support.records import PAIR


def test_compact_says_what_it_would_do_does_it_and_finds_nothing_more(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    feed(store, 0, 5)

    def run(*arguments: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(app, ["compact", "--store", store.url, "--json", *arguments])
        assert done.exit_code == 0, done.output
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    assert [(t["table"], t["merged"], t["files_after"]) for t in run("--dry-run")] == [
        ("frames", 10, 10),
        ("patches", 10, 10),
        ("segments", 10, 10),
    ]
    assert [(t["merged"], t["files_after"]) for t in run("--stream", "front")] == [(5, 6)] * 3
    assert [(t["merged"], t["files_after"]) for t in run()] == [(5, 2)] * 3
    assert [t["merged"] for t in run()] == [0, 0, 0]
    assert store.verify() == []


def test_compact_refuses_what_cannot_be(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    feed(store, 0, 1)
    for arguments, text in ((["--stream", "nowhere"], "nowhere"), (["--every", "5", "--dry-run"], "--dry-run")):
        done = CliRunner().invoke(app, ["compact", "--store", store.url, *arguments])
        assert done.exit_code != 0
        with pytest.raises(Exception, match=text):
            raise done.exception or AssertionError


def test_compact_applies_the_retention_of_the_settings(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    feed(store, 0, 5)
    settings = tmp_path / "sightline.toml"
    settings.write_text('[retention."fr*"]\ndays = 30\n')
    arguments = ["--config", str(settings), "compact", "--store", store.url]
    planned = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "(retention 'fr*'): would be deleted" in planned.stdout
    assert {s.stream_id for s in store.streams()} == {"back", "front"}
    limited = CliRunner().invoke(app, [*arguments, "--stream", "b*"])
    assert "retention" not in limited.stdout
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert re.search(r"\(retention 'fr\*'\): \d+ frames deleted, \d+\.\d MB", done.stdout)
    assert {s.stream_id for s in store.streams()} == {"back"}
    beat = tmp_path / "beat"
    again = CliRunner().invoke(app, [*arguments, "--heartbeat", str(beat)])
    assert beat.exists()
    assert "nothing was merged or removed" in again.stdout
    assert store.verify() == []
    settings.write_text('[retention."fr*"]\nweeks = 30\n')
    wrong = CliRunner().invoke(app, arguments)
    assert "retention.fr*.weeks: this key is not known" in str(wrong.exception)


def test_patterns_of_streams(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    feed(store, 0, 1)
    listed = CliRunner().invoke(app, ["streams", "--store", store.url, "--stream", "f*", "--json"])
    assert [row["stream_id"] for row in json.loads(listed.stdout)] == ["front"]
    none = CliRunner().invoke(app, ["forget", "--store", store.url, "--stream", "x*", "--yes"])
    assert "no stream of the store matches" in str(none.exception)
    gone = CliRunner().invoke(app, ["forget", "--store", store.url, "--stream", "*", "--yes", "--json"])
    assert [row["stream_id"] for row in json.loads(gone.stdout)] == ["back", "front"]
    assert store.streams() == []
