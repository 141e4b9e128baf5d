"""What a file's name says: the stream that it belongs to and the time of its first frame.

Three ways, the first that applies:
- a pattern that the user gives (`--names`), such as `{date}/{hour}/{stream}/{minute}.{second}.mp4`;
- a layout of a known recorder (`LAYOUTS`), which every file of the same run must have;
- free reading: the first time that is written anywhere in the name, and what is left of the name as the stream. Where
  nothing is left but digits and words such as `video`, the folder names the stream.

A time in a name without an offset is UTC, unless a time zone is given. This module reads no file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

from index.errors import UsageError, mask_url
from index.records import ClockFold
from ingest.sources.url_policy import split_url

__all__ = [
    "LAYOUTS",
    "FileName",
    "LocalTime",
    "NamePattern",
    "Overlap",
    "local_to_utc",
    "printable",
    "read_name",
    "recognize_layout",
    "stream_id_of",
    "time_in_name",
    "time_zone",
]

Overlap = Literal["error", "first", "last"]
"""If files claim the same seconds: stop, or keep those of the first or of the last in the order of sources."""

_MAX_ENCODED = 200
"""Bytes of a percent-encoded stream id; it becomes the name of a folder, which most file systems bound at 255 bytes."""

_MAX_PATH = 4096
"""Characters at the end of a path that a pattern reads."""
_MAX_NAME = 512
"""Characters of a name that are read. File systems bound names at 255 bytes; a manifest may not."""

_FIRST_YEAR = 1990
"""A time in a name before this year is taken for something else, such as a serial number."""


@dataclass(frozen=True, slots=True)
class FileName:
    """What was read in one file's name."""

    stream: str
    """Stream id."""

    start: datetime | None
    """UTC time of the first frame; None where the name holds no time."""

    zone: str
    """How the time was read: `UTC`, an offset such as `+01:00`, a zone's name, or `epoch`; empty without a time."""

    note: str = ""
    """What a reader should know about the time, for instance that it occurs twice on that day; often empty."""

    fold: ClockFold | None = None
    """How a local time was read that daylight saving makes doubtful; None where it is not doubtful."""


# ---- stream ids ------------------------------------------------------------------------------------------------------


def stream_id_of(text: str) -> str:
    """A stream id made from any text: letters, digits and combining marks of every script are kept, composed (NFC).

    Everything else but `.`, `_` and `-` becomes `-`. A text that is too long for a folder's name is cut and ends in a
    digest of the whole, so that two texts do not become one id.
    """
    composed = unicodedata.normalize("NFC", text)
    kept = "".join(
        letter if unicodedata.category(letter)[0] in "LMN" or letter in "._-" else " " for letter in composed
    )
    name = "-".join(kept.split()).strip("-_.")
    while name and unicodedata.category(name[0])[0] == "M":  # a mark without its letter
        name = name[1:].lstrip("-_.")
    if len(name) <= 128 and len(quote(name)) <= _MAX_ENCODED:
        return name
    short = name
    while len(short) > 100 or len(quote(short)) > _MAX_ENCODED - 9:
        short = short[: min(100, len(short) - 1)]
    return f"{short.rstrip('-_.')}-{sha256(name.encode()).hexdigest()[:8]}"


