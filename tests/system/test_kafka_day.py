"""Many segments through the consumer and the commit path, with decoder and encoder stubbed: bounded all the way.

1,200 segments by default; `KAFKA_DAY=86400` for a day of ten cameras' ten-second segments. `sightline compact --every`
runs beside the consumer as it would beside a real one. `KAFKA_DAY_OUT=FILE` writes the figures as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.maintenance.compaction import count_log_entries
from index.store import Store
from ingest.kafka import indexer as embedder
from ingest.kafka.clients import Sender, make_topics
from ingest.kafka.poller import consume
from ingest.kafka.settings import ConsumeSettings
from ingest.messages import SegmentMessage, segment_message
from ingest.segments.frames import SegmentFrames
from tests.support.kafka_server import Broker, broker
from tests.support.kafka_worker import counting
from tests.support.processes import ROOT, environment
from tests.support.records import PAIR

__all__ = ["broker"]  # a fixture

SEGMENTS = int(os.environ.get("KAFKA_DAY", "1200"))
WHOLE_DAY = SEGMENTS >= 86_400
pytestmark = [pytest.mark.system, pytest.mark.timeout(1800 + SEGMENTS // 8)]
CAMERAS = 10
BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z
LENGTH = 10_000_000  # microseconds
COMMIT = 60 if WHOLE_DAY else 20
TABLES = ("frames", "patches", "segments")


def _resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tables(store: Store) -> dict[str, dict[str, int]]:
    result = {}
    for name in TABLES:
        table = getattr(store.tables, name)
        actions = table.open().get_add_actions()
        files = [p for p in Path(table.uri).rglob("*") if p.is_file()]
        result[name] = {
            "files": actions.num_rows,
            "bytes": sum(actions["size_bytes"].to_pylist()),
            "log_entries": count_log_entries(table),
            "log_bytes": sum(p.stat().st_size for p in files if p.parent.name == "_delta_log"),
            "files_on_disk": sum(p.suffix == ".parquet" and p.parent.name != "_delta_log" for p in files),
        }
    return result


def test_memory_commits_and_log_stay_bounded(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = broker.settings(prefix="day", partitions=4)
    make_topics(settings)
    with Sender(settings) as sender:
        for number in range(SEGMENTS):
            stream, at = f"cam{number % CAMERAS}", BEGAN + number // CAMERAS * LENGTH
            message = segment_message(stream, at, 10.0, number.to_bytes(4, "little"))
            sender.send(settings.segments, key=stream, value=message.to_bytes())
        sender.flush()
    grey = np.zeros((48, 64, 3), np.uint8)
    resident: list[int] = []
    most: dict[str, dict[str, int]] = {}
    store = Store.create(tmp_path / "store", PAIR)

    def read(message: SegmentMessage, **_: Any) -> SegmentFrames:
        """A frame of the segment. Reading is never over before the compaction beside it has merged files."""
        resident.append(_resident())
        deadline = time.monotonic() + 600
        while len(resident) > SEGMENTS // 2 and not met() and time.monotonic() < deadline:
            time.sleep(0.1)
        return SegmentFrames([message.start_micros], [0.0], [grey], "all")

    monkeypatch.setattr(embedder, "read_segment", read)
    every = 60 if WHOLE_DAY else 2
    command = [sys.executable, "-m", "pipeline.cli", "compact", "--store", store.url, "--every", str(every), "--json"]
    reports = (tmp_path / "compactions.json").open("w+")
    merging = threading.Event()

    def met() -> bool:
        """Whether a compaction has merged files."""
        if not merging.is_set() and re.search(r'"merged": ?[1-9]', (tmp_path / "compactions.json").read_text()):
            merging.set()
        return merging.is_set()

    compactor = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=reports, stderr=subprocess.PIPE)
    compactor_resident: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every / 4):
            compactor_resident.append(_resident(compactor.pid))
            for name, held in _tables(store).items():
                seen = most.setdefault(name, dict(held))
                seen.update({key: max(seen[key], value) for key, value in held.items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        report = consume(
            store,
            counting(),
            kafka=settings,
            group="day",
            settings=ConsumeSettings(commit_segments=COMMIT, commit_seconds=600, queue_segments=64),
            stop=threading.Event(),
            drain=True,
        )
        seconds = time.monotonic() - began
        assert compactor.poll() is None  # it ran all the time
    finally:
        done.set()
        watcher.join()
        compactor.terminate()
        _, complaints = compactor.communicate(timeout=300)
    assert (compactor.returncode, complaints) == (0, b"")
    assert (report.segments, report.frames) == (SEGMENTS, SEGMENTS)
    assert report.commits <= SEGMENTS // COMMIT + 2  # by size; the last by time
    assert report.fenced == 0
    reports.seek(0)
    compactions = _documents(reports.read())
    merged = sum(table["merged"] for each in compactions for table in each)
    assert merged > 0  # beside the consumer
    last = store.compact()
    ended = _tables(store)
    for name, table in zip(TABLES, last, strict=True):
        assert table.files_after <= CAMERAS * (1 + 3)  # one large and fewer than four small ones of each camera's day
        assert ended[name]["log_bytes"] > 0
    assert sum(s.frames for s in store.streams()) == SEGMENTS
    assert store.verify() == []
    # After a warm-up of a quarter it grows no more than what allocators keep.
    quarter = max(resident[: len(resident) // 4])
    assert max(resident) - quarter < 100 * 2**20
    if WHOLE_DAY:
        for name in TABLES:
            assert most[name]["files"] < SEGMENTS // 10  # without compaction: one for each camera in each commit
            assert most[name]["log_entries"] < report.commits  # trimmed while it ran

    def mean(part: list[int]) -> float:
        return round(sum(part) / len(part) / 1e6, 1)

    few = max(1, len(resident) // 100)
    figures = {
        "segments": SEGMENTS,
        "cameras": CAMERAS,
        "seconds": round(seconds, 1),
        "segments_per_second": round(SEGMENTS / seconds, 1),
        "commits": report.commits,
        "commit_seconds_last_100": {
            "median": round(float(np.median(report.commit_seconds)), 3),
            "max": round(max(report.commit_seconds), 3),
        },
        "consumer_rss_mb": {
            "start": mean(resident[:few]),
            "quarter_max": round(quarter / 1e6, 1),
            "middle": mean(resident[len(resident) // 2 :][:few]),
            "end": mean(resident[-few:]),
            "max": round(max(resident) / 1e6, 1),
        },
        "compactor_rss_max_mb": round(max(compactor_resident, default=0) / 1e6, 1),
        "compactions": len(compactions),
        "small_files_merged": merged,
        "most_at_any_time": most,
        "at_the_end": ended,
    }
    if out := os.environ.get("KAFKA_DAY_OUT"):
        Path(out).write_text(json.dumps(figures, indent=1) + "\n")


def _documents(text: str) -> list[Any]:
    """The JSON documents that stand one after the other in `text`."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found
