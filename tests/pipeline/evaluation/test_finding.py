"""Accuracy of search: labels, and the command over a store of two videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.errors import UsageError
from index.records import parse_rfc3339
from pipeline.evaluation.finding import labels_text, read_labels, rendered_labels
from tests.support.command import Command


def test_rendered_labels_say_what_is_there_and_what_is_not() -> None:
    labels = rendered_labels(101, 2.0, 2)
    assert labels == rendered_labels(101, 2.0, 2)
    shown = {(label.stream, label.query) for label in labels if label.spans and not label.negated}
    absent = {(label.stream, label.query) for label in labels if not label.spans}
    assert shown
    assert len(absent) == 24
    assert not shown & absent
    assert {(label.stream, label.query.removeprefix("no ")) for label in labels if label.negated} == shown
    assert all(parse_rfc3339(start) < parse_rfc3339(end) for label in labels for start, end in label.spans)


def test_labels_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    labels = rendered_labels(101, 1.0, 1)
    path.write_text(labels_text(labels))
    assert read_labels(path) == labels
    for line in ('{"query": "x"}', '{"query": "x", "stream": "s", "spans": [["now", "then"]]}', "no json"):
        path.write_text("\n" + line + "\n")
        with pytest.raises(UsageError, match="line 2"):
            read_labels(path)
    path.write_text("\n")
    with pytest.raises(UsageError, match="no query"):
        read_labels(path)


def test_a_labelled_store_is_searched(sightline: Command, filled: str, profile: str, tmp_path: Path) -> None:
    """Every moment of `front` is right if the whole stream is the truth, and wrong for the query negated."""
    path = tmp_path / "labels.jsonl"
    whole = [["2024-03-01T08:00:00Z", "2024-03-01T08:01:00Z"]]
    rows = [
        {"query": "red dog", "stream": "front", "spans": whole},
        {"query": "no red dog", "stream": "front", "spans": whole, "negated": True},
        {"query": "blue car", "stream": "back"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("eval", "search", "--labels", path, "--store", filled, "--profile", profile)
    (found,) = sightline(*arguments, "--json").data
    assert found["queries"] == {"present": 1, "absent": 1, "negated": 1}
    assert (
        found["precision"]["1"]["share"] == found["recall"]["10"]["share"] == found["average_precision"]["share"] == 1
    )
    assert found["negated"]["share"] == 0
    assert found["abstained"]["share"] == 0  # a ranked list always returns something
    assert found["separation"] in (0, 0.5, 1)
    table = sightline(*arguments).out
    assert "| nothing there: abstains | 0 (0–79) |" in table
    wrong = sightline("eval", "search", "--store", filled)
    assert wrong.code == 2
    assert "--labels" in wrong.err
