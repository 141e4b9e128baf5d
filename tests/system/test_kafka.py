"""Segments through a real Kafka into a real store: each second once, whatever is wrong with a message."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.errors import BrokerUnavailable, OffsetsExpired, TopicRecreated
from index.records import rfc3339
from index.store import Store
from ingest.footage_report import FootageAmount
from ingest.kafka.clients import Sender, make_topics, native, new_consumer
from ingest.kafka.dead_letters import list_letters, replay
from ingest.kafka.indexer import ConsumeReport
from ingest.kafka.poller import consume
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import IndexedMessage, segment_message
from tests.support.brightness import BEGAN, SECOND
from tests.support.footage import make_video
from tests.support.kafka_footage import publish, seconds
from tests.support.kafka_server import Broker, broker
from tests.support.kafka_worker import FrameEncoderStub, counting
from tests.support.poison import KINDS, mutated
from tests.support.processes import Process, environment
from tests.support.records import PAIR

__all__ = ["broker"]  # a fixture

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


@pytest.fixture
def topics(broker: Broker, request: pytest.FixtureRequest) -> KafkaSettings:
    """The topics of this test, four partitions each."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    settings = broker.settings(prefix=f"test-{name}", partitions=4)
    make_topics(settings)
    return settings


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


def film(folder: Path, camera: int, seconds: float = 12, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"cam{camera}_2024-03-01T08-00-00Z.mp4"
    make_video(path, seconds=seconds, gop=more.pop("gop", 10), **more)
    return path


def drain(
    store: Store, settings: KafkaSettings, group: str = "g", *, encoders: Any = None, **more: Any
) -> ConsumeReport:
    """Store everything; with encoders that only count by default."""
    consume_settings = ConsumeSettings(**{"commit_seconds": 0.5, **more.pop("consume", {})})
    encoders = encoders or counting()
    return consume(store, encoders, kafka=settings, group=group, settings=consume_settings, drain=True, **more)


def read_all(settings: KafkaSettings, topic: str) -> list[Any]:
    """Every record of a topic."""
    consumer = new_consumer(settings)
    try:
        partitions = native((topic, n) for n in consumer.partitions_for_topic(topic))
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        found: list[Any] = []
        deadline = time.monotonic() + 300
        while len(found) < sum(ends.values()) and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=500).values():
                found += records
        return found
    finally:
        consumer.close()


def until(true: Callable[[], bool], what: str, timeout: float = 400) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)


