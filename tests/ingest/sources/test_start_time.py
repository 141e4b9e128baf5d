"""The start of footage, and the stream that a file name gives."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from index.errors import UsageError
from index.records import to_micros
from ingest.sources.start_time import find_start, stream_name, time_in_name


@pytest.mark.parametrize(
    ("name", "stream", "time_"),
    [
        ("front_2024-03-01T08-00-00Z.mp4", "front", "2024-03-01T08:00:00+00:00"),
        ("20240301_080000.mkv", "20240301_080000", "2024-03-01T08:00:00+00:00"),
        ("yard cam 3.mp4", "yard-cam-3", None),
        ("front_2024-13-41T08-00-00Z.mp4", "front", None),
    ],
)
def test_names_of_files(name: str, stream: str, time_: str | None) -> None:
    found = time_in_name(name)
    assert (found.isoformat() if found else None) == time_
    if time_ is not None or "cam" in name:
        assert stream_name(name) == stream


def test_the_surest_source_of_the_start_is_taken(tmp_path: Path) -> None:
    named, unnamed = tmp_path / "front_2024-03-01T08-00-00Z.mp4", tmp_path / "front.mp4"
    modified = datetime(2024, 3, 4, tzinfo=UTC)
    for path in (named, unnamed):
        path.touch()
        os.utime(path, (modified.timestamp(), modified.timestamp()))
    given, created = datetime(2024, 3, 2, tzinfo=UTC), datetime(2024, 3, 3, tzinfo=UTC)
    assert find_start(named, given=given, created=created) == (to_micros(given), "given")
    assert find_start(named, given=None, created=created) == (1_709_280_000_000_000, "filename")
    assert find_start(unnamed, given=None, created=created) == (to_micros(created), "container")
    assert find_start(unnamed, given=None, created=None) == (to_micros(modified), "mtime")
    for unset in (datetime(1970, 1, 1, tzinfo=UTC), datetime(1904, 1, 1, tzinfo=UTC)):
        assert find_start(unnamed, given=None, created=unset) == (to_micros(modified), "mtime")
    with pytest.raises(UsageError, match="time zone"):
        find_start(named, given=datetime(2024, 3, 2), created=None)
