"""A store in an object store that is deleted and made anew, for the same or other encoders, while a process reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from index.delta.log_mark import LogMark
from index.delta.objects import file_system
from index.errors import IdentityMismatch
from index.records import EncoderPair
from index.search.resident_frames import ResidentFrames
from index.store import Store
from tests.support.records import BEGAN, PAIR, SECOND, identity, make_records, make_segment
from tests.support.s3 import S3Server, connect, counted, s3_server

pytestmark = pytest.mark.system
OTHER = EncoderPair(frame=identity("other", 16), patch=identity("siglip", 12), patches=4)
"""Other encoders whose vectors have the same sizes: nothing but the identity tells them apart."""
FRAMES = 10  # of a segment
_LOOK_SECONDS = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def url(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    connect(server, monkeypatch)
    return f"s3://footage/{tmp_path.name}"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which handles look at the log, in seconds; it stands still."""
    now = [1000.0]
    monkeypatch.setattr("index.delta.log_mark.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handles look at the log at each use, not every few seconds."""
    monkeypatch.setattr("index.delta.table.LogMark", lambda uri, _: LogMark(uri, 0.0))


def fill(store: Store, segments: int, stream: str, first: int = 0) -> None:
    for number in range(first, first + segments):
        records = make_records(stream, BEGAN + number * 100 * SECOND, FRAMES, seed=number)
        assert store.append(make_segment(records, number), records)


def anew(url: str, pair: EncoderPair, segments: int) -> None:
    """Delete the store as another process would, and make one with segments of the stream `new`."""
    system, root = file_system(url)
    system.invalidate_cache()
    system.rm(root, recursive=True)
    fill(Store.create(url, pair), segments, "new")


def readings(store: Store) -> list[Callable[[], dict[str, int]]]:
    """What a process that keeps a store open reads of it: frames of each stream."""
    resident = ResidentFrames(store.tables.frames, dimension=PAIR.frame.dimension, fresh_seconds=0)

    def window() -> dict[str, int]:
        found = store.window()
        return {found.stream_ids[i]: int(np.sum(found.stream_index == i)) for i in np.unique(found.stream_index)}

    def search() -> dict[str, int]:
        hits = store.search(np.eye(16, dtype=np.float32)[0], top=1000)
        names = [hit.stream_id for hit in hits]
        return {name: names.count(name) for name in names}

    def resident_frames() -> dict[str, int]:
        return {name: len(stream) for name, stream in resident.refresh().streams.items()}

    def streams() -> dict[str, int]:
        return {each.stream_id: each.frames for each in store.streams()}

    return [streams, resident_frames, window, search]


@pytest.mark.usefixtures("looks_always")
@pytest.mark.parametrize("segments", [1, 3, 6])
def test_the_new_rows_or_an_error_at_the_next_reading(url: str, segments: int) -> None:
    for pair in (PAIR, OTHER):
        kept = Store.open_or_create(url, PAIR)
        fill(kept, 3, "old")
        acts = readings(kept)
        assert [act() for act in acts] == [{"old": 3 * FRAMES}] * 4
        anew(url, pair, segments)
        for act in acts:
            if pair == PAIR:
                assert act() == {"new": segments * FRAMES}
            else:
                with pytest.raises(IdentityMismatch, match="made anew for other encoders; open it again"):
                    act()
        system, root = file_system(url)
        system.rm(root, recursive=True)


@pytest.mark.parametrize("pair", [PAIR, OTHER])
@pytest.mark.parametrize("segments", [1, 6])
@pytest.mark.parametrize("act", [0, 3], ids=["streams", "search"])
def test_a_reader_that_follows_a_busy_log_never_mixes(url: str, pair: EncoderPair, segments: int, act: int) -> None:
    """Looks are seconds apart, and each reading meets another version: the new log ends before the old one's, or has
    entries after it."""
    writer = Store.create(url, PAIR)
    kept = Store.open(url)
    reading = readings(kept)[act]
    for number in range(3):
        fill(writer, 1, "old", first=number)
        assert reading() == {"old": (number + 1) * FRAMES}
    anew(url, pair, segments)
    if pair == PAIR:
        assert reading() == {"new": segments * FRAMES}
    else:
        with pytest.raises(IdentityMismatch, match="made anew for other encoders; open it again"):
            reading()


@pytest.mark.usefixtures("frozen")
def test_a_look_is_a_request_when_there_are_new_entries(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Store.create(url, PAIR)
    kept = Store.open(url)
    kept.streams()
    with counted(monkeypatch) as idle:
        kept.streams()
    assert not idle.calls
    fill(writer, 2, "old")
    with counted(monkeypatch) as advanced:
        kept.streams()
    assert advanced.calls == {"head_object": 1}


def test_a_busy_writer_notices(url: str, monkeypatch: pytest.MonkeyPatch, frozen: list[float]) -> None:
    """Each commit changes the version of its handle, and it looks at an entry that it read before."""
    monkeypatch.setattr("index.delta.table.LogMark", lambda uri, _: LogMark(uri, _LOOK_SECONDS))
    for pair in (PAIR, OTHER):
        kept = Store.open_or_create(url, PAIR)
        fill(kept, 4, "old")
        anew(url, pair, 2)
        frozen[0] += _LOOK_SECONDS
        if pair == PAIR:
            fill(kept, 1, "late")
            opened = Store.open(url)
            assert {each.stream_id: each.frames for each in opened.streams()} == {"late": FRAMES, "new": 2 * FRAMES}
            assert opened.verify() == []
        else:
            with pytest.raises(IdentityMismatch, match="made anew for other encoders; open it again"):
                fill(kept, 1, "late")
        system, root = file_system(url)
        system.rm(root, recursive=True)