def test_every_second_of_every_camera_once_by_the_command_line(
    broker: Broker, profile: str, tmp_path: Path, sightline: Process
) -> None:
    """Two workers of one group with real encoders, rendered footage, everything through the commands."""
    done = sightline("render", "--seed", "4", "--minutes", "0.3", "--cameras", "3", "--out", tmp_path / "footage")
    assert done.returncode == 0, done.stderr
    kafka = {"SIGHTLINE_KAFKA_SERVERS": broker.servers, "SIGHTLINE_KAFKA_PREFIX": "commands"}
    kafka |= {"SIGHTLINE_KAFKA_PARTITIONS": "4", "SIGHTLINE_KAFKA_SESSION_SECONDS": "10"}
    done = sightline("publish", tmp_path / "footage", "--seconds", "4", "--json", **kafka)
    assert done.returncode == 0, done.stderr
    assert [file["segments"] for file in json.loads(done.stdout)] == [5, 5, 5]
    store = tmp_path / "store"
    command = [sys.executable, "-m", "pipeline.cli", "consume", "--group", "night", "--store", str(store)]
    workers = [
        subprocess.Popen(
            [*command, "--profile", profile, "--json"],
            cwd=tmp_path,
            env=environment(tmp_path, **kafka),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        until(lambda: _frames(store) >= 54, "54 frames stored")
    finally:
        for worker in workers:
            worker.terminate()
        ended = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ended
    assert sum(json.loads(out)["frames"] for out, _ in ended) == 54
    again = Store.open(store)
    assert [(s.stream_id, s.frames) for s in again.streams()] == [(f"camera-{i}", 18) for i in (1, 2, 3)]
    for stream in again.streams():
        assert (np.diff(again.window([stream.stream_id]).captured_at) == SECOND).all()
    assert again.verify() == []
    # Twice published and read again by another group: nothing new.
    assert sightline("publish", tmp_path / "footage", "--seconds", "7", **kafka).returncode == 0
    done = sightline("consume", "--group", "day", "--store", store, "--profile", profile, "--drain", "--json", **kafka)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 0
    assert again.verify() == []
    assert sum(s.frames for s in again.streams()) == 54


def _frames(store: Path) -> int:
    try:
        return sum(s.frames for s in Store.open(store).streams())
    except Exception:  # not made yet
        return 0


def test_segments_of_many_cameras_share_a_commit_and_are_announced(
    topics: KafkaSettings, store: Store, tmp_path: Path
) -> None:
    files = [film(tmp_path / "films", camera) for camera in range(4)]
    assert publish(topics, files) == 12
    report = drain(store, topics, consume={"commit_segments": 100, "commit_seconds": 5})
    assert (report.segments, report.frames, report.dead_letters) == (12, 48, 0)
    assert report.commits < 12
    assert report.footage.stored == FootageAmount(segments=12, frames=48, seconds=48)
    assert report.footage.repeated == report.footage.dropped == FootageAmount()
    publish(topics, files[:1])
    assert (
        str(drain(store, topics).footage) == "stored: nothing; repeated: 3 segments, 12 frames, 12 s; dropped: nothing"
    )
    assert all(seconds(store, f"cam{camera}") == list(range(12)) for camera in range(4))
    assert store.verify() == []
    announced = [IndexedMessage.model_validate_json(record.value) for record in read_all(topics, topics.indexed)]
    assert sorted((m.stream, m.frames) for m in announced) == sorted(
        [*((f"cam{c}", 4) for c in range(4) for _ in range(3)), *[("cam0", 0)] * 3]
    )
    # Lag tools see the group where the store is.
    consumer = new_consumer(topics, group_id="g")
    partitions = native((topics.segments, n) for n in range(4))
    ends = consumer.end_offsets(partitions)
    assert {p: consumer.committed(p) or 0 for p in partitions} == ends
    consumer.close()


def test_the_zone_of_a_clock_travels_with_its_segments(topics: KafkaSettings, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "cam0_20241027_023000.mp4"  # a time that occurs twice
    make_video(path, seconds=8, gop=10)
    publish(topics, [path], timezone="Europe/Amsterdam")
    drain(store, topics)
    assert [(rfc3339(s.start), s.clock_source, s.clock_zone, s.clock_fold) for s in store.segments()] == [
        (f"2024-10-27T00:30:0{second}Z", "filename", "Europe/Amsterdam", "first") for second in (0, 4)
    ]


@pytest.mark.parametrize("gop", [11, 30])
def test_cut_anywhere_no_second_is_lost_or_doubled(
    topics: KafkaSettings, store: Store, tmp_path: Path, gop: int
) -> None:
    """12 frames a second from 0.483 to 22.4; cut every 11/3 s, then every 5 s."""
    path = film(tmp_path / "films", 0, seconds=22, rate=12, gop=gop)
    publish(topics, [path], start=datetime(2024, 3, 1, 8, 0, 0, 483_000, UTC), seconds=3.6)
    drain(store, topics)
    assert seconds(store, "cam0") == list(range(23))
    assert store.verify() == []


def test_poison_goes_to_the_dead_letter_and_is_replayed(
    topics: KafkaSettings, store: Store, tmp_path: Path, sightline: Process, broker: Broker
) -> None:
    from kafka.admin import KafkaAdminClient, NewTopic

    # A dead letter topic created by somebody else, which accepts no more than the broker's default.
    topics = topics.model_copy(update={"prefix": f"{topics.prefix}-poison"})
    admin = KafkaAdminClient(**topics.client())
    admin.create_topics([NewTopic(topics.deadletter, 2, 1)])
    admin.close()
    make_topics(topics)
    path = film(tmp_path / "films", 0, seconds=4)
    payload = path.read_bytes()
    objects = tmp_path / "objects"
    objects.mkdir()
    missing = (objects / "late.mp4").as_uri()
    good = segment_message("cam0", BEGAN, 4.0, payload)
    bad: dict[str, bytes] = {
        "not JSON": b"{nonsense",
        "not text": b"\xff\xfe\x00",
        "version": good.to_bytes().replace(b'"version":1', b'"version":7'),
        "checksum": good.model_copy(update={"sha256": "0" * 64}).to_bytes(),
        "missing": segment_message("cam0", BEGAN + 10 * SECOND, 4.0, payload, uri=missing).to_bytes(),
        "not allowed": segment_message("cam0", BEGAN, 4.0, payload, uri=path.as_uri()).to_bytes(),
        "undecodable": segment_message("cam0", BEGAN, 4.0, b"no video" * 50).to_bytes(),
        "future": segment_message("cam0", int((time.time() + 9000) * 1e6), 4.0, payload).to_bytes(),
        "large": b"x" * 980_000 + b"\xff",  # does not fit into a dead letter, which would be larger still
    }
    with Sender(topics) as sender:
        for value in bad.values():
            sender.send(topics.segments, key="cam0", value=value)
        sender.send(topics.segments, key="cam0", value=good.to_bytes())
        sender.flush()
    settings = topics.model_copy(update={"objects": (str(objects),)})
    report = drain(store, settings, consume={"attempts": 2})
    assert (report.segments, report.frames, report.dead_letters) == (1, 4, len(bad))
    assert seconds(store, "cam0") == [0, 1, 2, 3]
    assert store.verify() == []

    letters = dict(zip(bad, list_letters(topics), strict=True))  # by time, and so as they were sent
    assert {name: (letter.error, letter.where) for name, letter in letters.items()} == {
        "not JSON": ("MessageInvalid", "message"),
        "not text": ("MessageInvalid", "message"),
        "version": ("MessageInvalid", "message"),
        "checksum": ("MessageInvalid", "fetch"),
        "missing": ("SourceNotFound", "fetch"),
        "not allowed": ("SourceDenied", "fetch"),
        "undecodable": ("NotVideo", "decode"),
        "future": ("MessageInvalid", "clock"),
        "large": ("MessageInvalid", "message"),
    }
    assert all(letter.attempt == 1 for letter in letters.values())
    assert [letters[name].original() for name in bad if name != "large"] == [v for n, v in bad.items() if n != "large"]
    assert letters["large"].original() is None

    # The object arrives late; its letter is replayed and then gone, one that still fails comes back with attempt 2.
    (objects / "late.mp4").write_bytes(payload)
    kafka = {"SIGHTLINE_KAFKA_SERVERS": broker.servers, "SIGHTLINE_KAFKA_PREFIX": topics.prefix}
    listed = json.loads(sightline("deadletter", "list", "--json", **kafka).stdout)
    assert {row["origin"] for row in listed} == {letter.origin for letter in letters.values()}
    chosen = [letters["missing"].origin, letters["version"].origin]
    done = sightline("deadletter", "replay", *chosen, "--json", **kafka)
    assert done.returncode == 0, done.stderr
    assert len(list_letters(topics)) == len(bad) - 2
    assert drain(store, settings).frames == 4
    assert seconds(store, "cam0") == [0, 1, 2, 3, 10, 11, 12, 13]
    assert store.verify() == []
    again = [letter for letter in list_letters(topics) if letter.attempt == 2]
    assert [letter.reason for letter in again] == [letters["version"].reason]
    assert sightline("deadletter", "replay", "no/0/0", **kafka).returncode == 2
    assert len(replay(topics, [letters["large"].origin])) == 1  # fetched from where it came from


def test_poison_of_every_kind_is_kept_and_the_partition_goes_on(
    topics: KafkaSettings, store: Store, tmp_path: Path, broker: Broker
) -> None:
    """Hostile values, keys, headers and batches of every codec; what cannot be stored can be read back byte for byte."""
    from kafka import KafkaProducer

    one = topics.model_copy(update={"prefix": f"{topics.prefix}-poison", "partitions": 1})
    make_topics(one)
    payload = film(tmp_path / "films", 0, seconds=4).read_bytes()
    good = [segment_message("cam0", BEGAN + 10 * i * SECOND, 4.0, payload).to_bytes() for i in range(6)]
    fields = json.loads(good[0])
    bad = [json.dumps({**fields, **{name: value}}).encode() for kind in KINDS.values() for name, value in _small(kind)]
    rng = random.Random(5)
    bad += [value for _, value, _ in (mutated(good[0], rng) for _ in range(60)) if value and value != good[0]]
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        with contextlib.closing(KafkaProducer(**one.client(), compression_type=codec, linger_ms=20)) as producer:
            for value in bad[::4]:
                producer.send(one.segments, key=b"cam0", value=value, headers=[("sightline-attempt", b"9" * 5000)])
            producer.send(one.segments, key=b"cam0", value=good.pop(), headers=[("sightline-attempt", b"\xff")])
            producer.flush()
    with Sender(one) as sender:
        sender.send(one.segments, key=b"\xff\xfe", value=good.pop(), headers=[("x", b"\xff" * 3000), ("\0", b"")])
        sender.send(one.segments, key="cam0", value=good.pop())
        sender.flush()
    report = drain(store, one, consume={"attempts": 1})
    assert (report.segments, report.frames) == (5, 20)
    letters = list_letters(one)
    assert len(letters) == report.dead_letters == 4 * len(bad[::4]) + 1
    assert sorted(letter.original() or b"" for letter in letters if letter.key_data is None) == sorted(4 * bad[::4])
    (odd,) = (letter for letter in letters if letter.key_data is not None)
    assert (odd.original_key(), odd.original_headers()) == (b"\xff\xfe", [("x", b"\xff" * 3000), ("\0", b"")])
    assert store.verify() == []
    for letter in letters[::20]:
        shown = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "deadletter", "show", letter.origin, "--raw"],
            cwd=tmp_path,
            env=environment(tmp_path, SIGHTLINE_KAFKA_SERVERS=broker.servers, SIGHTLINE_KAFKA_PREFIX=one.prefix),
            capture_output=True,
            check=True,
        )
        assert shown.stdout == letter.original()


def _small(kind: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, 1e308 if isinstance(value, int) else value) for name, value in kind.items()]


