"""Times in the forms that the API and the command line take."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from index.errors import UsageError
from index.records import parse_time


@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        "99999-01-01T00:00:00Z",
        "2024-13-01T00:00:00Z",
        "9" * 100_000,
        10**30,
        -(10**30),
    ],
)
def test_a_time_outside_of_the_calendar_is_refused(time: str | datetime | int) -> None:
    with pytest.raises(UsageError, match="from: ") as refused:
        parse_time(time, "from")
    assert len(str(refused.value)) < 300


def test_the_ends_of_the_calendar() -> None:
    assert parse_time("0001-01-01T00:00:00Z") == -62_135_596_800_000_000
    assert parse_time("9999-12-31T23:59:59.999999Z") == 253_402_300_799_999_999
