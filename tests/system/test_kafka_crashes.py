"""Workers killed at any moment, a broker that stops, rebalances one after the other, a worker that was suspended.

And a rebalance that waits for a member that does not poll, while the metadata of the topics change back and forth.

Three rounds of each by default; `KAFKA_ROUNDS=20` for twenty. The fleet holds back the end of a round until the fault has
happened, so that there is work left whenever it happens (`Fleet.hold`).
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from index.store import Store
from ingest.kafka import poller
from ingest.kafka.clients import make_topics, native, new_consumer
from ingest.kafka.membership import has_joined
from tests.support.footage import make_video
from tests.support.kafka_fleet import CAMERAS, LENGTH, PARTITIONS, Fleet, kill
from tests.support.kafka_footage import publish, seconds
from tests.support.kafka_server import Broker, broker
from tests.support.kafka_worker import counting
from tests.support.records import PAIR
from tests.support.tools import need

__all__ = ["broker"]  # a fixture

ROUNDS = int(os.environ.get("KAFKA_ROUNDS", "3"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(900 + 300 * ROUNDS)]


@pytest.fixture
def fleet(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    prefix = f"crash-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    made = Fleet(tmp_path, broker.settings(prefix=prefix, partitions=PARTITIONS))
    try:
        yield made
    finally:
        made.close()


def test_killed_at_random_moments(fleet: Fleet) -> None:
    dice = random.Random(7)
    fleet.start(2)
    proven = tries = 0
    while proven < ROUNDS:
        tries += 1
        assert tries <= 3 * ROUNDS, "the workers have no partitions when they are killed"
        fleet.share()
        before = fleet.expected
        fleet.hold()
        fleet.publish()
        least = before + dice.randrange(1, 8)  # what a worker stores before it is held
        fleet.until(lambda least=least: fleet.frames() >= least, "some of the round is stored")  # type: ignore[misc]
        time.sleep(dice.random() * 1.5)
        proven += kill(fleet, dice.choice(fleet.workers))
        fleet.start(1)
        fleet.release()
        fleet.whole()
    reports = fleet.stop()
    assert sum(report["dead_letters"] for report in reports) == 0


def test_all_workers_killed_at_once(fleet: Fleet) -> None:
    """No worker is left; the next one starts at the store's offsets."""
    fleet.start(2)
    fleet.hold()
    fleet.publish()
    fleet.until(lambda: fleet.frames() > 0, "something is stored")
    undone = [kill(fleet, worker) for worker in list(fleet.workers)]
    assert any(undone)
    assert 0 < fleet.frames() < fleet.expected
    fleet.release()
    fleet.start(1)
    fleet.whole()
    fleet.stop()


