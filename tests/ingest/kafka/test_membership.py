"""Rebalances that do not end, and offsets that the group refuses: a worker ends in time, and loses nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition, errors
from kafka.consumer import group as consumer_group
from kafka.structs import MemberState

from index.commits.offset import OffsetCommitter
from index.errors import KafkaProblem
from index.second_grid import seconds_of
from index.store import Store
from ingest.kafka import fetch, poller
from ingest.kafka.indexer import ConsumeReport
from ingest.kafka.membership import SETTLE_POLLS, PersistentCoordinator, SettleLimit
from ingest.kafka.ownership import Partition
from ingest.kafka.settings import ConsumeSettings, KafkaSettings
from ingest.messages import segment_message
from ingest.segments.frames import SegmentFrames
from tests.fuzz.messages import Letters, errors_only
from tests.support.brightness import BEGAN, ENCODERS, SECOND
from tests.support.records import PAIR

KAFKA = KafkaSettings(prefix="test")
PLACE = TopicPartition("test.segments", 0)
LIMIT = SETTLE_POLLS * 300 + 45 + 30


@dataclass
class Group:
    """Takes the place of a consumer and its broker: one member, one partition. Each poll takes `step` seconds."""

    step: float = 0.2
    """Seconds of a poll, by `now`."""
    joined: Callable[[float], bool] = lambda _: True
    """Whether no rebalance is under way at a time."""
    refuses: Callable[[float], bool] = lambda _: False
    """Whether a commit at a time is refused, as by a group that rebalances."""
    answers: Callable[[float], bool] = lambda _: True
    """Whether the broker answers at a time."""
    records: list[bytes] = field(default_factory=list)
    """The values of the partition's messages."""
    now: float = 0.0
    """The clock."""
    offset: int | None = None
    """The group's offset."""
    calls: list[tuple[str, float]] = field(default_factory=list)
    """The requests about offsets and when."""
    closed: bool = False
    """Whether the consumer was closed."""
    _answers: list[Callable[[], None]] = field(default_factory=list)
    _position: int = 0
    _paused: bool = False

    def clock(self) -> float:
        """The time in seconds."""
        return self.now

    def subscribe(self, topics: list[str], listener: Any) -> None:
        """The partition is assigned at once: the rebalance that does not end is the next one."""
        assert topics == [KAFKA.segments]
        self.listener = listener

    def partitions_for_topic(self, _: str) -> set[int]:
        """The partitions of the topic."""
        return {0}

    def group_metadata(self) -> Any:
        """The state of the member."""
        return SimpleNamespace(state=MemberState.STABLE if self.joined(self.now) else MemberState.REBALANCING)

    def assignment(self) -> set[Any]:
        """The assigned partitions."""
        return {PLACE}

    def poll(self, timeout_ms: int) -> dict[Any, list[Any]]:
        """The records behind the position, none during a rebalance; before them the answers to commits."""
        assert timeout_ms > 0
        if not self.now:
            self.listener.on_partitions_assigned([PLACE])
        self.now += self.step
        answers, self._answers = self._answers, []
        for answer in answers:
            answer()
        if self._paused or not self.joined(self.now):
            return {}
        found = [
            SimpleNamespace(offset=at, key=b"gate", value=self.records[at], headers=[])
            for at in range(self._position, len(self.records))
        ]
        self._position = len(self.records)
        return {PLACE: found} if found else {}

    def seek(self, _: Any, offset: int) -> None:
        """Move the position."""
        self._position = offset

    def pause(self, *_: Any) -> None:
        """Return no records from now on."""
        self._paused = True

    def resume(self, *_: Any) -> None:
        """Return records again."""
        self._paused = False

    def paused(self) -> set[Any]:
        """The paused partitions."""
        return {PLACE} if self._paused else set()

    def beginning_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        """The first offset of each."""
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: list[Any], timeout_ms: int = 30_000) -> dict[Any, int]:
        """The next offset of each."""
        if not self.answers(self.now):
            self.now += timeout_ms / 1000
            raise errors.KafkaTimeoutError()
        return dict.fromkeys(partitions, len(self.records))

    def committed(self, _: Any, timeout_ms: int) -> int | None:
        """The group's offset."""
        self.calls.append(("committed", self.now))
        if not self.joined(self.now):
            self.now += timeout_ms / 1000  # the answer waits behind that to JoinGroup
            raise errors.KafkaTimeoutError()
        return self.offset

    def commit(self, offsets: dict[Any, Any], timeout_ms: int) -> None:
        """Set the group's offset, unless it is refused."""
        assert timeout_ms > 0
        self.calls.append(("commit", self.now))
        if not self.joined(self.now) or self.refuses(self.now):
            raise errors.RebalanceInProgressError()
        self.offset = offsets[PLACE].offset

    def commit_async(self, offsets: dict[Any, Any], callback: Callable[[Any, Any], None]) -> None:
        """Set the group's offset, unless it is refused; the next poll says which."""
        try:
            self.commit(offsets, timeout_ms=1)
        except errors.RebalanceInProgressError as error:
            refusal = error
            self._answers.append(lambda: callback(offsets, refusal))
        else:
            self._answers.append(lambda: callback(offsets, None))

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        """Leave the group."""
        assert not autocommit
        assert timeout_ms > 0
        self.closed = True


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """There is a warning for each refusal."""
    with errors_only():
        yield


class _Outbox(Letters):
    def __enter__(self) -> _Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.sent


