"""Times as people write them: exact forms, local times across changes of the clock, phrases, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import UsageError
from index.records import from_micros, parse_rfc3339, to_micros
from pipeline.times import MAX_TIME_CHARACTERS, DayTime, parse_day_time, understand_time, zone_of

NOW = datetime(2026, 11, 26, 1, 30, 12, 345_678, tzinfo=UTC)
AMSTERDAM = ZoneInfo("Europe/Amsterdam")
ZONES = st.sampled_from(["Europe/Amsterdam", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "UTC"])


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), st.integers(-840, 840))
def test_rfc3339_is_exact_and_needs_no_note(at: datetime, minutes: int) -> None:
    from datetime import timezone

    aware = at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    understood = understand_time(aware.isoformat(), now=NOW)
    assert understood.micros == parse_rfc3339(aware.isoformat())
    assert understood.note is None


@given(st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1)), ZONES, st.booleans())
def test_local_times_are_those_of_the_zone(at: datetime, name: str, latest: bool) -> None:
    zone = ZoneInfo(name)
    understood = understand_time(at.isoformat(" "), zone=zone, now=NOW, latest=latest)
    back = from_micros(understood.micros).astimezone(zone).replace(tzinfo=None)
    assert understood.note is not None
    if "skips" in understood.note:
        assert back > at
    else:
        assert back == at
    other = [to_micros(at.replace(tzinfo=zone, fold=fold)) for fold in (0, 1)]
    if "happens twice" in understood.note:
        assert understood.micros == (max(other) if latest else min(other))
        assert min(other) < max(other)


def test_a_local_time_that_happens_twice_is_said() -> None:
    text = "2024-10-27 02:30"
    first = understand_time(text, "--from", zone=AMSTERDAM)
    second = understand_time(text, "--to", zone=AMSTERDAM, latest=True)
    assert first.micros == parse_rfc3339("2024-10-27T00:30:00Z")
    assert second.micros == parse_rfc3339("2024-10-27T01:30:00Z")
    assert first.note == (
        "--from 2024-10-27 02:30 is 2024-10-27T00:30:00Z (Europe/Amsterdam: 2024-10-27 02:30 happens twice, the first "
        "is meant; the other is 2024-10-27T01:30:00Z)"
    )
    assert "the second is meant; the other is 2024-10-27T00:30:00Z" in str(second.note)


def test_a_local_time_that_the_clock_skips_is_said() -> None:
    understood = understand_time("2024-03-31 02:30", zone=AMSTERDAM)
    assert understood.micros == parse_rfc3339("2024-03-31T01:30:00Z")
    assert "the clock skips 2024-03-31 02:30, which is read as 03:30" in str(understood.note)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2 hours ago", None, "2026-11-25T23:30:12Z"),
        ("an hour ago", "Asia/Tokyo", "2026-11-26T00:30:12Z"),
        ("90 minutes ago", "Europe/Amsterdam", "2026-11-26T00:00:12Z"),
        ("now", "Europe/Amsterdam", "2026-11-26T01:30:12Z"),
        ("2 days ago", None, "2026-11-24T01:30:12Z"),
        ("yesterday 14:00", "Europe/Amsterdam", "2026-11-25T13:00:00Z"),
        ("yesterday at 2pm", "America/New_York", "2026-11-24T19:00:00Z"),  # it is still the 25th there
        ("yesterday", "Europe/Amsterdam", "2026-11-24T23:00:00Z"),
        ("today", "Europe/Amsterdam", "2026-11-25T23:00:00Z"),
        ("yesterday 14:00", None, "2026-11-25T14:00:00Z"),
        ("1 March 2024 14:00", "Europe/Amsterdam", "2024-03-01T13:00:00Z"),
        ("1 July 2024 14:00", "Europe/Amsterdam", "2024-07-01T12:00:00Z"),
        ("monday 08:00", "Europe/Amsterdam", "2026-11-23T07:00:00Z"),
        ("yesterday 14:00 UTC", "Europe/Amsterdam", "2026-11-25T14:00:00Z"),
        ("yesterday 14:00 +02:00", None, "2026-11-25T12:00:00Z"),
    ],
)
def test_phrases(text: str, zone: str | None, expected: str) -> None:
    understood = understand_time(text, "--from", zone=zone_of(zone), now=NOW)
    assert understood.micros == parse_rfc3339(expected)
    assert str(understood.note).startswith(f"--from '{text}' is {expected}")


def test_a_duration_is_not_changed_by_the_clock() -> None:
    after = datetime(2024, 10, 27, 3, 0, tzinfo=UTC)  # 04:00 in Amsterdam, where an hour was repeated
    found = understand_time("5 hours ago", zone=AMSTERDAM, now=after)
    assert found.micros == parse_rfc3339("2024-10-26T22:00:00Z")


def test_a_phrase_without_a_zone_says_that_it_is_utc() -> None:
    note = understand_time("yesterday 14:00", "--from", now=NOW).note
    assert note == "--from 'yesterday 14:00' is 2026-11-25T14:00:00Z (in UTC, because no --timezone is given)"


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "hello", "the day before the flood", "10", "a", "may", "2024", "99999999", "now ago yes"),
        *("100000 years ago", "999999999999 days ago", "yesterday 25:00", "this morning", "🙂", "٢ hours ago"),
        *("01/02/2024", "1.2.2024 10:00", "yesterday 14:00 CET", "2024-13-01T00:00:00Z", "0000-01-01T00:00:00Z"),
        *("yesterday\x00", "\x1b[31m", "2024-03-01T08:00:00", "2024-03-01 08:00", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_what_is_doubtful_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--from: .*(2024-03-01|--timezone)|9999") as caught:
        understand_time(text, "--from", now=NOW)
    assert all(letter.isprintable() for letter in str(caught.value))


@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    try:
        understood = understand_time(text, now=NOW, zone=AMSTERDAM)
    except UsageError:
        return
    assert len(text) <= MAX_TIME_CHARACTERS
    assert from_micros(understood.micros)


def test_a_long_text_is_refused_before_it_is_read() -> None:
    with pytest.raises(UsageError, match="at most 64 characters"):
        understand_time("1 hour and " * 100_000 + "ago")
    with pytest.raises(UsageError, match="too long"):
        zone_of("Europe/" * 1000)


def test_times_of_day() -> None:
    night = parse_day_time("22:00-06:00", AMSTERDAM)
    assert (night.start, night.end, str(night)) == (1320, 360, "22:00-06:00 (Europe/Amsterdam)")
    assert parse_day_time("0:00 - 24:00", None).end == 1440
    for wrong in ("", "22-6", "24:00-01:00", "22:00-22:00", "22:00-24:30", "22:60-23:00", "1" * 100):
        with pytest.raises(UsageError, match=r"^--time-of-day"):
            parse_day_time(wrong, None)


@given(
    st.lists(st.datetimes(datetime(1972, 1, 1), datetime(2037, 1, 1)), max_size=30),
    ZONES,
    st.integers(0, 1439),
    st.integers(0, 1440),
)
def test_frames_of_a_time_of_day(times: list[datetime], name: str, start: int, end: int) -> None:
    if start == end:
        return
    stretch = DayTime(start, end, ZoneInfo(name))
    moments = [at.replace(tzinfo=UTC) for at in times]
    expected = []
    for at in moments:
        local = at.astimezone(ZoneInfo(name))
        minutes = local.hour * 60 + local.minute
        expected.append(start <= minutes < end if start < end else minutes >= start or minutes < end)
    found = stretch.contains(np.array([to_micros(at) for at in moments], np.int64))
    assert found.tolist() == expected
