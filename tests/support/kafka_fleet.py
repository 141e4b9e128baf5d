"""A fleet of Kafka workers with stub encoders, one store, and the footage that must be in it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.commits.offset import OffsetCommitter
from index.second_grid import seconds_of
from index.store import Store
from ingest.kafka.clients import Sender, make_topics
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import KafkaSettings
from tests.support.footage import make_video
from tests.support.processes import ROOT, environment
from tests.support.records import PAIR

__all__ = ["CAMERAS", "LENGTH", "PARTITIONS", "Fleet", "kill"]

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
    """Workers as processes, each with a home and caches of its own, as on different machines.

    Args:
        folder: for logs, footage and homes.
        kafka: of all workers.
        slow: seconds that encoding a frame takes.
        store: place of the store that is made; in `folder` if None.
        poll: seconds between two looks into the store.
    """

    def __init__(
        self, folder: Path, kafka: KafkaSettings, slow: float = 0.1, *, store: str | None = None, poll: float = 0.02
    ) -> None:
        self.folder, self.slow, self.poll = folder, slow, poll
        self.kafka = kafka.model_copy(update={"session_seconds": 5.0})  # one that is killed is soon missed
        self.store = Store.create(folder / "store" if store is None else store, PAIR)
        self.workers: list[subprocess.Popen[str]] = []
        self.log_of: dict[int, Path] = {}
        self.rounds = self.started = 0
        self.films = [folder / f"{name}.mp4" for name in camera_names()]
        for path in self.films:
            make_video(path, seconds=LENGTH, gop=10)
        self._hold = folder / "hold"
        make_topics(kafka)

    def hold(self) -> None:
        """Until `release`: no worker stores a partition to the end that it has after one more round."""
        part = self._hold.with_suffix(".part")
        part.write_text(str(LENGTH // 2 * (self.rounds + 1)))
        part.replace(self._hold)

    def release(self) -> None:
        """Have the workers store what is left."""
        self._hold.unlink(missing_ok=True)

    def publish(self) -> None:
        """One more round of every camera's footage, right after the one before."""
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
                "hold": str(self._hold),
            }
            self.started += 1
            path = self.folder / f"worker-{self.started:03}.log"
            with path.open("w") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.kafka_worker", json.dumps(order)],
                    cwd=ROOT,
                    env=environment(self.folder / f"machine-{self.started}"),
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

    def until(self, true: Callable[[], bool], what: str, timeout: float = 300) -> None:
        """Wait, and fail when a worker ends by itself or nothing is stored for `timeout` seconds."""
        deadline, stored = time.monotonic() + timeout, self.frames()
        while not true():
            if (now := self.frames()) != stored:  # slow, on a busy machine, but alive
                deadline, stored = time.monotonic() + timeout, now
            for worker in self.workers:
                assert worker.poll() is None, f"a worker ended with {worker.returncode}:\n{self.logs()}"
            assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s of the last commit:\n{self.logs()}"
            time.sleep(self.poll)

    def whole(self) -> None:
        """Wait for every frame, then: every second of every camera once, and a store that agrees with itself."""
        self.until(lambda: self.frames() >= self.expected, f"{self.expected} frames stored")
        for path in self.films:
            held = seconds_of(self.store.window([path.stem]).captured_at) - BEGAN
            assert held.tolist() == list(range(LENGTH * self.rounds))
        self.until(lambda: self.store.verify() == [], "the store agrees with itself")  # a commit may be under way

    def owned(self, worker: subprocess.Popen[str]) -> set[str]:
        """The partitions that this worker has, or had when it ended."""
        owned: set[str] = set()
        for line in self.log_of[worker.pid].read_text().splitlines():
            named = set(re.findall(rf"'({re.escape(self.kafka.segments)}/\d+)'", line))
            if " settled " in line:
                owned |= named
            elif " revoked " in line:
                owned -= named
        return owned

    def share(self) -> None:
        """Wait until every worker has partitions: one that joins late finds no work left."""
        self.until(lambda: all(map(self.owned, self.workers)), "every worker has partitions")

    def stored(self, worker: subprocess.Popen[str]) -> bool:
        """Whether this worker has stored segments."""
        return " stored " in self.log_of[worker.pid].read_text()

    def unfinished(self, worker: subprocess.Popen[str]) -> list[str]:
        """The partitions that this worker had when it ended and whose end the store has not reached."""
        stored = OffsetCommitter(self.store.tables).offsets(sorted(self.owned(worker)))
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
        ended = [(worker, worker.communicate(timeout=300)[0]) for worker in self.workers]
        assert [worker.returncode for worker, _ in ended] == [0] * len(ended), self.logs()
        self.workers = []
        return [json.loads(out) for _, out in ended]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


def kill(fleet: Fleet, victim: subprocess.Popen[str]) -> bool:
    """Kill -9 a live worker; whether partitions of its own had work left when it died."""
    assert victim.poll() is None  # alive
    os.kill(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    fleet.workers.remove(victim)
    return bool(fleet.unfinished(victim))
