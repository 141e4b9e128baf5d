"""`sightline compact` as a person or a supervisor runs it."""

from __future__ import annotations

import json
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