def consume(
    store: Store, group: Group, monkeypatch: pytest.MonkeyPatch, stop: threading.Event | None = None
) -> ConsumeReport:
    """Drain the group's partition with a worker of the project, or run it until `stop`; a segment has one frame."""

    def one_frame(path: Path, *, name: str, start: int, **_: Any) -> SegmentFrames:
        return SegmentFrames([start], [0.0], [np.zeros((8, 8, 3), np.uint8)], "all")

    monkeypatch.setattr(poller, "new_consumer", lambda *_, **__: group)
    monkeypatch.setattr(poller, "make_topics", lambda kafka: {kafka.segments: ""})
    monkeypatch.setattr(poller, "Sender", lambda _: _Outbox())
    monkeypatch.setattr(fetch, "decode_segment", one_frame)
    settings = ConsumeSettings(commit_seconds=0, commit_segments=1, decoders=1)
    return poller.consume(
        store,
        ENCODERS,
        kafka=KAFKA,
        group="night",
        settings=settings,
        stop=stop,
        drain=stop is None,
        clock=group.clock,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


def segments(count: int) -> list[bytes]:
    """Messages of one camera, a second each."""
    return [segment_message("gate", BEGAN + n * SECOND, 1.0, b"footage").to_bytes() for n in range(count)]


def test_a_rebalance_that_does_not_end_ends_the_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(joined=lambda _: False, records=segments(3), step=0.5)
    with pytest.raises(KafkaProblem, match=r"group night is not joined: its rebalance does not end; test.segments/0"):
        consume(store, group, monkeypatch)
    assert LIMIT < group.now <= LIMIT + 2 * group.step
    assert group.calls == []  # none that waits for the slowest member instead of polling
    assert group.closed
    # Nothing was stored; the next worker stores everything, from the first message.
    assert OffsetCommitter(store.tables).offsets(["test.segments/0"]) == {"test.segments/0": None}
    assert consume(store, Group(records=group.records), monkeypatch).frames == 3
    assert store.verify() == []


def test_a_group_that_refuses_every_commit_ends_the_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(refuses=lambda _: True, records=segments(1), step=400)
    with pytest.raises(KafkaProblem, match=r"group night is joined; test.segments/0 cannot be positioned; start"):
        consume(store, group, monkeypatch)
    assert group.now == 1200  # the first poll after the limit
    assert store.streams() == []
    assert group.closed


def test_a_rebalance_that_ends_before_the_limit_delays_the_worker(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(joined=lambda now: now > LIMIT - 1, records=segments(3), step=0.5)
    report = consume(store, group, monkeypatch)
    assert (report.frames, report.dead_letters, group.offset) == (3, 0, 3)
    assert min(at for _, at in group.calls) > LIMIT - 1


def test_a_broker_that_is_gone_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def back(now: float) -> bool:
        return now > 10 * LIMIT

    group = Group(joined=back, answers=back, records=segments(3), step=5)
    report = consume(store, group, monkeypatch)
    assert (report.frames, group.offset) == (3, 3)
    assert group.now > 10 * LIMIT


def test_after_an_outage_the_limit_counts_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(joined=lambda _: False, answers=lambda now: now > 5000, records=segments(3), step=5)
    with pytest.raises(KafkaProblem, match="its rebalance does not end"):
        consume(store, group, monkeypatch)
    assert 5000 - 60 + LIMIT < group.now <= 5000 + LIMIT + 60


def test_offsets_that_were_refused_are_committed_again_and_never_an_older_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The initial offset is accepted; then every second commit is refused."""
    turns = iter([False, *[True, False] * 100])
    group = Group(refuses=lambda _: next(turns), records=segments(5))
    offsets: list[int] = []
    stop = threading.Event()
    poll, commit = group.poll, group.commit

    def polled(timeout_ms: int) -> Any:
        time.sleep(0.001)  # so that the other threads go on
        if group.offset == 5 or group.now > 2000:
            stop.set()
        return poll(timeout_ms)

    def committed(asked: dict[Any, Any], timeout_ms: int) -> None:
        offsets.append(asked[PLACE].offset)
        commit(asked, timeout_ms)

    monkeypatch.setattr(group, "poll", polled)
    monkeypatch.setattr(group, "commit", committed)
    assert consume(store, group, monkeypatch, stop).frames == 5
    assert group.offset == 5
    assert offsets == sorted(offsets)
    assert (seconds_of(store.window(["gate"]).captured_at) - BEGAN // SECOND).tolist() == list(range(5))


@given(
    st.lists(
        st.tuples(st.floats(0.1, 200), st.booleans(), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_the_limit_counts_from_the_last_turn_in_which_all_was_well(turns: list[tuple[float, bool, bool]]) -> None:
    """Against a naive reference: raises in the first turn more than the limit after the last good one."""
    now = last = 0.0
    kafka = KafkaSettings(poll_seconds=50, session_seconds=20, connect_seconds=10)
    limit = SettleLimit(kafka, "g", lambda: True, lambda: now)
    for seconds, joined, positioned in turns:
        now += seconds
        last = now if joined and positioned else last
        unpositioned = [] if positioned else [Partition("t", 0)]
        if now - last > 180:
            with pytest.raises(KafkaProblem, match="the group g"):
                limit.check(joined, unpositioned)
            return
        limit.check(joined, unpositioned)


def test_every_consumer_of_a_group_finishes_the_rebalances_it_begins() -> None:
    assert consumer_group.ConsumerCoordinator is PersistentCoordinator
