"""The messages of the Kafka topics, and the settings of Kafka."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from index.errors import MessageInvalid, UsageError
from ingest.kafka.settings import KafkaSettings
from ingest.messages import (
    DeadLetter,
    IndexedMessage,
    SegmentMessage,
    parse_dead_letter,
    parse_segment,
    segment_message,
)

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z


def message(payload: bytes = b"footage", **more: Any) -> SegmentMessage:
    return segment_message("front", BEGAN, 10.0, payload, **more)


def changed(**fields: Any) -> bytes:
    """A good message with some fields replaced, or removed where None."""
    whole = json.loads(message().to_bytes())
    return json.dumps({k: v for k, v in {**whole, **fields}.items() if v is not None}).encode()


@pytest.mark.parametrize("fields", [{"clock_zone": "UTC\n"}, {"clock_zone": "a" * 65}, {"clock_fold": "second"}])
def test_an_invalid_zone_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(MessageInvalid, match=next(iter(fields))):
        parse_segment(changed(**fields))


def test_a_segment_comes_back_as_it_went() -> None:
    sent = message(b"\x00\xff footage", clock="filename")
    read = parse_segment(sent.to_bytes(), b"front")
    assert read == sent
    assert read.payload() == b"\x00\xff footage"
    assert read.start_micros == BEGAN
    assert json.loads(sent.to_bytes())["version"] == 1
    assert "uri" not in json.loads(sent.to_bytes())
    assert "clock_zone" not in json.loads(sent.to_bytes())  # an older reader refuses fields that it does not know
    zoned = message(clock="filename", clock_zone="Europe/Amsterdam", clock_fold="first")
    read = parse_segment(zoned.to_bytes())
    assert (read.clock, read.clock_zone, read.clock_fold) == ("filename", "Europe/Amsterdam", "first")
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
        (changed(start="0001-01-01T00:00:00+23:00"), "the year 1 is not"),
        (changed(duration=0), "duration"),
        (changed(duration=1e9), "duration"),
        (changed(media_type="text/html"), "media_type"),
        (changed(sha256="xyz"), "sha256"),
        (changed(uri="s3://b/a"), "exactly one of uri and data"),
        (changed(data=None), "exactly one of uri and data"),
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
    with pytest.raises(MessageInvalid, match="3 bytes and the message announces 7"):
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


_GROWING: dict[str, Callable[[int], dict[str, Any]]] = {
    "letters": lambda n: {"stream": "a" * n},
    "schemes": lambda n: {"stream": "http://" * (n // 7)},
    "users": lambda n: {"stream": "rtsp://" + "u:p@" * (n // 4)},
    "marks": lambda n: {"stream": "e" + "\u0301\u0327" * (n // 2)},
    "query": lambda n: {"uri": "http://x/?" + "key" * (n // 3)},
    "names": lambda n: {"k=" * (n // 2): 1},
    "base64": lambda n: {"data": "é" * n},
    "digest": lambda n: {"sha256": "0" * n},
    "time": lambda n: {"start": "2024-03-01T08:00:00." + "0" * n},
}


@pytest.mark.parametrize("kind", sorted(_GROWING))
def test_parsing_takes_time_linear_in_the_size(kind: str) -> None:
    """Eight times the size takes eight times as long, or less; a quadratic parser would take 64 times as long."""

    def seconds(size: int) -> float:
        value = json.dumps({**json.loads(message().to_bytes()), **_GROWING[kind](size)}).encode()
        taken = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(4):
                with pytest.raises(MessageInvalid) as raised:
                    parse_segment(value).payload()
            taken.append(time.process_time() - began)
            assert len(str(raised.value)) < 1000
        return min(taken)

    assert seconds(400_000) < 24 * max(seconds(50_000), 0.002)
