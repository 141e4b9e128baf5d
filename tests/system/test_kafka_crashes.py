"""Workers killed at any moment, a broker that stops, rebalances one after the other, a worker that was suspended.

Three rounds of each by default; `KAFKA_ROUNDS=20` for twenty.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kafka_fleet import CAMERAS, LENGTH, PARTITIONS, Fleet, kill
from tests.support.kafka_server import Broker, broker
from tests.support.tools import need

__all__ = ["broker"]  # a fixture

ROUNDS = int(os.environ.get("KAFKA_ROUNDS", "3"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(300 + 120 * ROUNDS)]


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
        assert tries <= 3 * ROUNDS, "the workers are always done before they can be killed"
        before = fleet.expected
        fleet.publish()
        least = before + dice.randrange(1, CAMERAS * LENGTH // 2)
        fleet.until(lambda least=least: fleet.frames() >= least, "some of the round is stored")  # type: ignore[misc]
        time.sleep(dice.random() * 0.3)
        proven += kill(fleet, dice.choice(fleet.workers))
        fleet.start(1)
        fleet.whole()
    reports = fleet.stop()
    assert sum(report["dead_letters"] for report in reports) == 0


def test_all_workers_killed_at_once(fleet: Fleet) -> None:
    """No worker is left; the next one starts at the store's offsets."""
    fleet.start(2)
    fleet.publish()
    fleet.until(lambda: fleet.frames() > 0, "something is stored")
    undone = [kill(fleet, worker) for worker in list(fleet.workers)]
    assert any(undone)
    assert 0 < fleet.frames() < fleet.expected
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
            fleet.publish()
            least = fleet.expected - CAMERAS * LENGTH + 1
            fleet.until(lambda least=least: fleet.frames() >= least, "some of the round is stored")  # type: ignore[misc]
            assert fleet.frames() < fleet.expected
            how = signal.SIGKILL if number % 2 else signal.SIGTERM
            server.stop(how)
            assert server.process is not None
            assert server.process.returncode is not None
            server.start().wait(settings)
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
        fleet.publish()
        for _ in range(2):
            fleet.start(1)
            least = fleet.frames() + 1
            fleet.until(
                lambda least=least: fleet.frames() >= min(least, fleet.expected),  # type: ignore[misc]
                "work goes on",
            )
            if len(fleet.workers) > 2:
                leaving = fleet.workers.pop(0)
                leaving.send_signal(dice.choice([signal.SIGTERM, signal.SIGKILL]))
                leaving.wait(timeout=90)
        fleet.whole()
    reports = fleet.stop()
    assert fleet.logged("settled") > ROUNDS * 2  # partitions did change hands
    assert sum(report["dead_letters"] for report in reports) == 0


def test_a_suspended_worker_cannot_commit_partitions_of_others(fleet: Fleet) -> None:
    """Stopped in the middle of its work until its partitions have another owner, who goes past it; then woken."""
    fleet.slow = 0.3
    fleet.start(1)
    fleet.publish()
    fleet.until(lambda: fleet.frames() > 0, "something is stored")
    (sleeper,) = fleet.workers
    os.kill(sleeper.pid, signal.SIGSTOP)
    stopped_at = fleet.frames()
    assert stopped_at < fleet.expected
    fleet.slow = 0.0
    fleet.start(1)
    fleet.until(lambda: fleet.frames() >= fleet.expected, "another one has stored the rest")
    os.kill(sleeper.pid, signal.SIGCONT)
    fleet.publish()
    fleet.whole()
    # What it had decoded was refused, by the group or by the store: no frame was counted by two of them.
    assert sum(report["frames"] for report in fleet.stop()) == fleet.expected
