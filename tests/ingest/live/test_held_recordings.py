"""`record --keep-days` leaves what is held, by the store or by markers, and fails safely."""

from __future__ import annotations

import uuid
from pathlib import Path

import fsspec
import pytest

from index.commits.held import Hold
from index.errors import SourceNotFound, StoreUnavailable
from ingest.live.clip import recorded
from ingest.live.holds import place_marker, remove_marker
from ingest.live.recorder import Recorder, folder_url
from ingest.live.retention import expire
from ingest.live.spool import SpooledSegment
from ingest.segments.names import parse_name, segment_name

START, SECOND = 1_709_280_000_000_000, 1_000_000


def make_hold(first: int, last: int, stream: str = "gate") -> Hold:
    """A hold of seconds of a stream."""
    return Hold(
        id=uuid.uuid4().hex[:16], stream_id=stream, start=START + first * SECOND, end=START + last * SECOND,
        reason="case 7", placed_by="ada", placed_at=START,
    )  # fmt: skip


def tape_of(place: str, streams: tuple[str, ...] = ("gate", "yard")) -> None:
    """Six segments of ten seconds of each stream."""
    for stream in streams:
        for first in range(0, 60, 10):
            with fsspec.open(
                f"{place}/{segment_name(stream, START + first * SECOND, 10.0, 'video/mp4')}", "wb", auto_mkdir=True
            ) as file:
                file.write(b"video")


def left(place: str, stream: str) -> list[int]:
    """The first seconds of the segments that are there."""
    return [(s.start - START) // SECOND for s in recorded(place, stream, START, START + 60 * SECOND)]


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return folder_url(str(tmp_path / "tape")) if request.param == "file" else f"memory://{uuid.uuid4().hex}"


def test_markers_keep_segments_until_they_are_removed(place: str) -> None:
    tape_of(place)
    hold = make_hold(15, 30)
    place_marker(place, hold)
    place_marker(place, make_hold(35, 36, "yard"))
    gone, held = expire(place, START + 60 * SECOND)
    assert [(s.stream, (s.start - START) // SECOND) for s in held] == [("gate", 10), ("gate", 20), ("yard", 30)]
    assert len(gone) == 9
    assert (left(place, "gate"), left(place, "yard")) == ([10, 20], [30])
    assert remove_marker(place, hold.id)
    assert not remove_marker(place, hold.id)
    gone, held = expire(place, START + 60 * SECOND)
    assert (len(gone), len(held)) == (2, 1)
    assert (left(place, "gate"), left(place, "yard")) == ([], [30])


def test_holds_of_the_store_count_too(place: str) -> None:
    tape_of(place)
    _, held = expire(place, START + 60 * SECOND, held=[make_hold(0, 5)])
    assert len(held) == 1
    assert (left(place, "gate"), left(place, "yard")) == ([0], [])


def test_a_marker_that_is_written_while_segments_are_deleted_counts(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape_of(place, ("gate",))
    system, _ = fsspec.core.url_to_fs(place)
    remove = type(system).rm_file

    def removes(self: object, path: str) -> None:
        remove(self, path)
        if "08-00-00" in path:
            place_marker(place, make_hold(10, 25))

    monkeypatch.setattr(type(system), "rm_file", removes)
    gone, held = expire(place, START + 60 * SECOND)
    assert [(s.start - START) // SECOND for s in held] == [10, 20]
    assert len(gone) == 4


def test_what_cannot_be_read_keeps_everything(place: str) -> None:
    tape_of(place)
    place_marker(place, make_hold(0, 1))
    with fsspec.open(f"{place}/.holds/{'0' * 16}.json", "wb") as file:
        file.write(b'{"id": 1')
    with pytest.raises(SourceNotFound, match="marker of an evidence lock is damaged, so no recording is deleted"):
        expire(place, START + 60 * SECOND)
    assert len(left(place, "gate")) == len(left(place, "yard")) == 6


def test_the_recorder_deletes_nothing_while_the_store_does_not_answer(tmp_path: Path) -> None:
    place = folder_url(str(tmp_path / "tape"))
    tape_of(place, ("gate",))
    answers: list[object] = [StoreUnavailable("away"), [make_hold(15, 30)]]

    def holds() -> list[Hold]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    recorder = Recorder(place, keep_seconds=0.001, holds=holds)
    path = tmp_path / "waiting.mp4"
    path.write_bytes(b"new")
    name = parse_name(segment_name("gate", START + 100 * SECOND, 10.0, "video/mp4"))
    assert name is not None
    recorder.write([SpooledSegment(name, path, 3, 10)])
    assert (recorder.expired, recorder.held) == (0, 0)
    assert len(left(place, "gate")) == 6
    recorder.write([])
    assert (recorder.expired, recorder.held) == (5, 2)
    assert left(place, "gate") == [10, 20]