def test_work_longer_than_the_poll_interval_evicts_no_worker(
    topics: KafkaSettings, store: Store, tmp_path: Path
) -> None:
    settings = topics.model_copy(update={"poll_seconds": 15.0})
    publish(settings, [film(tmp_path / "films", camera, seconds=8) for camera in range(2)])
    slow = counting(slow=2.0)
    report = consume(
        store,
        slow,
        kafka=settings,
        group="g",
        settings=ConsumeSettings(queue_segments=1, batch_frames=16, commit_segments=4, commit_seconds=60, decoders=1),
        drain=True,
    )
    assert report.frames == 16  # one commit of 16 frames, encoded for 32 s, over twice the poll interval
    assert report.commits == 1
    assert (report.rebalances, report.fenced) == (1, 0)
    assert store.verify() == []


def test_a_full_queue_pauses_the_partitions(topics: KafkaSettings, store: Store, tmp_path: Path) -> None:
    publish(topics, [film(tmp_path / "films", camera, seconds=16) for camera in range(3)], seconds=1)
    report = drain(store, topics, consume={"queue_segments": 2, "commit_segments": 3, "decoders": 1})
    assert report.frames == 48
    assert all(seconds(store, f"cam{camera}") == list(range(16)) for camera in range(3))
    assert store.verify() == []


