"""`clip` of the file that a stream was ingested from."""

from __future__ import annotations

import shutil
from pathlib import Path

from index.store import Store
from tests.support.command import Command
from tests.support.played import decoded, render_pattern, store_file
from tests.support.records import PAIR

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
