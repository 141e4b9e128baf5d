"""The messages of the three topics, the settings they travel by, and segments made into frames."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from index.errors import DecodeFailed, MessageInvalid, NotVideo, SourceDenied, SourceNotFound, UsageError
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.settings import KafkaSettings
from ingest.messages import (
    DeadLetter,
    IndexedMessage,
    SegmentMessage,
    parse_dead_letter,
    parse_segment,
    segment_message,
)
from ingest.segments.frames import check_clock, read_segment
from tests.support.footage import make_video

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z


def message(payload: bytes = b"footage", **more: Any) -> SegmentMessage:
    return segment_message("front", BEGAN, 10.0, payload, **more)


def changed(**fields: Any) -> bytes:
    """A good message with some fields replaced, or removed where None."""
    whole = json.loads(message().to_bytes())
    return json.dumps({k: v for k, v in {**whole, **fields}.items() if v is not None}).encode()


def test_a_segment_comes_back_as_it_went() -> None:
    sent = message(b"\x00\xff footage", clock="filename")
    read = parse_segment(sent.to_bytes(), b"front")
    assert read == sent
    assert read.payload() == b"\x00\xff footage"
    assert read.start_micros == BEGAN
    assert json.loads(sent.to_bytes())["version"] == 1
    assert "uri" not in json.loads(sent.to_bytes())
    remote = message(uri="s3://bucket/front/1.mp4")
    assert parse_segment(remote.to_bytes()).payload() is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "schema version None"),
        (changed(version=2), "schema version 2"),
        (changed(version=True), "schema version True"),
        (changed(version=None), "schema version None"),
        (changed(stream="../up"), "stream: .* cannot name a stream"),
        (changed(start="2024-03-01T08:00:00"), "start: .* timezone"),
        (changed(start="0001-01-01T00:00:00+23:00"), "the year 1"),
        (changed(duration=0), "duration"),
        (changed(duration=1e9), "duration"),
        (changed(media_type="text/html"), "media_type"),
        (changed(sha256="xyz"), "sha256"),
        (changed(uri="s3://b/a"), "either uri or data"),
        (changed(data=None), "either uri or data"),
        (changed(surprise=1), "surprise"),
    ],
)
def test_what_is_not_a_segment_says_why(value: bytes | None, why: str) -> None:
    with pytest.raises(MessageInvalid, match=why):
        parse_segment(value)


@given(st.binary(max_size=200) | st.text().map(lambda t: json.dumps({"version": 1, "stream": t}).encode()))
def test_no_bytes_whatever_raise_anything_else(value: bytes) -> None:
    with pytest.raises(MessageInvalid):
        parse_segment(value)


def test_a_key_that_is_not_the_stream_is_refused() -> None:
    with pytest.raises(MessageInvalid, match="must be the stream id"):
        parse_segment(message().to_bytes(), b"back")


def test_damaged_data_is_found() -> None:
    with pytest.raises(MessageInvalid, match="not base64"):
        parse_segment(changed(data="*")).payload()
    with pytest.raises(MessageInvalid, match="checksum"):
        parse_segment(changed(data="Zm9vdGFnZQ==", sha256="0" * 64)).payload()
    with pytest.raises(MessageInvalid, match="bytes that are not the 7 promised"):
        parse_segment(changed(data="Zm9v")).payload()


def test_the_other_messages_come_back() -> None:
    at = datetime(2024, 3, 1, tzinfo=UTC)
    told = IndexedMessage(
        stream="front", start=at, end=at, frames=3, decode_mode="all", topic="t", partition=0, offset=7
    )
    assert IndexedMessage.model_validate_json(told.to_bytes()) == told
    for value in (b'{"version": 9}', b"\xff\x00", b"", None):
        letter = DeadLetter.of(
            value, topic="t", partition=1, offset=2, key=b"front", failed_at=at, error="MessageInvalid", reason="so",
            where="message", attempt=1, group="g",
        )  # fmt: skip
        assert parse_dead_letter(letter.to_bytes()) == letter
        assert letter.origin == "t/1/2"
        assert letter.original() == (value or b"")
        assert letter.without_original().original() is None
    with pytest.raises(MessageInvalid):
        parse_dead_letter(b"{}")


def test_a_clock_far_ahead_is_refused() -> None:
    check_clock(message(), ahead_seconds=300, now=BEGAN / 1e6 - 299)
    with pytest.raises(MessageInvalid, match="301 s in the future, at 2024-03-01T08:00:00Z"):
        check_clock(message(), ahead_seconds=300, now=BEGAN / 1e6 - 301)


def test_settings_pass_security_through_and_hide_the_password() -> None:
    settings = KafkaSettings(
        servers="a:1, b:2",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-256",
        username="u",
        password="hunter2",
        ca_file="ca.pem",
    )
    given = settings.client()
    assert given["bootstrap_servers"] == ["a:1", "b:2"]
    assert (given["sasl_plain_username"], given["sasl_plain_password"]) == ("u", "hunter2")
    assert (given["security_protocol"], given["ssl_cafile"]) == ("SASL_SSL", "ca.pem")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in settings.model_dump_json()
    with pytest.raises(ValidationError, match="needs sasl_mechanism, username and password"):
        KafkaSettings(security_protocol="SASL_SSL", username="u")


# ---- segments made into frames -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make_video(path, seconds=4, gop=10)
    return path


def at(start: int, film: Path, **more: Any) -> SegmentMessage:
    return segment_message("front", start, 4.0, film.read_bytes(), **more)


def test_a_segment_that_begins_inside_a_second_keeps_to_the_grid(film: Path) -> None:
    whole = read_segment(at(BEGAN, film), settings=KafkaSettings(), limits=DecodeLimits())
    assert [t - BEGAN for t in whole.captured_at] == [0, 1_000_000, 2_000_000, 3_000_000]
    # Key frames stand at .7: of each second the first of them; second 8:00:00 has only what is left of it, and the last
    # second, which ends before its key frame, the first frame there is.
    later = read_segment(at(BEGAN + 700_000, film), settings=KafkaSettings(), limits=DecodeLimits())
    assert [t - BEGAN for t in later.captured_at] == [700_000, 1_700_000, 2_700_000, 3_700_000, 4_000_000]


def test_objects_are_read_from_where_it_is_allowed_only(film: Path, tmp_path: Path) -> None:
    remote = at(BEGAN, film, uri=film.as_uri())
    allowed = KafkaSettings(objects=(str(film.parent),))
    assert len(read_segment(remote, settings=allowed, limits=DecodeLimits()).captured_at) == 4
    link = tmp_path / "inside" / "link.mp4"
    link.parent.mkdir()
    link.symlink_to(film)
    for uri, objects in (
        (film.as_uri(), ()),
        (film.as_uri(), (str(tmp_path / "inside"),)),
        (link.as_uri(), (str(tmp_path / "inside"),)),
        (f"{film.parent.as_uri()}/x/../../film.mp4", (str(film.parent / "x"),)),
        ("http://169.254.169.254/latest", (str(film.parent),)),
        ("s3://other/a.mp4", ("s3://bucket",)),
        ("s3://bucket-of-another/a.mp4", ("s3://bucket",)),
        ("s3://bucket/../other/a.mp4", ("s3://bucket",)),
        ("ftp://user:hunter2@host/a.mp4", ("s3://bucket",)),
    ):
        with pytest.raises(SourceDenied, match="not under a place") as caught:
            read_segment(at(BEGAN, film, uri=uri), settings=KafkaSettings(objects=objects), limits=DecodeLimits())
        assert "hunter2" not in str(caught.value)


def test_objects_that_are_gone_changed_or_endless_are_found(film: Path, tmp_path: Path) -> None:
    settings = KafkaSettings(objects=(str(tmp_path), "file:///dev"))
    path = tmp_path / "segment.mp4"
    message_ = at(BEGAN, film, uri=path.as_uri())
    with pytest.raises(SourceNotFound, match="no such object"):
        read_segment(message_, settings=settings, limits=DecodeLimits())
    path.write_bytes(film.read_bytes()[:-1])
    with pytest.raises(MessageInvalid, match="checksum"):
        read_segment(message_, settings=settings, limits=DecodeLimits())
    endless = at(BEGAN, film, uri="file:///dev/zero")
    with pytest.raises(MessageInvalid, match="checksum"):
        read_segment(endless, settings=settings, limits=DecodeLimits())
    with pytest.raises(MessageInvalid, match=r"over kafka\.object_bytes"):
        read_segment(message_, settings=KafkaSettings(object_bytes=100), limits=DecodeLimits())


def test_what_does_not_decode_says_which_segment(film: Path) -> None:
    with pytest.raises(NotVideo, match="front at 2024-03-01T08:00:00Z"):
        read_segment(message(b"not a video" * 99), settings=KafkaSettings(), limits=DecodeLimits())
    with pytest.raises(DecodeFailed, match="limit of 100 pixels"):
        read_segment(at(BEGAN, film), settings=KafkaSettings(), limits=DecodeLimits(pixels=100))


def test_a_segment_that_lasts_longer_than_it_says_is_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "long.mp4", seconds=9, gop=10)
    long = segment_message("front", BEGAN, 2.0, (tmp_path / "long.mp4").read_bytes())
    with pytest.raises(MessageInvalid, match="longer than the 2 s"):
        read_segment(long, settings=KafkaSettings(), limits=DecodeLimits())


def test_settings_of_kafka_come_from_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.settings import load_settings

    file = tmp_path / "sightline.toml"
    file.write_text('[kafka]\nservers = "a:1"\nprefix = "yard"\n[consume]\nbatch_frames = 8\n')
    monkeypatch.setenv("SIGHTLINE_KAFKA_SERVERS", "b:2")
    monkeypatch.setenv("SIGHTLINE_SEGMENT_SECONDS", "20")
    settings = load_settings(file)
    assert (settings.kafka.servers, settings.kafka.segments) == ("b:2", "yard.segments")
    assert (settings.consume.batch_frames, settings.segment_seconds) == (8, 20)
    monkeypatch.setenv("SIGHTLINE_KAFKA_SERVER", "c:3")
    with pytest.raises(UsageError, match="SIGHTLINE_KAFKA_SERVER: no such setting"):
        load_settings(file)
