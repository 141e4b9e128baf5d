"""Clips of a stream that is recorded in several places: a gap of one is filled from the next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import EmptyWindow
from ingest.live.clip import PlacedSegment, clip, merged, recorded
from ingest.segments.names import NamedSegment
from tests.support.played import decoded, record_segments, render_pattern
from tests.support.records import BEGAN, SECOND


def named(start: int, length: int) -> NamedSegment:
    """A segment of whole seconds."""
    return NamedSegment("gate", start * SECOND, float(length), "video/mp4", f"{start}-{length}")


lengths = st.lists(st.tuples(st.integers(0, 8), st.integers(2, 6)), max_size=6)


def in_turn(steps: list[tuple[int, int]]) -> list[NamedSegment]:
    """Segments that follow each other, with gaps."""
    found, at = [], 0
    for gap, length in steps:
        found.append(named(at + gap, length))
        at += gap + length
    return found


@given(st.lists(lengths, max_size=3), st.integers(0, 20), st.integers(2, 30))
def test_each_second_comes_from_the_first_place_that_has_it(
    places: list[list[tuple[int, int]]], start: int, length: int
) -> None:
    end = start + length
    found = [
        (str(rank), [s for s in in_turn(steps) if s.start < end * SECOND and s.end > start * SECOND])
        for rank, steps in enumerate(places)
    ]
    parts = merged(found, start * SECOND, end * SECOND)
    assert [part.start for part in parts] == sorted(part.start for part in parts)
    for second in range(start, end):
        middle = second * SECOND + SECOND // 2

        def has(segment: NamedSegment | PlacedSegment, at: int = middle) -> bool:
            return segment.start <= at < segment.end

        expected = next((place for place, segments in found if any(map(has, segments))), None)
        used = [part.place for part in parts if has(part)]
        # A gap of a second is a seam, which nothing fills.
        if expected is None or (not used and not any(map(has, found[0][1]))):
            around = [part for part in parts if has(part, middle - SECOND) or has(part, middle + SECOND)]
            assert not used
            assert expected is None or around or second in (start, end - 1)
        else:
            assert used == [expected]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_pattern(tmp_path_factory.mktemp("video") / "gate.mp4", seconds=20)


def without(place: str, *starts: int) -> str:
    """Remove the segments that begin at these seconds."""
    for path in Path(place.removeprefix("file://")).rglob("*.mp4"):
        for segment in recorded(place, "gate", BEGAN, BEGAN + 20 * SECOND):
            if segment.start in [BEGAN + start * SECOND for start in starts] and path.name in segment.name:
                path.unlink()
    return place


def test_a_gap_is_filled_from_the_next_place(video: Path, tmp_path: Path) -> None:
    first = without(record_segments(tmp_path / "a", video, "gate", 20, length=5), 5, 15)
    second = record_segments(tmp_path / "b", video, "gate", 20, length=4)
    out, window = tmp_path / "out.mp4", (BEGAN + 2 * SECOND, BEGAN + 18 * SECOND)
    alone = clip(first, "gate", *window, out)
    assert (alone.segments, round(alone.missing_seconds, 1), alone.frames) == (2, 5.0, 80)
    both = clip([first, second], "gate", *window, out)
    assert (both.frames, both.missing_seconds, both.end) == (160, 0.0, "2024-03-01T08:00:18Z")
    _, times, pictures = decoded(out.read_bytes())
    assert [round(float(picture.mean()) / 8) - 1 for picture in pictures] == [
        s for s in range(2, 18) for _ in range(10)
    ]
    assert times == pytest.approx([i / 10 for i in range(160)])
    assert clip([second, first], "gate", *window, out).segments == 5, "the second place is not needed"
    with pytest.raises(EmptyWindow, match=r"nothing is recorded in .*a, .*b"):
        clip([first, second], "gate", BEGAN + 60 * SECOND, BEGAN + 70 * SECOND, out)


def test_footage_of_another_size_fills_no_gap(video: Path, tmp_path: Path) -> None:
    small = render_pattern(tmp_path / "small.mp4", seconds=20, size="96x64")
    first = without(record_segments(tmp_path / "a", video, "gate", 20, length=5), 5)
    second = record_segments(tmp_path / "b", small, "gate", 20, length=5)
    out = tmp_path / "out.mp4"
    made = clip([first, second], "gate", BEGAN, BEGAN + 20 * SECOND, out)
    assert (made.segments, round(made.missing_seconds, 1), made.frames) == (3, 5.0, 150)
    assert len(decoded(out.read_bytes())[2]) == 150
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").mkdir()
    assert clip([first, second], "gate", BEGAN, BEGAN + 20 * SECOND, out).frames == 200