def test_the_broker_goes_away_and_comes_back(tmp_path: Path) -> None:
    need("java", "mvn")
    server = Broker(tmp_path / "kafka").start()
    fleet: Fleet | None = None
    try:
        settings = server.settings(prefix="away", partitions=PARTITIONS)
        server.wait(settings)
        fleet = Fleet(tmp_path, settings, slow=0.1)
        fleet.start(2)
        for number in range(max(1, ROUNDS // 3)):
            fleet.hold()
            fleet.publish()
            least = fleet.expected - CAMERAS * LENGTH + 1
            fleet.until(lambda least=least: fleet.frames() >= least, "some of the round is stored")  # type: ignore[misc]
            assert fleet.frames() < fleet.expected
            how = signal.SIGKILL if number % 2 else signal.SIGTERM
            server.stop(how)
            assert server.process is not None
            assert server.process.returncode is not None
            server.start().wait(settings)
            fleet.release()
            fleet.whole()
        fleet.stop()
    finally:
        if fleet is not None:
            fleet.close()
        server.close()


def test_rebalances_one_after_the_other(fleet: Fleet) -> None:
    """Members come and go, in order and killed, while there is work; each time the partitions are assigned again."""
    dice = random.Random(11)
    fleet.start(1)
    for _ in range(ROUNDS):
        fleet.hold()
        fleet.publish()
        for _ in range(2):
            fleet.start(1)
            fleet.share()
            if len(fleet.workers) > 2:
                leaving = fleet.workers.pop(0)
                leaving.send_signal(dice.choice([signal.SIGTERM, signal.SIGKILL]))
                leaving.wait(timeout=300)
        fleet.release()
        fleet.whole()
    reports = fleet.stop()
    assert fleet.logged("settled") > ROUNDS * 2  # partitions did change hands
    assert sum(report["dead_letters"] for report in reports) == 0


def test_a_rebalance_whose_cause_goes_away_is_finished(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader joins again for the topic of another member, which does not poll; then it no longer sees that topic."""
    mine = broker.settings(prefix="finished", partitions=1)
    theirs = broker.settings(prefix="finished-others", partitions=1)
    store, stop = Store.create(tmp_path / "store", PAIR), threading.Event()
    films = [tmp_path / f"cam{number}_2024-03-01T08-00-00Z.mp4" for number in range(2)]
    for path in films:
        make_video(path, seconds=4, gop=10)
    make_topics(theirs)
    consumers: list[Any] = []

    def made(*arguments: Any, **more: Any) -> Any:
        consumers.append(new_consumer(*arguments, **more))
        return consumers[-1]

    def until(true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert time.monotonic() < deadline, f"{what}: not within 300 s"
            time.sleep(0.02)

    monkeypatch.setattr(poller, "new_consumer", made)
    assignor = {"partition_assignment_strategy": [CooperativeStickyAssignor]}

    def held() -> Any:
        """A member that does not poll from now on, and for which the leader waits."""
        for _ in range(20):
            other = new_consumer(theirs, group_id="g", auto_offset_reset="earliest", **assignor)
            other.subscribe([theirs.segments])
            while not has_joined(other):
                other.poll(timeout_ms=100)
            waits = 0
            for _ in range(40):
                time.sleep(0.05)
                waits = 0 if has_joined(leader) else waits + 1
                if waits == 20:
                    return other
            other.close(autocommit=False)  # it was slow to join, and joined the second rebalance too
        pytest.fail("the leader never had to wait")

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(poller.consume, store, counting(), kafka=mine, group="g", stop=stop)
        try:
            until(lambda: bool(consumers and consumers[0].assignment()), "the worker leads the group")
            (leader,) = consumers
            other = held()
            leader.topics()  # new metadata, as after a lost connection; its own topic is as it was assigned
            publish(mine, films)
            other.close(autocommit=False)
            until(lambda: has_joined(leader), "the rebalance ends")
            place = native([(mine.segments, 0)])[0]
            until(lambda: leader.committed(place) == 2, "the group has the worker's offset")
        finally:
            stop.set()
        assert worker.result(timeout=300).frames == 8
    assert [seconds(store, f"cam{number}") for number in range(2)] == [list(range(4))] * 2
    assert store.verify() == []


def test_a_suspended_worker_cannot_commit_partitions_of_others(fleet: Fleet) -> None:
    """Stopped in the middle of its work until its partitions have another owner, who goes past it; then woken."""
    fleet.slow = 0.3
    fleet.start(1)
    fleet.hold()
    fleet.publish()
    fleet.until(lambda: fleet.frames() > 0, "something is stored")
    (sleeper,) = fleet.workers
    os.kill(sleeper.pid, signal.SIGSTOP)
    stopped_at = fleet.frames()
    assert stopped_at < fleet.expected
    fleet.slow = 0.0
    fleet.release()
    fleet.start(1)
    fleet.until(lambda: fleet.frames() >= fleet.expected, "another one has stored the rest")
    os.kill(sleeper.pid, signal.SIGCONT)
    fleet.publish()
    fleet.whole()
    # What it had decoded was refused, by the group or by the store: no frame was counted by two of them.
    assert sum(report["frames"] for report in fleet.stop()) == fleet.expected
