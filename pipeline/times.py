"""Times as people write them: RFC 3339, local times of a zone, and English phrases such as "2 hours ago".

`understand_time` returns UTC microseconds, and a note for everything that is not RFC 3339: how the text was understood,
in UTC. Three rules keep a misunderstanding visible:

- a date in figures without an offset, such as `2024-03-01 08:00`, needs a zone; without one it is an error;
- a phrase with a clock time is local time of the zone, UTC without one, and the note names the zone;
- a text that dateparser would guess at (a lone number, `01/02/2024`, `yesterday 25:00`) is an error.

Does not know which command or route a text comes from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from index.errors import UsageError, shown_text
from index.records import from_micros, rfc3339, to_micros
from ingest.sources.naming import time_zone

__all__ = ["MAX_TIME_CHARACTERS", "DayTime", "UnderstoodTime", "parse_day_time", "understand_time", "zone_of"]

MAX_TIME_CHARACTERS = 64
"""The largest number of characters of a time."""

_EXAMPLE = "write 2024-03-01T08:00:00Z, 'yesterday 14:00' or '2 hours ago'"
_AGO = re.compile(r"(?:.+\bago|now)", re.IGNORECASE)
_CLOCK = re.compile(r"\d:\d|\d\s*[ap]\.?m\b", re.IGNORECASE)
_TWO_ORDERS = re.compile(r"\b\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b")
_DATE_FIRST = re.compile(r"\d{4}\D?\d")
_NAMED_ZONE = re.compile(r"(?:\b(?:UTC|GMT)|\dZ|[+-]\d\d:?\d\d)$", re.IGNORECASE)
_DAY_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)-([01]?\d|2[0-4]):([0-5]\d)")
_MINUTES_A_DAY = 24 * 60
_QUARTER = 15 * 60_000_000
_DATEPARSER = {
    "PREFER_DATES_FROM": "past",
    "RETURN_TIME_AS_PERIOD": True,
    "PARSERS": ["relative-time", "absolute-time"],
}


@dataclass(frozen=True, slots=True)
class UnderstoodTime:
    """A time, and how its text was understood."""

    micros: int
    """UTC microseconds."""
    note: str | None = None
    """How the text was understood, for the user; None for RFC 3339, which leaves no doubt."""


@dataclass(frozen=True, slots=True)
class DayTime:
    """A stretch of every day in a zone's local time, such as 22:00 to 06:00; it may span midnight."""

    start: int
    """Minutes after midnight, inclusive."""
    end: int
    """Minutes after midnight, exclusive, at most 1440; less than or equal to `start` if the stretch spans midnight."""
    zone: ZoneInfo
    """The zone of the local time."""

    def contains(self, captured_at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some times, UTC microseconds, int64[N], are in the stretch, bool[N]."""
        quarters, place = np.unique(captured_at // _QUARTER, return_inverse=True)  # zones change at quarters of hours
        offsets = [from_micros(at * _QUARTER).astimezone(self.zone).utcoffset() for at in quarters.tolist()]
        shift = np.array([round((each or timedelta()).total_seconds()) for each in offsets], np.int64) * 1_000_000
        minutes = (captured_at + shift[place]) // 60_000_000 % _MINUTES_A_DAY if len(captured_at) else captured_at
        after, before = minutes >= self.start, minutes < self.end
        return after & before if self.start < self.end else after | before

    def __str__(self) -> str:
        clocks = (f"{minutes // 60:02d}:{minutes % 60:02d}" for minutes in (self.start, self.end))
        return f"{'-'.join(clocks)} ({self.zone.key})"


def zone_of(name: str | None) -> ZoneInfo | None:
    """The zone of an IANA name such as Europe/Amsterdam; None for None. Raises UsageError for an unknown name."""
    if name is not None and len(name) > MAX_TIME_CHARACTERS:
        raise UsageError(f"--timezone {shown_text(name[:40])}…: too long; use an IANA name such as Europe/Amsterdam")
    return time_zone(name)


def parse_day_time(text: str, zone: ZoneInfo | None, option: str = "--time-of-day") -> DayTime:
    """The stretch of the day of a text such as `22:00-06:00`, in UTC if `zone` is None.

    Raises:
        UsageError: the text has another form, or the stretch is empty.
    """
    found = _DAY_TIME.fullmatch(text.replace(" ", "")) if len(text) <= MAX_TIME_CHARACTERS else None
    if found is None:
        raise UsageError(f"{option} {shown_text(text[:40])}: not a time of day; write 22:00-06:00")
    first, second, third, fourth = (int(part) for part in found.groups())
    start, end = first * 60 + second, third * 60 + fourth
    if start == end or end > _MINUTES_A_DAY:
        raise UsageError(
            f"{option} {text}: the stretch must end at another time than it begins, at 24:00 at the latest"
        )
    return DayTime(start, end, zone or ZoneInfo("UTC"))


def understand_time(
    text: str,
    option: str = "time",
    *,
    zone: ZoneInfo | None = None,
    now: datetime | None = None,
    latest: bool = False,
) -> UnderstoodTime:
    """The time that `text` means.

    Args:
        text: RFC 3339, a local time such as `2024-03-01 08:00`, or an English phrase.
        option: name of the option or field, for errors and notes.
        zone: zone of local times.
        now: the present, which phrases count from, with a time zone; read from the clock when None.
        latest: of a local time that happens twice, when a clock is set back, take the second; else the first.

    Raises:
        UsageError: the text is too long, is no time, is ambiguous, or needs a zone that is not given.
    """
    if len(text) > MAX_TIME_CHARACTERS:
        raise UsageError(f"{option}: a time has at most {MAX_TIME_CHARACTERS} characters; {_EXAMPLE}")
    plain = " ".join(text.split())
    shown = shown_text(text)
    try:
        exact = datetime.fromisoformat(plain)
    except ValueError:
        exact = None
    try:
        if exact is not None and exact.tzinfo is not None:
            return UnderstoodTime(to_micros(exact))
        if exact is not None and zone is None:
            raise UsageError(
                f"{shown} has no time zone; write {exact.isoformat()}Z for UTC, or pass --timezone Europe/Amsterdam"
            )
        if exact is not None and zone is not None:
            micros, remark = _local(exact, zone, latest)
            return UnderstoodTime(micros, f"{option} {shown} is {rfc3339(micros)} ({zone.key}{remark})")
        return _phrase(plain, option, zone or ZoneInfo("UTC"), now or datetime.now(UTC), latest, given=zone is not None)
    except (OverflowError, ValueError) as error:  # a year that datetime cannot hold
        raise UsageError(f"{option}: {shown!r} is not a time ({error}); {_EXAMPLE}") from None
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


def _phrase(text: str, option: str, zone: ZoneInfo, now: datetime, latest: bool, *, given: bool) -> UnderstoodTime:
    """The time of an English phrase. Raises UsageError without the name of the option."""
    vague = UsageError(f"{shown_text(text)!r} is not a time; {_EXAMPLE}")
    if not text.isascii() or not text.isprintable() or _DATE_FIRST.match(text) or not text:
        raise vague
    if _TWO_ORDERS.search(text):
        raise UsageError(f"{text!r}: day or month first? Write the year first: 2024-03-01")
    if _AGO.fullmatch(text):  # a duration: counted in UTC, so that a change of the clock does not alter it
        found = _parse(text, now.astimezone(UTC).replace(tzinfo=None))
        if found is None or found.date_obj.tzinfo is not None:
            raise vague
        micros = to_micros(found.date_obj.replace(tzinfo=UTC, microsecond=0))
        return UnderstoodTime(micros, f"{option} '{text}' is {rfc3339(micros)}")
    found = _parse(text, now.astimezone(zone).replace(tzinfo=None))
    if found is None or found.period not in ("day", "time") or (found.period == "day" and _CLOCK.search(text)):
        raise vague
    at = found.date_obj.replace(microsecond=0)
    if at.tzinfo is not None:
        if not _NAMED_ZONE.search(text):
            raise UsageError(f"{text!r}: abbreviations of zones are ambiguous; pass --timezone Europe/Amsterdam")
        micros = to_micros(at)
        return UnderstoodTime(micros, f"{option} '{text}' is {rfc3339(micros)}")
    if found.period == "day":
        at = at.replace(hour=0, minute=0, second=0)
    micros, remark = _local(at, zone, latest)
    place = f"{zone.key}{remark}" if given else f"in UTC, because no --timezone is given{remark}"
    return UnderstoodTime(micros, f"{option} '{text}' is {rfc3339(micros)} ({place})")


def _local(at: datetime, zone: ZoneInfo, latest: bool) -> tuple[int, str]:
    """UTC microseconds of a naive local time, and a remark if the zone has that time twice or not at all."""
    first, second = (to_micros(at.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    if first == second:
        return first, ""
    clock = at.strftime("%Y-%m-%d %H:%M")
    if first > second:  # the clock was set forward over this time
        shown = from_micros(first).astimezone(zone).strftime("%H:%M")
        return first, f": the clock skips {clock}, which is read as {shown}"
    taken, other = (second, first) if latest else (first, second)
    order = "second" if latest else "first"
    return taken, f": {clock} happens twice, the {order} is meant; the other is {rfc3339(other)}"


def _parse(text: str, now: datetime) -> Any:
    """What dateparser finds in an English phrase, counted from the naive time `now`; None for nothing."""
    from dateparser.date import DateDataParser  # 0.3 s, which only phrases pay

    parser = DateDataParser(languages=["en"], settings={**_DATEPARSER, "RELATIVE_BASE": now})
    found = parser.get_date_data(text)
    return None if found.date_obj is None else found
