"""`clip` of the file that a stream was ingested from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from index.store import Store
from tests.support.command import Command
from tests.support.played import decoded, render_pattern, store_file
from tests.support.records import BEGAN, PAIR, SECOND

WINDOW = ("--stream", "gate", "--from", "2024-03-01T08:00:04Z", "--to", "2024-03-01T08:00:09Z")


def test_a_clip_of_the_ingested_file(sightline: Command, tmp_path: Path) -> None:
    film = render_pattern(tmp_path / "gate.mp4", seconds=20)
    store = Store.create(tmp_path / "store", PAIR)
    store_file(store, film, "gate", 20)
    place = ("--store", store.url)
    made = sightline("clip", "out.mp4", *WINDOW, *place)
    assert "out.mp4: 50 frames, 2024-03-01T08:00:04Z to 2024-03-01T08:00:09Z" in made.out, made.err
    _, times, pictures = decoded((tmp_path / "out.mp4").read_bytes())
    assert len(times) == 50
    assert [round(float(p.mean()) / 8) - 1 for p in (pictures[0], pictures[-1])] == [4, 8]
    assert sightline("clip", "out.mp4", *WINDOW, *place).code == 2
    assert sightline("clip", "out.avi", *WINDOW, *place).code == 2
    assert "no such stream" in sightline("clip", "x.mp4", *WINDOW[2:], "--stream", "yard", *place).err
    moved = tmp_path / "archive" / "gate.mp4"
    moved.parent.mkdir()
    shutil.move(film, moved)
    gone = sightline("clip", "again.mp4", *WINDOW, *place)
    assert gone.code == 1
    assert "the ingested file is not there any more, or was changed" in gone.err
    assert not (tmp_path / "again.mp4").exists()
    assert sightline("clip", "again.mp4", *WINDOW, *place, "--footage", moved.parent).code == 0


def test_a_clip_over_several_ingested_files(sightline: Command, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for name, seconds, began in (("a.mp4", 20, 0), ("b.mp4", 10, 22), ("c.mp4", 10, 32)):
        film = render_pattern(tmp_path / name, seconds=seconds)
        store_file(store, film, "gate", seconds, began=BEGAN + began * SECOND)
    window = ("--stream", "gate", "--from", "2024-03-01T08:00:15Z", "--to", "2024-03-01T08:00:34Z")
    made = sightline("clip", "out.mp4", *window, "--store", store.url, "--json")
    report = json.loads(made.out)
    assert (report["start"], report["end"]) == ("2024-03-01T08:00:15Z", "2024-03-01T08:00:34Z")
    assert (report["segments"], report["frames"], report["missing_seconds"]) == (3, 170, 2.0)
    _, times, pictures = decoded((tmp_path / "out.mp4").read_bytes())
    shown = [round(float(picture.mean()) / 8) - 1 for picture in pictures]
    assert shown == [second for second in (*range(15, 20), *range(10), *range(2)) for _ in range(10)]
    assert times[50] - times[49] == pytest.approx(2.1)  # the gap stays a gap
    (tmp_path / "b.mp4").unlink()
    less = json.loads(sightline("clip", "less.mp4", *window, "--store", store.url, "--json").out)
    assert (less["segments"], less["missing_seconds"]) == (2, 12.0)