def test_a_recreated_topic_is_an_error_until_it_is_accepted(
    topics: KafkaSettings, store: Store, tmp_path: Path
) -> None:
    from kafka.admin import KafkaAdminClient

    one = topics.model_copy(update={"prefix": f"{topics.prefix}-again", "partitions": 1})
    make_topics(one)
    publish(one, [film(tmp_path / "films", 0)])
    assert drain(store, one).frames == 12
    admin = KafkaAdminClient(**one.client())
    admin.delete_topics([one.segments])
    until(lambda: one.segments not in admin.list_topics(), "the topic is gone")
    admin.close()
    make_topics(one)
    later = film(tmp_path / "later", 1, seconds=8)
    publish(one, [later])  # two messages where the store has read three: a lower end
    with pytest.raises(TopicRecreated, match="has read up to offset 3 and the topic"):
        drain(store, one)
    publish(one, [later])
    publish(one, [later])  # now its end is higher, and still it is another topic
    with pytest.raises(TopicRecreated, match="was deleted and created again"):
        drain(store, one)
    assert drain(store, one, accept_recreated=True).frames == 8
    assert seconds(store, "cam1") == list(range(8))
    publish(one, [film(tmp_path / "third", 2, seconds=8)])
    assert drain(store, one).frames == 8
    assert store.verify() == []