def printable(path: str) -> str:
    """A path as text that UTF-8 can hold: bytes of a name that are no UTF-8 are written as `\\xdf`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# ---- times -----------------------------------------------------------------------------------------------------------

_OFFSET = r"(?P<z>Z|z|[+-](?:0\d|1[0-4])[:-]?(?:00|15|30|45)(?!\d))?"
_TIMES = (
    re.compile(  # 2024-03-01T08-00-00Z, 2024.03.01_08.00.00, 20240301_080000+0100, 20240301080000
        r"(?<!\d)(?P<y>(?:19|20)\d\d)(?P<ds>[-._]?)(?P<mo>0[1-9]|1[0-2])(?P=ds)(?P<d>0[1-9]|[12]\d|3[01])"
        r"[T _.-]{0,3}(?P<h>[01]\d|2[0-3])(?P<ts>[-:._]?)(?P<mi>[0-5]\d)(?P=ts)(?P<s>[0-5]\d)"
        r"(?:(?:[.,](?P<fraction>\d{1,6})(?!\d))|(?P<ms>\d{3})(?!\d)|(?!\d))" + _OFFSET
    ),
    re.compile(r"(?<![\d.])(?P<epoch_ms>1\d{12})(?![\d])"),
    re.compile(r"(?<![\d.])(?P<epoch>1\d{9}|9\d{8})(?P<fraction>\.\d{1,6})?(?!\d)"),
)


class LocalTime(NamedTuple):
    """A time in a name, in UTC."""

    moment: datetime
    """UTC."""
    zone: str = "UTC"
    """How it was read, as `FileName.zone`."""
    note: str = ""
    """As `FileName.note`."""
    fold: ClockFold | None = None
    """As `FileName.fold`."""


def time_in_name(name: str, zone: ZoneInfo | None = None) -> tuple[LocalTime, str] | None:
    """The first time written in a name, and the name without it. None where there is none.

    Calendar times with 14 digits or with separators, with fractions and an offset, and seconds or milliseconds since
    1970.
    """
    for form in _TIMES:
        for found in form.finditer(name):
            read = _time_of(found.groupdict(), zone)
            if read is not None:
                return read, name[: found.start()] + " " + name[found.end() :]
    return None


def _time_of(parts: Mapping[str, str | None], zone: ZoneInfo | None) -> LocalTime | None:
    for name, scale in (("epoch_ms", 1000), ("epoch", 1)):
        digits = parts.get(name)
        if digits:
            seconds = int(digits) / scale + float(parts.get("fraction") or 0)
            return LocalTime(datetime.fromtimestamp(seconds, UTC), "epoch")
    numbers = {name: int(str(parts[name])) for name in ("y", "mo", "d", "h", "mi", "s")}
    fraction = (parts.get("fraction") or parts.get("ms") or "0")[:6].ljust(6, "0")
    try:
        local = datetime(
            numbers["y"], numbers["mo"], numbers["d"], numbers["h"], numbers["mi"], numbers["s"], int(fraction)
        )
    except ValueError:
        return None
    if local.year < _FIRST_YEAR:
        return None
    return _in_utc(local, parts.get("z"), zone)


def _in_utc(local: datetime, offset: str | None, zone: ZoneInfo | None) -> LocalTime:
    if offset and offset in "Zz":
        return LocalTime(local.replace(tzinfo=UTC))
    if offset:
        digits = offset[1:].replace(":", "").replace("-", "")
        delta = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
        sign = -1 if offset[0] == "-" else 1
        fixed = timezone(sign * delta)
        return LocalTime(local.replace(tzinfo=fixed).astimezone(UTC), f"{offset[0]}{digits[:2]}:{digits[2:]}")
    return LocalTime(local.replace(tzinfo=UTC)) if zone is None else local_to_utc(local, zone)


def local_to_utc(local: datetime, zone: ZoneInfo) -> LocalTime:
    """The UTC time of a zone's local time, with a note and the decision where daylight saving makes it doubtful.

    A time that occurs twice, when clocks go back, is the first of the two. One that does not occur, when clocks go
    forward, is read by the offset before the change.
    """
    first = local.replace(tzinfo=zone, fold=0)
    second = local.replace(tzinfo=zone, fold=1)
    found = first.astimezone(UTC)
    if first.utcoffset() == second.utcoffset():
        return LocalTime(found, zone.key)
    shown = local.isoformat(" ")
    if found.astimezone(zone).replace(tzinfo=None) != local:
        note = f"{shown} does not occur in {zone.key}; read by the offset before clocks change"
        return LocalTime(found, zone.key, note, "before")
    return LocalTime(found, zone.key, f"{shown} occurs twice in {zone.key}; the first is taken", "first")


def time_zone(name: str | None, option: str = "--timezone") -> ZoneInfo | None:
    """The zone of an IANA name. Raises UsageError for a name that is unknown."""
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(f"{option} {name}: unknown time zone; use an IANA name such as Europe/Amsterdam") from None


# ---- patterns --------------------------------------------------------------------------------------------------------

_STREAM = r"[^/]+?"
_PLACEHOLDERS = {
    "stream": _STREAM,
    "date": r"(?:\d{4}-\d\d-\d\d|\d{4}\.\d\d\.\d\d|\d{4}_\d\d_\d\d|\d{8})",
    "short_date": r"\d\d-\d\d-\d\d",
    "time": r"\d\d[-:._]?\d\d[-:._]?\d\d",
    "year": r"\d{4}",
    "month": r"\d\d?",
    "day": r"\d\d?",
    "hour": r"\d\d",
    "minute": r"\d\d",
    "second": r"\d\d",
    "epoch": r"\d{9,10}(?:\.\d+)?",
    "epoch_ms": r"\d{13}",
    "offset": r"(?:Z|[+-]\d\d:?\d\d)",
}
_DIRECTIVES = {"Y": "year", "m": "month", "d": "day", "H": "hour", "M": "minute", "S": "second"}
_STRFTIME = {"Y": r"\d{4}", "m": r"\d\d", "d": r"\d\d", "H": r"\d\d", "M": r"\d\d", "S": r"\d\d", "j": r"\d{3}"}


@dataclass(frozen=True, slots=True)
class NamePattern:
    """How paths are read, matched against their end. Made by `NamePattern.parse`."""

    text: str
    """As the user wrote it."""

    regex: re.Pattern[str]
    """Named groups are the placeholders, and the letters of strftime's directives."""

    @classmethod
    def parse(cls, text: str) -> NamePattern:
        """Read a pattern such as `{stream}/{start:%Y-%m-%d_%H%M%S}.mp4` or
        `{date}/{hour}/{stream}/{minute}.{second}.mp4`.

        `*` is anything but a slash. Placeholders: {stream}, {start:%Y…} with strftime's directives, {date}, {time},
            {year},
        {month}, {day}, {hour}, {minute}, {second}, {epoch}, {epoch_ms}, {offset}.

        Raises:
            UsageError: an unknown placeholder or directive, one that stands twice, or a clock without a day.
        """
        parts: list[str] = []
        names: list[str] = []
        for piece in re.split(r"(\{[^{}]*\}|\*)", text):
            if piece == "*":
                parts.append(r"[^/]*")
            elif piece.startswith("{start:"):
                body, found = _strftime(piece[len("{start:") : -1], text)
                parts.append(body)
                names += found
            elif piece.startswith("{"):
                name = piece[1:-1]
                if name not in _PLACEHOLDERS:
                    known = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
                    raise UsageError(f"--names {text}: {piece} is unknown; use {known}, {{start:%Y%m%dT%H%M%S}} and *")
                parts.append(f"(?P<{name}>{_PLACEHOLDERS[name]})")
                names.append(name)
            else:
                parts.append(re.escape(piece))
        try:
            regex = re.compile(r"(?:^|/)" + "".join(parts) + r"$")
        except re.error as error:
            raise UsageError(f"--names {text}: {error}; name each part once") from None
        _check_clock(set(names), text)
        return cls(text, regex)

    def read(self, path: str, zone: ZoneInfo | None = None) -> FileName | None:
        """What the pattern reads in a path; None where it does not match.

        Raises:
            UsageError: it matches, and the time that it reads does not exist.
        """
        path = path[-_MAX_PATH:]
        if any(len(step) > _MAX_NAME for step in path.split("/")):
            return None  # no recorder writes such a name; the time of matching grows with the square of its length
        found = self.regex.search(path)
        if found is None:
            return None
        values = {name: value for name, value in found.groupdict().items() if value is not None}
        stream = stream_id_of(values["stream"]) if "stream" in values else read_name(path).stream
        if set(values) <= {"stream"}:
            return FileName(stream, None, "")
        try:
            read = _pattern_time(values, zone)
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(f"{mask_url(printable(path))}: the time in its name is invalid ({error})") from None
        return FileName(stream, *read)


