"""Footage through Kafka, and what of it is in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from index.second_grid import seconds_of
from index.store import Store
from ingest.kafka.clients import Sender
from ingest.kafka.publisher import publish_files
from ingest.kafka.settings import KafkaSettings
from tests.support.brightness import BEGAN, SECOND


def publish(settings: KafkaSettings, files: list[Path], **more: Any) -> int:
    """How many segments were produced."""
    report = publish_files(files, settings=settings, sender=lambda: Sender(settings), **{"seconds": 4, **more})
    assert [file.problem for file in report] == [None] * len(files)
    return sum(file.segments for file in report)


def seconds(store: Store, stream: str) -> list[int]:
    """The UTC seconds of a stream's frames, from the start of the footage."""
    return (seconds_of(store.window([stream]).captured_at) - BEGAN // SECOND).tolist()  # type: ignore[no-any-return]
