"""Playing: bytes as they are, packets copied, and frames encoded anew for what a browser cannot decode."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from index.errors import DecodeFailed, EmptyWindow, ServiceBusy
from index.store import Store
from pipeline.media import playback
from pipeline.media.clip import write_footage
from pipeline.media.footage import FootageFinder
from pipeline.media.playback import Playable, Player
from tests.support.played import decoded, record_segments, render_pattern, store_file
from tests.support.records import BEGAN, PAIR, SECOND


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {
        "h264": render_pattern(folder / "h264.mp4", seconds=12),
        "mkv": render_pattern(folder / "h264.mkv", seconds=12),
        "h265": render_pattern(folder / "h265.mp4", seconds=12, codec="libx265"),
        "mjpeg": render_pattern(folder / "mjpeg.avi", seconds=12, codec="mjpeg"),
    }


@pytest.fixture(scope="module")
def player(videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Player]:
    folder = tmp_path_factory.mktemp("played")
    store = Store.create(folder / "store", PAIR)
    for name, path in videos.items():
        store_file(store, path, name, 12)
    place = record_segments(folder / "recordings", videos["h264"], "recorded", 10)
    record_segments(folder / "recordings", videos["h265"], "recorded-h265", 10)
    made = Player(FootageFinder(store, [place]))
    yield made
    made.close()


def whole(playable: Playable) -> bytes:
    """All bytes; the file is closed."""
    try:
        return b"".join(playable.read())
    finally:
        playable.close()


def grey(pixels: np.ndarray) -> int:
    """The second that a picture shows."""
    return round(float(pixels.mean()) / 8) - 1


def test_an_mp4_of_h264_is_served_as_it_is(player: Player, videos: dict[str, Path]) -> None:
    plan = player.plan("h264", BEGAN + 7 * SECOND)
    assert (plan.kind, plan.media_type, plan.start_offset_seconds, plan.transcoded) == (
        "video",
        "video/mp4",
        7.0,
        False,
    )
    playable = player.open("h264", BEGAN + 7 * SECOND)
    data = videos["h264"].read_bytes()
    assert playable.size() == len(data)
    assert b"".join(playable.read(100, 50)) == data[100:150]
    assert b"".join(playable.read(len(data) - 3)) == data[-3:]
    assert whole(playable) == data


def test_h264_of_another_container_is_copied(player: Player) -> None:
    at = BEGAN + 7_500_000
    plan = player.plan("mkv", at)
    assert (plan.kind, plan.transcoded, plan.start) == ("video", False, BEGAN + 7 * SECOND)
    assert plan.start_offset_seconds == pytest.approx(0.5, abs=0.01)
    codec, times, pictures = decoded(whole(player.open("mkv", at)))
    assert codec == "h264"
    assert len(times) == 50
    assert [grey(p) for p in (pictures[0], pictures[-1])] == [7, 11]


def test_recorded_segments_become_one_video(player: Player) -> None:
    at = BEGAN + 3 * SECOND
    plan = player.plan("recorded", at)
    assert (plan.kind, plan.transcoded, plan.end) == ("video", False, BEGAN + 10 * SECOND)
    _, times, pictures = decoded(whole(player.open("recorded", at)))
    assert len(times) == 70
    assert [grey(p) for p in (pictures[0], pictures[35], pictures[-1])] == [3, 6, 9]


@pytest.mark.parametrize("name", ["h265", "mjpeg", "recorded-h265"])
def test_what_a_browser_cannot_decode_is_encoded_from_exactly_that_time(player: Player, name: str) -> None:
    at = BEGAN + 4_500_000
    plan = player.plan(name, at)
    assert (plan.kind, plan.media_type, plan.start_offset_seconds, plan.transcoded) == ("video", "video/mp4", 0.0, True)
    assert "so it is encoded anew" in plan.why
    codec, times, pictures = decoded(whole(player.open(name, at)))
    last = 10 if name.startswith("recorded") else 12
    assert codec == "h264"
    assert len(times) == pytest.approx(10 * (last - 4.5), abs=1)
    assert times[0] == pytest.approx(0, abs=0.05)
    assert [grey(p) for p in (pictures[0], pictures[10], pictures[-1])] == [4, 5, last - 1]


def test_a_growing_video_can_be_read_before_it_is_complete(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    playable = player.open("h265", BEGAN + 250_000)
    first = next(playable.read())
    assert b"ftyp" in first[:16]
    data = whole(playable)
    assert data.startswith(first[:1000])
    again = player.open("h265", BEGAN + 250_000)
    assert again.etag == playable.etag
    assert again.size() == len(data), "it is kept"
    assert b"".join(again.read(10, 20)) == data[10:30]
    again.close()


def test_what_nobody_reads_is_stopped_and_its_slot_is_free_again(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    write = write_footage

    def slow(*arguments: object, **options: object) -> object:
        begun.set()
        assert go.wait(300)
        return write(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(playback, "write_footage", slow)
    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(player.open, "h265", BEGAN + SECOND + n) for n in range(2)]
        try:
            assert begun.wait(300)
            while player.active < 2:
                time.sleep(0.01)
            with pytest.raises(ServiceBusy, match="2 videos are being prepared already"):
                player.open("h265", BEGAN + SECOND + 2)
            assert player.plan("mkv", BEGAN + 1).kind == "none"
        finally:
            go.set()
        for each in opened:
            each.result().close()  # before it is complete, or after
    monkeypatch.setattr(playback, "write_footage", write)
    assert decoded(whole(player.open("h265", BEGAN + 8 * SECOND)))[0] == "h264"
    assert decoded(whole(player.open("h265", BEGAN + SECOND)))[0] == "h264", "one that was stopped is made again"


def test_footage_that_is_not_there_or_damaged(player: Player, tmp_path: Path) -> None:
    plan = player.plan("h264", BEGAN + 60 * SECOND)
    assert (plan.kind, plan.why) == ("none", "There is no recording of this time, and the ingested file is not there.")
    with pytest.raises(EmptyWindow, match="h264 at 2024-03-01T08:01:00Z: there is no recording"):
        player.open("h264", BEGAN + 60 * SECOND)
    store = Store.create(tmp_path / "store", PAIR)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypmp42" + b"no video" * 100)
    store_file(store, broken, "broken", 5)
    other = Player(FootageFinder(store))
    plan = other.plan("broken", BEGAN)
    assert plan.kind == "none"
    assert "broken.mp4" in plan.why
    with pytest.raises((DecodeFailed, Exception), match=r"broken\.mp4"):
        other.open("broken", BEGAN)
