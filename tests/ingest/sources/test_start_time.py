"""The start of footage and its source."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from index.errors import StartImplausible, UsageError
from index.records import Time, parse_zoned_time, to_micros
from ingest.sources.start_time import FoundStart, find_start


def test_the_surest_source_of_the_start_is_taken(tmp_path: Path) -> None:
    named, unnamed = tmp_path / "front_2024-03-01T08-00-00Z.mp4", tmp_path / "front.mp4"
    modified = datetime(2024, 3, 4, tzinfo=UTC)
    for path in (named, unnamed):
        path.touch()
        os.utime(path, (modified.timestamp(), modified.timestamp()))
    given, created = datetime(2024, 3, 2, tzinfo=UTC), datetime(2024, 3, 3, tzinfo=UTC)
    assert find_start(named, given=given, created=created) == FoundStart(to_micros(given), "given", "UTC")
    assert find_start(named, given=None, created=created) == FoundStart(1_709_280_000_000_000, "filename", "UTC")
    assert find_start(unnamed, given=None, created=created) == FoundStart(to_micros(created), "container")
    assert find_start(unnamed, given=None, created=None) == FoundStart(to_micros(modified), "mtime")
    for unset in (datetime(1970, 1, 1, tzinfo=UTC), datetime(1904, 1, 1, tzinfo=UTC)):
        assert find_start(unnamed, given=None, created=unset) == FoundStart(to_micros(modified), "mtime")
    with pytest.raises(UsageError, match="time zone"):
        find_start(named, given=datetime(2024, 3, 2), created=None)


@pytest.mark.parametrize(
    ("given", "zone"),
    [
        ("2024-03-01T09:00:00+01:00", "+01:00"),
        ("2024-03-01T02:30:00-05:30", "-05:30"),
        ("2024-03-01T08:00:00Z", "UTC"),
        (datetime(2024, 3, 1, 9, tzinfo=ZoneInfo("Europe/Amsterdam")), "Europe/Amsterdam"),
        (1_709_280_000_000_000, "UTC"),
    ],
)
def test_the_zone_of_a_given_start_is_kept(given: Time, zone: str, tmp_path: Path) -> None:
    found = find_start(tmp_path, given=parse_zoned_time(given, "--start"), created=None)
    assert found == FoundStart(1_709_280_000_000_000, "given", zone)
    assert parse_zoned_time(None) is None


def test_the_modification_time_is_the_end_of_the_footage(tmp_path: Path) -> None:
    path = tmp_path / "front.mp4"
    path.touch()
    os.utime(path, (1_709_280_100, 1_709_280_100))
    assert find_start(path, given=None, created=None, duration=100.0) == FoundStart(1_709_280_000_000_000, "mtime")


def test_footage_of_the_future_is_refused_unless_it_is_given(tmp_path: Path) -> None:
    soon, later = datetime.now(UTC) + timedelta(hours=20), datetime.now(UTC) + timedelta(days=400)
    path = tmp_path / f"front_{later:%Y%m%d_%H%M%S}.mp4"
    path.touch()
    with pytest.raises(StartImplausible, match=r"in the future; pass the true time with --start"):
        find_start(path, given=None, created=None)
    assert find_start(path, given=later, created=None)[1] == "given"
    (tmp_path / "plain.mp4").touch()
    with pytest.raises(StartImplausible, match="by its container"):
        find_start(tmp_path / "plain.mp4", given=None, created=later)
    assert find_start(tmp_path / "plain.mp4", given=None, created=soon)[1] == "container"
