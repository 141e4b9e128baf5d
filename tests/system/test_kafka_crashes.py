"""Workers killed at any moment, a broker that goes away, rebalances one after the other, a worker that was asleep.

Three rounds of each by default; `KAFKA_ROUNDS=20` for twenty.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index.seconds import seconds_of
from index.store import Store
from ingest.kafka_clients import Sender, make_topics
from ingest.kafka_settings import KafkaSettings
from ingest.publisher import publish_files
from tests.index.conftest import PAIR
from tests.ingest.footage import make_video
from tests.system.conftest import ROOT, environment
from tests.system.kafka_server import Broker, broker

__all__ = ["broker"]  # a fixture

ROUNDS = int(os.environ.get("KAFKA_ROUNDS", "3"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(300 + 60 * ROUNDS)]
CAMERAS = 3
LENGTH = 12  # seconds of footage of one camera in one round, in segments of two
BEGAN = 1_709_280_000  # 2024-03-01T08:00:00Z


class Fleet:
    """Workers as processes, one store, and the footage that must be in it."""

    def __init__(self, folder: Path, kafka: KafkaSettings, slow: float = 0.02) -> None:
        self.folder, self.kafka, self.slow = folder, kafka, slow
        self.store = Store.create(folder / "store", PAIR)
        self.workers: list[subprocess.Popen[str]] = []
        self.rounds = self.started = 0
        self.films = [folder / f"cam{camera}.mp4" for camera in range(CAMERAS)]
        for path in self.films:
            make_video(path, seconds=LENGTH, gop=10)
        make_topics(kafka)

    def publish(self) -> None:
        """One more round of every camera's footage, right after the one before."""
        from datetime import UTC, datetime

        start = datetime.fromtimestamp(BEGAN + self.rounds * LENGTH, UTC)
        for path in self.films:
            report = publish_files(
                [path], settings=self.kafka, sender=lambda: Sender(self.kafka), start=start, seconds=2
            )
            assert report[0].segments == LENGTH // 2
        self.rounds += 1

    def start(self, count: int = 1) -> None:
        for _ in range(count):
            order = {
                "store": self.store.url,
                "group": "fleet",
                "kafka": self.kafka.model_dump(mode="json", exclude_none=True),
                "consume": {"commit_seconds": 0.3, "commit_segments": 4, "batch_frames": 8, "decoders": 1},
                "slow": self.slow,
            }
            self.started += 1
            log = (self.folder / f"worker-{self.started}.log").open("w")
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.system.kafka_worker", json.dumps(order)],
                    cwd=ROOT,
                    env=environment(self.folder),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )

    def frames(self) -> int:
        return sum(s.frames for s in self.store.streams())

    @property
    def expected(self) -> int:
        return CAMERAS * LENGTH * self.rounds

    def until(self, true: Callable[[], bool], what: str, timeout: float = 120) -> None:
        """Wait, and fail when a worker ends by itself."""
        deadline = time.monotonic() + timeout
        while not true():
            for worker in self.workers:
                assert worker.poll() is None, f"a worker ended with {worker.returncode}:\n{self.logs()}"
            assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s:\n{self.logs()}"
            time.sleep(0.02)

    def whole(self) -> None:
        """Wait for every frame, then: every second of every camera once, and a store that agrees with itself."""
        self.until(lambda: self.frames() >= self.expected, f"{self.expected} frames stored")
        for camera in range(CAMERAS):
            held = seconds_of(self.store.window([f"cam{camera}"]).captured_at) - BEGAN
            assert held.tolist() == list(range(LENGTH * self.rounds))
        self.until(lambda: self.store.verify() == [], "the store agrees with itself")  # a commit may be under way

    def logs(self) -> str:
        texts = [path.read_text()[-3000:] for path in sorted(self.folder.glob("worker-*.log"))[-3:]]
        return "\n----\n".join(texts)

    def said(self, text: str) -> int:
        """How many times the workers have logged this."""
        return sum(path.read_text().count(text) for path in self.folder.glob("worker-*.log"))

    def stop(self) -> list[Any]:
        """End all workers in order; their reports."""
        for worker in self.workers:
            worker.terminate()
        ended = [(worker, worker.communicate(timeout=90)[0]) for worker in self.workers]
        assert [worker.returncode for worker, _ in ended] == [0] * len(ended), self.logs()
        self.workers = []
        return [json.loads(out) for _, out in ended]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


@pytest.fixture
def fleet(broker: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    prefix = f"crash-{abs(hash(request.node.name)) % 10**9}"
    made = Fleet(tmp_path, broker.settings(prefix=prefix, partitions=4))
    try:
        yield made
    finally:
        made.close()


def test_killed_at_random_moments(fleet: Fleet) -> None:
    dice = random.Random(7)
    fleet.start(2)
    for number in range(ROUNDS):
        before = fleet.expected
        fleet.publish()
        # In the middle of the round's work: some of it is stored, and the rest is not.
        share = dice.randrange(1, CAMERAS * LENGTH * 2 // 3)
        fleet.until(lambda least=before + share: fleet.frames() >= least, "some of the round is stored")  # type: ignore[misc]
        victim = fleet.workers.pop(dice.randrange(len(fleet.workers)))
        time.sleep(dice.random() * 0.2)
        assert victim.poll() is None  # alive
        os.kill(victim.pid, signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        assert before < fleet.frames() < fleet.expected, f"round {number}: there was nothing left to do"
        fleet.start(1)
        fleet.whole()
    reports = fleet.stop()
    assert sum(report["dead_letters"] for report in reports) == 0


def test_all_workers_killed_at_once(fleet: Fleet) -> None:
    """Nobody is left to go on; whoever comes next begins where the store says."""
    fleet.start(2)
    fleet.publish()
    fleet.until(lambda: fleet.frames() > 0, "something is stored")
    for worker in fleet.workers:
        assert worker.poll() is None
        os.kill(worker.pid, signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
    assert 0 < fleet.frames() < fleet.expected
    fleet.workers = []
    fleet.start(1)
    fleet.whole()
    fleet.stop()


def test_the_broker_goes_away_and_comes_back(tmp_path: Path) -> None:
    from tests.system.kafka_server import need_kafka

    need_kafka()
    server = Broker(tmp_path / "kafka").start()
    fleet: Fleet | None = None
    try:
        settings = server.settings(prefix="away", partitions=4)
        server.wait(settings)
        fleet = Fleet(tmp_path, settings, slow=0.05)
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
    """Members come and go, in order and killed, while there is work; each time the partitions are dealt anew."""
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
    assert fleet.said("settled") > ROUNDS * 2  # partitions did change hands
    assert sum(report["dead_letters"] for report in reports) == 0


def test_a_worker_that_was_asleep_cannot_commit_what_others_have(fleet: Fleet) -> None:
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
    fenced = fleet.said("fenced")
    os.kill(sleeper.pid, signal.SIGCONT)
    fleet.publish()
    fleet.whole()
    reports = fleet.stop()
    # What it had decoded was refused, by the group's word or by the store's.
    assert reports[0]["frames"] <= stopped_at + reports[0]["commits"] * CAMERAS * LENGTH
    assert sum(report["frames"] for report in reports) == fleet.expected
    assert fleet.said("fenced") >= fenced
