"""Segments into an object store and into messages, and clips out of them again."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import av
import pytest

from index.errors import DecodeFailed, EmptyWindow, KafkaProblem, SourceNotFound, UsageError
from ingest.kafka.publisher import publish_segment
from ingest.kafka.settings import KafkaSettings
from ingest.live.clip import clip, recorded
from ingest.live.recorder import Recorder, folder_url
from ingest.live.retention import expire
from ingest.live.spool import SpooledSegment
from ingest.messages import SegmentMessage, parse_segment
from ingest.segments.cutting import cut
from ingest.segments.names import parse_name, segment_name
from ingest.sources.start_time import FoundStart
from tests.support.footage import make_video
from tests.support.limited_broker import LimitedBroker

START = 1_700_000_000_000_000
DAY = 86_400_000_000


class Outbox:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[SegmentMessage] = []
        self.flushed = 0

    def send(self, topic: str, *, key: str | None, value: bytes | None) -> None:
        self.messages.append(parse_segment(value, None if key is None else key.encode()))

    def flush(self) -> None:
        self.flushed = len(self.messages)


def waiting(folder: Path, start: int, *, seconds: float = 4.0, size: tuple[int, int] = (64, 48)) -> SpooledSegment:
    """A segment of ten frames a second with a key frame each second, as a camera's process leaves it."""
    segment = parse_name(segment_name("gate", start, seconds, "video/mp4"))
    assert segment is not None
    path = folder / segment.name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_video(path, seconds=seconds, gop=10, size=size)
    return SpooledSegment(segment, path, path.stat().st_size, 40)


def test_what_is_kept_in_an_object_store_is_clipped_from_there(tmp_path: Path) -> None:
    place = f"memory://{uuid.uuid4().hex}"
    segments = [waiting(tmp_path, START + i * 4_000_000) for i in (0, 1, 3)]  # the third was never recorded
    recorder = Recorder(folder_url(place + "/"))
    recorder.write(segments)
    assert recorder.kept == 3
    found = recorded(place, "gate", START + 4_500_000, START + 13_000_000)
    assert [segment.start for segment in found] == [START + 4_000_000, START + 12_000_000]
    out = tmp_path / "out.mp4"
    report = clip(place, "gate", START + 2_500_000, START + 13_050_000, out)
    assert (report.segments, report.missing_seconds) == (3, 4.0)
    with av.open(str(out)) as file:
        assert file.metadata["creation_time"].startswith("2023-11-14T22:13:22")  # the key frame before
        times = [frame.time for frame in file.decode(video=0)]
    assert len(times) == report.frames == 20 + 40 + 11
    assert times[0] == 0
    assert times[-1] == pytest.approx(11.0, abs=0.01)
    with pytest.raises(EmptyWindow):
        clip(place, "gate", START + 8_500_000, START + 9_000_000, out)
    with pytest.raises(UsageError, match=r"\.mp4"):
        clip(place, "gate", START, START + 1, tmp_path / "out.gif")
    assert not list(tmp_path.glob("*.part"))


def test_a_clip_over_a_change_of_size_says_when(tmp_path: Path) -> None:
    tape = folder_url(str(tmp_path / "tape"))
    Recorder(tape).write([waiting(tmp_path, START), waiting(tmp_path, START + 4_000_000, size=(96, 64))])
    with pytest.raises(DecodeFailed, match="2023-11-14T22:13:24"):
        clip(tape, "gate", START, START + 8_000_000, tmp_path / "out.mkv")
    assert clip(tape, "gate", START, START + 3_000_000, tmp_path / "out.mkv").frames == 30


def test_segments_go_inside_messages_or_by_where_they_are_kept(tmp_path: Path) -> None:
    one = waiting(tmp_path, START)
    small, large, nowhere = Outbox(), Outbox(), Outbox()
    Recorder(None, outbox=small).write([one])
    tiny = KafkaSettings(inline_bytes=10)
    tape = folder_url(str(tmp_path / "tape"))
    Recorder(tape, outbox=large, kafka=tiny).write([one])
    refused = Recorder(None, aside=tmp_path / "refused", outbox=nowhere, kafka=tiny)
    refused.write([one])
    assert small.messages[0].payload() == one.path.read_bytes()
    assert large.messages[0].uri == f"{tape}/{one.segment.name}"
    assert large.messages[0].start_micros == START
    assert (refused.refused, nowhere.messages) == (1, [])
    assert (tmp_path / "refused" / one.segment.name).read_bytes() == one.path.read_bytes()
    assert (small.flushed, large.flushed) == (1, 1)


