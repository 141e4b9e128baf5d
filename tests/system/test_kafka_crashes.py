"""Workers killed at any moment, a broker that stops, rebalances one after the other, a worker that was suspended.

Three rounds of each by default; `KAFKA_ROUNDS=20` for twenty.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index.commits.offset import OffsetCommitter
from index.second_grid import seconds_of
from index.store import Store
from ingest.kafka.clients import Sender, make_topics
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import KafkaSettings
from tests.support.footage import make_video
from tests.support.kafka_server import Broker, broker
from tests.support.processes import ROOT, environment
from tests.support.records import PAIR
from tests.support.tools import need

__all__ = ["broker"]  # a fixture

ROUNDS = int(os.environ.get("KAFKA_ROUNDS", "3"))
pytestmark = [pytest.mark.system, pytest.mark.timeout(300 + 120 * ROUNDS)]
PARTITIONS = 4
CAMERAS = 4
LENGTH = 12  # seconds of footage of one camera in one round, in segments of two
BEGAN = 1_709_280_000  # 2024-03-01T08:00:00Z


def camera_names() -> list[str]:
    """One camera in each partition, so that workers have something to share."""
    from kafka.partitioner.default import murmur2

    found: dict[int, str] = {}
    for number in range(1000):
        found.setdefault((murmur2(f"cam{number}".encode()) & 0x7FFFFFFF) % PARTITIONS, f"cam{number}")
    return [found[partition] for partition in range(CAMERAS)]


class Fleet:
    """Workers as processes, one store, and the footage that must be in it."""

    def __init__(self, folder: Path, kafka: KafkaSettings, slow: float = 0.1) -> None:
        self.folder, self.kafka, self.slow = folder, kafka, slow
        self.store = Store.create(folder / "store", PAIR)
        self.workers: list[subprocess.Popen[str]] = []
        self.log_of: dict[int, Path] = {}
        self.rounds = self.started = 0
        self.films = [folder / f"{name}.mp4" for name in camera_names()]
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
            path = self.folder / f"worker-{self.started:03}.log"
            with path.open("w") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.kafka_worker", json.dumps(order)],
                    cwd=ROOT,
                    env=environment(self.folder),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self.workers.append(worker)
            self.log_of[worker.pid] = path

    def frames(self) -> int:
        return sum(s.frames for s in self.store.streams())

    @property
    def expected(self) -> int:
        return CAMERAS * LENGTH * self.rounds

    def until(self, true: Callable[[], bool], what: str, timeout: float = 120) -> None:
        """Wait, and fail when a worker ends by itself or nothing is stored for `timeout` seconds."""
        deadline, stored = time.monotonic() + timeout, self.frames()
        while not true():
            if (now := self.frames()) != stored:  # slow, on a busy machine, but alive
                deadline, stored = time.monotonic() + timeout, now
            for worker in self.workers:
                assert worker.poll() is None, f"a worker ended with {worker.returncode}:\n{self.logs()}"
            assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s of the last commit:\n{self.logs()}"
            time.sleep(0.02)

    def whole(self) -> None:
        """Wait for every frame, then: every second of every camera once, and a store that agrees with itself."""
        self.until(lambda: self.frames() >= self.expected, f"{self.expected} frames stored")
        for path in self.films:
            held = seconds_of(self.store.window([path.stem]).captured_at) - BEGAN
            assert held.tolist() == list(range(LENGTH * self.rounds))
        self.until(lambda: self.store.verify() == [], "the store agrees with itself")  # a commit may be under way

    def unfinished(self, worker: subprocess.Popen[str]) -> list[str]:
        """The partitions that this worker had when it ended and whose end the store has not reached."""
        owned: set[str] = set()
        for line in self.log_of[worker.pid].read_text().splitlines():
            named = set(re.findall(rf"'({re.escape(self.kafka.segments)}/\d+)'", line))
            if " settled " in line:
                owned |= named
            elif " revoked " in line:
                owned -= named
        stored = OffsetCommitter(self.store.tables).offsets(sorted(owned))
        each = LENGTH // 2 * self.rounds  # messages of a partition: those of its one camera
        return [app for app, offset in stored.items() if (offset or 0) < each]

    def logs(self) -> str:
        texts = [path.read_text()[-3000:] for path in sorted(self.folder.glob("worker-*.log"))[-3:]]
        return "\n----\n".join(texts)

    def logged(self, text: str) -> int:
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
    prefix = f"crash-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    made = Fleet(tmp_path, broker.settings(prefix=prefix, partitions=PARTITIONS))
    try:
        yield made
    finally:
        made.close()


def kill(fleet: Fleet, victim: subprocess.Popen[str]) -> bool:
    """Kill -9 a live worker; whether partitions of its own had work left when it died."""
    assert victim.poll() is None  # alive
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    fleet.workers.remove(victim)
    return bool(fleet.unfinished(victim))


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