def _strftime(form: str, text: str) -> tuple[str, list[str]]:
    pieces = re.split(r"%(.)", form)
    parts, names = [re.escape(pieces[0])], []
    for directive, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        if directive not in _STRFTIME:
            known = ", ".join("%" + letter for letter in _STRFTIME)
            raise UsageError(f"--names {text}: %{directive} is unknown; use {known}")
        name = _DIRECTIVES.get(directive, directive)
        parts += [f"(?P<{name}>{_STRFTIME[directive]})", re.escape(literal)]
        names.append(name)
    return "".join(parts), names


def _check_clock(names: set[str], text: str) -> None:
    clock = names - {"stream", "offset"}
    days = ({"date"}, {"short_date"}, {"year", "month", "day"}, {"year", "j"}, {"epoch"}, {"epoch_ms"})
    if clock and not any(day <= names for day in days):
        raise UsageError(f"--names {text}: the start needs a year and a day, as in {{date}} or {{start:%Y%m%d}}")


def _pattern_time(values: Mapping[str, str], zone: ZoneInfo | None) -> LocalTime:
    if "epoch" in values or "epoch_ms" in values:
        seconds = float(values["epoch"]) if "epoch" in values else int(values["epoch_ms"]) / 1000
        return LocalTime(datetime.fromtimestamp(seconds, UTC), "epoch")
    if "date" in values:
        digits = re.sub(r"\D", "", values["date"])
        day = datetime.strptime(digits, "%Y%m%d")
    elif "short_date" in values:
        day = datetime.strptime(values["short_date"], "%y-%m-%d")
    elif "j" in values:
        day = datetime.strptime(f"{values['year']} {values['j']}", "%Y %j")
    else:
        day = datetime(int(values["year"]), int(values["month"]), int(values["day"]))
    if "time" in values:
        digits = re.sub(r"\D", "", values["time"])
        hour, minute, second = int(digits[:2]), int(digits[2:4]), int(digits[4:])
    else:
        hour, minute, second = (int(values.get(name, 0)) for name in ("hour", "minute", "second"))
    return _in_utc(day.replace(hour=hour, minute=minute, second=second), values.get("offset"), zone)