def test_a_segment_that_the_broker_finds_too_large_takes_no_other_with_it(tmp_path: Path) -> None:
    sizes = [(64, 48), (320, 240), (64, 48)]
    segments = [waiting(tmp_path, START + i * 4_000_000, size=size) for i, size in enumerate(sizes)]
    assert segments[1].size > max(segments[0].size, segments[2].size)
    broker = LimitedBroker(largest=segments[1].size - 1)
    recorder = Recorder(None, aside=tmp_path / "refused", outbox=broker)
    recorder.write(segments)
    assert [message.start_micros for message in broker.accepted] == [START, START + 8_000_000]
    assert (tmp_path / "refused" / segments[1].segment.name).read_bytes() == segments[1].path.read_bytes()
    assert (recorder.sent, recorder.refused) == (2, 1)
    assert str(recorder.footage) == "stored: 2 segments, 8 s; repeated: nothing; dropped: 1 segment, 4 s"


def test_a_segment_is_counted_once_however_often_it_is_written(tmp_path: Path) -> None:
    segments = [waiting(tmp_path, START + i * 4_000_000) for i in range(2)]
    broker = LimitedBroker()
    broker.down = 2
    recorder = Recorder(folder_url(str(tmp_path / "tape")), outbox=broker)
    for _ in range(2):
        with pytest.raises(KafkaProblem, match="does not answer"):
            recorder.write(segments)
        assert (recorder.kept, recorder.sent) == (0, 0)
    recorder.write(segments)
    recorder.drop(waiting(tmp_path, START + 60_000_000, seconds=3.0))
    assert len(broker.accepted) == 2
    report = recorder.report()
    assert str(report.pop("footage")) == "stored: 2 segments, 8 s; repeated: nothing; dropped: 1 segment, 3 s"
    assert report == {"kept": 2, "sent": 2, "refused": 0, "expired": 0}


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceNotFound, match="--to"):
        Recorder(folder_url(str(tmp_path / "file" / "tape"))).write([waiting(tmp_path, START)])


@pytest.mark.parametrize(
    "place",
    [
        "https://account.blob.core.windows.net/tape?sv=2022-11-02&sig=hunter2",
        "https://bucket.s3.amazonaws.com/tape?X-Amz-Signature=hunter2",
        "s3://KEY:hunter2@bucket/tape",
    ],
)
def test_a_place_with_credentials_is_refused_before_a_message_shows_them(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match="contains credentials") as refused:
        folder_url(place)
    assert "hunter2" not in str(refused.value)
    outbox = Outbox()
    path = tmp_path / "film.mp4"
    make_video(path, seconds=2.0, gop=10, size=(64, 48))
    segment = next(iter(cut(path)))
    with pytest.raises(UsageError, match=r"--objects .*contains credentials") as published:
        publish_segment(outbox, KafkaSettings(), "gate", FoundStart(START, "arrival"), segment, objects=place)
    assert "hunter2" not in str(published.value)
    assert not outbox.messages


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_old_segments_go_and_nothing_else_does(tmp_path: Path, scheme: str) -> None:
    tape = folder_url(str(tmp_path / "tape")) if scheme == "file" else f"memory://{uuid.uuid4().hex}"
    recorder = Recorder(tape)
    times = [START, START + 4_000_000, START + DAY, START + 2 * DAY]
    for at in times:
        recorder.write([waiting(tmp_path, at)])
    assert [s.start for s in expire(tape, START + 4_000_000).gone] == [START]  # the second one ends later
    assert [s.start for s in recorded(tape, "gate", START, START + 3 * DAY)] == times[1:]
    assert [s.start for s in expire(tape, START + 2 * DAY).gone] == times[1:3]
    assert [s.start for s in recorded(tape, "gate", START, START + 3 * DAY)] == times[3:]
    assert expire(tape, START + 2 * DAY) == ([], [])
    if scheme == "file":
        assert len(list((tmp_path / "tape" / "gate").iterdir())) == 1  # days that are empty go too


def test_a_recorder_with_an_age_deletes_what_is_older(tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    other = tape / "gate" / "2023-11-14" / "notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("not a segment")
    now = time.time_ns() // 1000
    recorder = Recorder(folder_url(str(tape)), keep_seconds=3600)
    recorder.write([waiting(tmp_path, START), waiting(tmp_path, now - 10_000_000)])
    assert (recorder.kept, recorder.expired) == (2, 1)
    assert [s.start for s in recorded(folder_url(str(tape)), "gate", START, now)] == [now - 10_000_000]
    assert other.read_text() == "not a segment"


def test_a_place_without_a_recording_has_nothing_to_delete(tmp_path: Path) -> None:
    assert expire(folder_url(str(tmp_path / "nowhere")), START) == ([], [])
