"""Segments of Kafka messages: the check of their clock, and fetching them from the places that are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from index.errors import DecodeFailed, MessageInvalid, NotVideo, SourceDenied, SourceNotFound
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.fetch import check_clock, read_segment
from ingest.kafka.settings import KafkaSettings
from ingest.messages import SegmentMessage, segment_message
from tests.support.footage import make_video

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make_video(path, seconds=4, gop=10)
    return path


def message(film: Path, start: int = BEGAN, **more: Any) -> SegmentMessage:
    return segment_message("front", start, 4.0, film.read_bytes(), **more)


def test_objects_are_read_from_where_it_is_allowed_only(film: Path, tmp_path: Path) -> None:
    inside = message(film, uri=film.as_uri())
    allowed = KafkaSettings(objects=(str(film.parent),))
    assert len(read_segment(inside, settings=allowed, limits=DecodeLimits()).captured_at) == 4
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
        with pytest.raises(SourceDenied, match="may not be read from there") as caught:
            read_segment(message(film, uri=uri), settings=KafkaSettings(objects=objects), limits=DecodeLimits())
        assert "hunter2" not in str(caught.value)


def test_objects_that_are_gone_changed_or_endless_are_found(film: Path, tmp_path: Path) -> None:
    settings = KafkaSettings(objects=(str(tmp_path), "file:///dev"))
    path = tmp_path / "segment.mp4"
    remote = message(film, uri=path.as_uri())
    with pytest.raises(SourceNotFound, match="no such object"):
        read_segment(remote, settings=settings, limits=DecodeLimits())
    path.write_bytes(film.read_bytes()[:-1])
    with pytest.raises(MessageInvalid, match="checksum"):
        read_segment(remote, settings=settings, limits=DecodeLimits())
    endless = message(film, uri="file:///dev/zero")
    with pytest.raises(MessageInvalid, match="checksum"):
        read_segment(endless, settings=settings, limits=DecodeLimits())
    with pytest.raises(MessageInvalid, match=r"exceed kafka\.object_bytes"):
        read_segment(remote, settings=KafkaSettings(object_bytes=100), limits=DecodeLimits())


def test_what_does_not_decode_says_which_segment(film: Path) -> None:
    with pytest.raises(NotVideo, match="front at 2024-03-01T08:00:00Z"):
        read_segment(
            segment_message("front", BEGAN, 4.0, b"not a video" * 99), settings=KafkaSettings(), limits=DecodeLimits()
        )
    with pytest.raises(DecodeFailed, match="limit of 100 pixels"):
        read_segment(message(film), settings=KafkaSettings(), limits=DecodeLimits(pixels=100))


def test_a_segment_from_the_future_is_refused() -> None:
    message = segment_message("front", BEGAN, 10.0, b"footage")
    check_clock(message, ahead_seconds=300, now=BEGAN / 1e6 - 299)
    with pytest.raises(MessageInvalid, match="front at 2024-03-01T08:00:00Z: the segment starts 301 s in the future"):
        check_clock(message, ahead_seconds=300, now=BEGAN / 1e6 - 301)