def test_messages_that_expired_before_they_were_stored_are_reported(
    topics: KafkaSettings, store: Store, tmp_path: Path
) -> None:
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

    one = topics.model_copy(update={"prefix": f"{topics.prefix}-expired", "partitions": 1})
    make_topics(one)
    publish(one, [film(tmp_path / "films", 0)])
    assert drain(store, one).frames == 12
    publish(one, [film(tmp_path / "films", 1)])
    admin = KafkaAdminClient(**one.client())
    admin.delete_records({TopicPartition(one.segments, 0): 5})
    admin.close()
    with pytest.raises(OffsetsExpired, match="messages 3 to 4 have expired"):
        drain(store, one)
    assert drain(store, one, accept_expired=True).frames == 4
    assert seconds(store, "cam1") == [8, 9, 10, 11]
    assert store.verify() == []


def test_segments_may_be_objects_in_a_folder(topics: KafkaSettings, store: Store, tmp_path: Path) -> None:
    place = tmp_path / "objects of a day"
    small = topics.model_copy(update={"inline_bytes": 10})
    files = [film(tmp_path / "films", 0)]
    refused = publish_files(files, settings=small, sender=lambda: Sender(small))
    assert "over kafka.inline_bytes (10)" in str(refused[0].problem)
    assert publish(small, files, objects=str(place)) == 3
    assert len(list(place.rglob("*.mp4"))) == 3
    assert drain(store, topics.model_copy(update={"objects": (str(place),)})).frames == 12
    assert store.verify() == []


def test_a_broker_that_does_not_answer_is_one_sentence(tmp_path: Path, sightline: Process) -> None:
    absent = KafkaSettings(servers="127.0.0.1:9", connect_seconds=1)
    with pytest.raises(BrokerUnavailable, match="no answer within 1 s over PLAINTEXT"):
        make_topics(absent)
    done = sightline("deadletter", "list", SIGHTLINE_KAFKA_SERVERS="127.0.0.1:9", SIGHTLINE_KAFKA_CONNECT_SECONDS="1")
    assert done.returncode == 1
    assert done.stderr.startswith("sightline: Kafka at 127.0.0.1:9: no broker accepts connections")
    assert len(done.stderr.splitlines()) == 1


def test_two_groups_into_one_store_are_refused_and_double_nothing(
    topics: KafkaSettings, store: Store, tmp_path: Path
) -> None:
    """Two workers that both believe they own every partition, as a zombie and its successor do.

    Both have read their positions before one of them stores anything.
    """
    publish(topics, [film(tmp_path / "films", camera, seconds=20) for camera in range(3)], seconds=1)
    reports: list[ConsumeReport] = []
    both = threading.Barrier(2)

    class Meeting(FrameEncoderStub):
        """Waits for the other worker before the first frame is encoded."""

        met = False

        def frame_features(self, frames: Sequence[NDArray[np.uint8]]) -> Any:
            """float32[N, 16]."""
            if not self.met:
                both.wait(300)
                self.met = True
            return super().frame_features(frames)

    def work(group: str) -> None:
        encoders = counting()
        encoders.frame = Meeting(0.0)
        opened = Store.open(store.url)
        reports.append(drain(opened, topics, group, encoders=encoders, consume={"commit_segments": 2}))

    threads = [threading.Thread(target=work, args=(group,)) for group in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(reports) == 2
    assert sum(report.frames for report in reports) == 60
    assert sum(report.fenced for report in reports) > 0  # they did collide
    assert all(seconds(store, f"cam{camera}") == list(range(20)) for camera in range(3))
    assert store.verify() == []