# ---- known recorders -------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, NamePattern] = {
    name: NamePattern.parse(text)
    for name, text in {
        "Frigate": "{date}/{hour}/{stream}/{minute}.{second}.mp4",
        "Dahua": "{stream}/{date}/*/dav/*/{time}-*.dav",
        "Dahua export": "{stream}/{date}/*/mp4/*/{time}-*.mp4",
        "Hikvision export": "{stream}_*_{start:%Y%m%d%H%M%S}_*.mp4",
        "Reolink": "{stream}_*_{start:%Y%m%d%H%M%S}.mp4",
        "Reolink SD card": "{stream}/Mp4Record/*/Rec*_{start:%Y%m%d_%H%M%S}_*.mp4",
        "MotionEye": "{stream}/{date}/{time}.mp4",
        "ZoneMinder": "events/{stream}/{date}/*/*-video.mp4",
        "Blink": "{short_date}/{time}_{stream}_*.mp4",
    }.items()
}
"""Names of files as known recorders write them. Frigate's are UTC; the others' are local times, read by
`--timezone`."""

_WITHOUT_CLOCK = frozenset({"ZoneMinder"})
_ALWAYS_UTC = frozenset({"Frigate"})


def recognize_layout(paths: Iterable[str]) -> str | None:
    """The name of the layout that every path has, None where there is none. `paths` is read to the first that
    differs."""
    candidates = list(LAYOUTS)
    some = False
    for path in paths:
        some = True
        candidates = [name for name in candidates if _layout_reads(name, path)]
        if not candidates:
            return None
    return candidates[0] if some else None


def _layout_reads(layout: str, path: str) -> bool:
    try:
        return LAYOUTS[layout].read(_path_of(path)) is not None
    except UsageError:
        return False


# ---- one file --------------------------------------------------------------------------------------------------------

_GENERIC = frozenset(
    [
        "video",
        "videos",
        "clip",
        "clips",
        "recording",
        "recordings",
        "record",
        "rec",
        "movie",
        "mov",
        "camera",
        "cam",
        "channel",
        "ch",
        "output",
        "out",
        "footage",
        "stream",
        "segment",
        "file",
        "export",
        "capture",
        "dav",
        "mp4",
        "mkv",
        "avi",
        "main",
        "sub",
        "part",
        "event",
        "events",
        "media",
        "data",
    ]
)
"""Words that name no camera. A file whose name is made of these alone takes its folder's name."""


def read_name(
    path: str,
    *,
    pattern: NamePattern | None = None,
    layout: str | None = None,
    zone: ZoneInfo | None = None,
) -> FileName:
    """What the name of a path or URL says. Shell patterns, queries and fragments in it mean nothing.

    Args:
        pattern: the user's, which must match.
        layout: a key of `LAYOUTS`, which must match.
        zone: zone of times that are written without an offset; UTC when None.

    Raises:
        UsageError: `pattern` or `layout` does not match, or reads a time that does not exist.
    """
    clean = _path_of(path)
    if pattern is not None:
        read = pattern.read(clean, zone)
        if read is None:
            raise UsageError(
                f"{mask_url(printable(path))}: its name does not match --names {pattern.text}; name fewer files or "
                "change the pattern"
            )
        return read
    if layout is not None:
        read = LAYOUTS[layout].read(clean, None if layout in _ALWAYS_UTC else zone)
        if read is None:
            raise UsageError(f"{mask_url(printable(path))}: its name is not that of {layout}; give --names")
        return FileName(read.stream, None, "") if layout in _WITHOUT_CLOCK else read
    return _free(clean, zone)


def _path_of(path: str) -> str:
    """The path of a URL without query and fragment, decoded; a local path as it is, with forward slashes."""
    if "://" in path:
        path = unquote(split_url(path).path)
    return printable(path)


def _free(path: str, zone: ZoneInfo | None) -> FileName:
    parts = PurePosixPath(path)
    stem = parts.stem[:_MAX_NAME]
    found = time_in_name(stem, zone)
    rest = _without_times(stem if found is None else found[1])
    stream = stream_id_of(rest)
    if _says_nothing(stream):
        for folder in reversed(parts.parent.parts):
            named = stream_id_of(_without_times(folder))
            if not _says_nothing(named):
                stream = named
                break
        else:
            stream = "stream" if found is not None else stream or stream_id_of(stem)
    stream = stream or "stream"
    return FileName(stream, None, "") if found is None else FileName(stream, *found[0])


def _without_times(text: str) -> str:
    text = text[:_MAX_NAME]
    while (found := time_in_name(text)) is not None:
        text = found[1]
    return re.sub(r"\s+", " ", text).strip()


def _says_nothing(stream: str) -> bool:
    """Whether a name tells no camera from another: no letters, or words such as `video` without a number."""
    words: Sequence[str] = re.findall(r"[^\W\d_]+", stream.lower())
    return not words or (all(word in _GENERIC for word in words) and not re.search(r"\d", stream))
