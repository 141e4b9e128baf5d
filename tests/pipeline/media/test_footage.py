"""Which footage is found, and that an address in the store opens nothing by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from index.store import Store
from ingest.live.clip import recorded
from pipeline.media.footage import FootageFinder, RecordedFootage, SourceFile
from tests.support.played import record_segments, render_pattern, store_file
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_pattern(tmp_path_factory.mktemp("video") / "gate.mp4", seconds=25)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", PAIR)


def found(finder: FootageFinder, second: float, stream: str = "gate") -> SourceFile | RecordedFootage | None:
    """The footage of one second."""
    at = BEGAN + round(second * SECOND)
    return finder.find(stream, at, at + SECOND)


def test_the_ingested_file_is_found_from_every_chunk(store: Store, video: Path) -> None:
    store_file(store, video, "gate", 25)
    for second in (0, 9.5, 10, 24):
        file = found(FootageFinder(store), second)
        assert isinstance(file, SourceFile)
        assert (file.path, file.began) == (video, BEGAN)
    assert found(FootageFinder(store), 25) is None
    assert found(FootageFinder(store), -1) is None
    assert found(FootageFinder(store), 3, "yard") is None


def test_the_beginning_is_found_without_the_first_chunks(store: Store, video: Path) -> None:
    store_file(store, video, "gate", 25)
    store.forget("gate", BEGAN + 11 * SECOND)
    file = found(FootageFinder(store), 22)
    assert isinstance(file, SourceFile)
    assert file.began == BEGAN
    store.forget("gate", BEGAN + 20 * SECOND)  # the last chunk is shorter than the others
    assert len(store.segments()) == 1
    assert found(FootageFinder(store), 22) is None, "no row tells the length of a chunk, so nothing is guessed"


def test_a_file_that_changed_is_not_the_footage(store: Store, video: Path, tmp_path: Path) -> None:
    path = tmp_path / "gate.mp4"
    shutil.copy(video, path)
    store_file(store, path, "gate", 25)
    finder = FootageFinder(store)
    assert found(finder, 3)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert found(finder, 3) is None
    path.unlink()
    assert found(finder, 3) is None


def test_only_files_below_the_roots_are_opened(store: Store, video: Path, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    inside.mkdir()
    outside.mkdir()
    shutil.copy(video, outside / "gate.mp4")
    store_file(store, outside / "gate.mp4", "gate", 25)
    assert found(FootageFinder(store, roots=None), 3)
    assert found(FootageFinder(store, roots=[]), 3) is None
    assert found(FootageFinder(store, roots=[inside]), 3) is None
    assert found(FootageFinder(store, roots=[inside, outside]), 3)
    os.symlink(outside / "gate.mp4", inside / "gate.mp4")
    assert found(FootageFinder(store, roots=[inside]), 3) is None, "a link leads out of the root"
    (inside / "gate.mp4").unlink()
    shutil.copy(video, inside / "gate.mp4")
    moved = found(FootageFinder(store, roots=[inside]), 3)
    assert isinstance(moved, SourceFile)
    assert moved.path == inside / "gate.mp4", "a file that was moved below a root is found by its name"


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "http://127.0.0.1:1/x.mp4",
        "/etc",
        "a\0b",
        "/proc/self/environ",
        "",
    ],
)
def test_an_address_from_a_message_opens_nothing(store: Store, uri: str) -> None:
    for number, source in enumerate(("footage/0", "0" * 32)):
        records = make_records("gate", BEGAN + 20 * number * SECOND)
        segment = make_segment(records, number, source).model_copy(update={"uri": uri})
        store.append(segment, records)
    for roots in (None, [Path("/etc")], [Path("/")]):
        for second in (3, 23):
            assert found(FootageFinder(store, roots=roots), second) is None


def test_the_file_of_another_stream_is_not_opened(store: Store, video: Path) -> None:
    """A message about `gate` with the address and the digest of a file of `vault`."""
    source = store_file(store, video, "vault", 25)
    records = make_records("gate")
    store.append(make_segment(records, 0, source).model_copy(update={"uri": str(video)}), records)
    assert found(FootageFinder(store), 3, "vault")
    assert found(FootageFinder(store), 3, "gate") is None


def test_files_of_which_the_time_was_guessed(store: Store, video: Path) -> None:
    store_file(store, video, "gate", 25, clock="mtime")
    file = found(FootageFinder(store), 13)
    assert isinstance(file, SourceFile)
    assert (file.began, file.clock) == (BEGAN, "mtime")


def test_recordings_come_first(store: Store, video: Path, tmp_path: Path) -> None:
    store_file(store, video, "gate", 25)
    place = record_segments(tmp_path / "recordings", video, "gate", 10)
    assert len(recorded(place, "gate", BEGAN, BEGAN + 10 * SECOND)) == 2
    finder = FootageFinder(store, [(tmp_path / "nothing").as_uri(), place])
    first = found(finder, 7)
    assert isinstance(first, RecordedFootage)
    assert [part.segment.start for part in first.segments] == [BEGAN + 5 * SECOND]
    assert isinstance(found(finder, 12), SourceFile)
    assert finder.find_recording("../gate", BEGAN, BEGAN + SECOND) is None
