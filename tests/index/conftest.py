"""Fixtures: an empty store, and a function that fills it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from index.records import FrameRecords
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


@pytest.fixture
def fill(store: Store) -> Callable[..., list[FrameRecords]]:
    """Append `chunks` chunks of 20 frames to each stream and return the records."""

    def run(*streams: str, chunks: int = 2) -> list[FrameRecords]:
        result = []
        for s, stream in enumerate(streams or ("front",)):
            for chunk in range(chunks):
                records = make_records(stream, BEGAN + chunk * 20 * SECOND, seed=100 * s + chunk)
                assert store.append(make_segment(records, chunk), records)
                result.append(records)
        return result

    return run
