"""Names of files as people and recorders write them: which stream, which time."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import UsageError
from ingest.sources.naming import (
    LAYOUTS,
    LocalTime,
    NamePattern,
    local_to_utc,
    printable,
    read_name,
    recognize_layout,
    stream_id_of,
    time_zone,
)

MORNING = datetime(2024, 3, 1, 8, 0, tzinfo=UTC)
AMSTERDAM = ZoneInfo("Europe/Amsterdam")


@pytest.mark.parametrize(
    ("path", "stream", "start"),
    [
        ("front_2024-03-01T08-00-00Z.mp4", "front", MORNING),
        ("20240301_080000.mkv", "stream", MORNING),
        ("a/front-door/20240301_080000.mkv", "front-door", MORNING),
        ("front_20240301080000.mp4", "front", MORNING),
        ("front_20240301080000123.mp4", "front", MORNING + timedelta(milliseconds=123)),
        ("front 2024.03.01 08.00.00.mp4", "front", MORNING),
        ("front_2024-03-01_08-00-00+0100.mp4", "front", MORNING - timedelta(hours=1)),
        ("front_2024-03-01T08:00:00-05:30.mp4", "front", MORNING + timedelta(hours=5, minutes=30)),
        ("front_2024-03-01_08-00-00.250Z.mp4", "front", MORNING + timedelta(milliseconds=250)),
        ("front_1709280000.mp4", "front", MORNING),
        ("front-1709280000.5.mp4", "front", MORNING + timedelta(milliseconds=500)),
        ("front_1709280000000.mp4", "front", MORNING),
        ("20240301_080000-080500_front.mp4", "080500_front", MORNING),
        ("front_20249901_080000.mp4", "front_20249901_080000", None),
        ("front_4915112345678.mp4", "front_4915112345678", None),  # a telephone number
        ("camera-1.mp4", "camera-1", None),
        ("cam1/video.mp4", "cam1", None),
        ("cam2/video.mp4", "cam2", None),
        ("front/12.34.mp4", "front", None),
        ("back/12.34.mp4", "back", None),
        ("前门_20240301_080000.mp4", "前门", MORNING),
        ("后门_20240301_080000.mp4", "后门", MORNING),
        ("Straße.mp4", "Straße", None),
        ("कैमरा-3.mp4", "कैमरा-3", None),
        ("ประตู 1.mp4", "ประตู-1", None),
        ("https://host/cams/front.mp4?token=secret&x=1#t", "front", None),
        ("https://host/cams/%E5%89%8D%E9%97%A8_20240301_080000.mp4", "前门", MORNING),
        ("12:30:05.mp4", "12-30-05", None),
        ("video[1].mp4", "video-1", None),
    ],
)
def test_free_names(path: str, stream: str, start: datetime | None) -> None:
    read = read_name(path)
    assert (read.stream, read.start) == (stream, start)


@pytest.mark.parametrize(
    ("layout", "path", "stream", "start"),
    [
        ("Frigate", "recordings/2024-03-01/08/front/00.00.mp4", "front", MORNING),
        ("Dahua", "gate/2024-03-01/001/dav/08/08.00.00-08.10.00[M][0@0][0].dav", "gate", MORNING),
        ("Reolink", "ftp/2024/03/01/Front Door_00_20240301080000.mp4", "Front-Door", MORNING),
        ("Reolink SD card", "yard/Mp4Record/2024-03-01/RecM01_20240301_080000_080500_0_6D28808_A.mp4", "yard", MORNING),
        ("Hikvision export", "192.168.1.64_01_20240301080000_20240301081000.mp4", "192.168.1.64", MORNING),
        ("MotionEye", "Camera1/2024-03-01/08-00-00.mp4", "Camera1", MORNING),
        ("ZoneMinder", "events/3/2024-03-01/1207/1207-video.mp4", "3", None),
        ("Blink", "24-03-01/08-00-00_Porch_012.mp4", "Porch", MORNING),
    ],
)
def test_layouts_of_recorders_are_recognized(layout: str, path: str, stream: str, start: datetime | None) -> None:
    assert recognize_layout([path, path]) == layout
    read = read_name(path, layout=layout)
    assert (read.stream, read.start) == (stream, start)
    assert recognize_layout([path, "something/else.mp4"]) is None


def test_no_paths_have_no_layout() -> None:
    assert recognize_layout([]) is None
    assert len(LAYOUTS) == 9


def test_a_layout_in_local_time_follows_the_zone_and_frigates_does_not() -> None:
    path = "Camera1/2024-07-01/08-00-00.mp4"
    assert read_name(path, layout="MotionEye", zone=AMSTERDAM).start == datetime(2024, 7, 1, 6, tzinfo=UTC)
    path = "recordings/2024-07-01/08/front/00.00.mp4"
    assert read_name(path, layout="Frigate", zone=AMSTERDAM).start == datetime(2024, 7, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pattern", "path", "stream", "start"),
    [
        ("{stream}_{start:%Y%m%dT%H%M%S}.mp4", "a/b/front_20240301T080000.mp4", "front", MORNING),
        ("{stream}/{start:%Y-%j}.mp4", "front/2024-061.mp4", "front", MORNING.replace(hour=0)),
        ("{date}/{hour}/{stream}/{minute}.{second}.mp4", "2024-03-01/08/front/00.00.mp4", "front", MORNING),
        ("{year}/{month}/{day}/{stream}-{time}{offset}.*", "2024/3/1/f-09-00-00+01:00.ts", "f", MORNING),
        ("{stream}/{epoch}.mp4", "前门/1709280000.mp4", "前门", MORNING),
        ("{stream}/*.mp4", "front/whatever.mp4", "front", None),
        ("*/{date}_*.mp4", "x/20240301_1.mp4", "x", MORNING.replace(hour=0)),
    ],
)
def test_patterns(pattern: str, path: str, stream: str, start: datetime | None) -> None:
    read = read_name(path, pattern=NamePattern.parse(pattern))
    assert read.start == start
    assert "{stream}" not in pattern or read.stream == stream


@pytest.mark.parametrize(
    "pattern", ["{camera}.mp4", "{stream}_{stream}.mp4", "{stream}_{hour}.mp4", "{start:%q}.mp4", "{start:%H}.mp4"]
)
def test_bad_patterns_say_what_is_wrong(pattern: str) -> None:
    with pytest.raises(UsageError, match="--names"):
        NamePattern.parse(pattern)


def test_a_name_that_does_not_match_is_an_error_and_so_is_a_day_that_does_not_exist() -> None:
    pattern = NamePattern.parse("{stream}_{date}.mp4")
    with pytest.raises(UsageError, match="does not match"):
        read_name("front.mp4", pattern=pattern)
    with pytest.raises(UsageError, match="is invalid"):
        read_name("front_20240231.mp4", pattern=pattern)


def test_local_times_around_daylight_saving() -> None:
    assert local_to_utc(datetime(2024, 7, 1, 8), AMSTERDAM) == LocalTime(
        datetime(2024, 7, 1, 6, tzinfo=UTC), "Europe/Amsterdam"
    )
    twice, zone, note, fold = local_to_utc(datetime(2024, 10, 27, 2, 30), AMSTERDAM)
    assert twice == datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    assert (zone, fold) == ("Europe/Amsterdam", "first")
    assert "occurs twice" in note
    never, _, note, fold = local_to_utc(datetime(2024, 3, 31, 2, 30), AMSTERDAM)
    assert never == datetime(2024, 3, 31, 1, 30, tzinfo=UTC)
    assert fold == "before"
    assert "does not occur" in note
    read = read_name("front_20241027_023000.mp4", zone=AMSTERDAM)
    assert (read.start, read.zone, read.fold) == (twice, "Europe/Amsterdam", "first")
    assert "occurs twice" in read.note


def test_zones() -> None:
    assert time_zone(None) is None
    assert time_zone("Europe/Amsterdam") == AMSTERDAM
    for bad in ("Mars/Olympus", "../../etc/passwd", "", "/etc/localtime"):
        with pytest.raises(UsageError, match="--timezone"):
            time_zone(bad)


@given(st.text(max_size=300))
def test_any_text_gives_a_usable_stream_id_or_none(text: str) -> None:
    name = stream_id_of(text)
    assert len(name) <= 128
    assert unicodedata.is_normalized("NFC", name)
    assert not set(name) & set("/\\ \0\n:%?#'\"")
    assert name == "" or name[0] not in ".-_"
    assert stream_id_of(name) == name


@given(
    st.text(
        st.characters(categories=["L", "Nd"]),
        min_size=60,
        max_size=150,
    ).map(lambda t: unicodedata.normalize("NFC", t))
)
def test_long_names_that_differ_stay_different(text: str) -> None:
    assert stream_id_of(text + "a") != stream_id_of(text + "b")


@given(st.binary(max_size=80))
def test_a_name_that_is_no_utf_8_is_read(raw: bytes) -> None:
    name = raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    printable(name).encode()
    assert read_name(name + ".mp4").stream


def test_a_latin_1_name() -> None:
    assert printable("Stra\udcdfe.mp4") == "Stra\\xdfe.mp4"
    assert read_name("Stra\udcdfe_20240301_080000.mp4").start == MORNING


@given(st.text(alphabet="0123456789-_. TZ+:", min_size=1000, max_size=4000))
def test_reading_is_linear(text: str) -> None:
    read_name(text)


def test_of_a_name_without_bounds_the_start_is_read() -> None:
    read = read_name("front_20240301_080000" + "_1709280000" * 100_000 + ".mp4")
    assert read.start == MORNING
    assert read.stream.startswith("front")
    assert len(read.stream) <= 128
