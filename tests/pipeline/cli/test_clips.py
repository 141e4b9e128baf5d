"""The commands with profiles that read clips: over the tiny SigLIP, and in the layout of VideoChat-Flash's authors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.store import Store
from model.encoders.clips import clip_numbers
from tests.support.command import BEGAN, FRAMES, Command
from tests.support.desk_app import API, DeskApp, desk_app
from tests.support.records import PAIR
from tests.support.tiny_flash import save_videochat_flash

FLASH = """
name = "tiny-flash"
frame_encoder = { name = "tiny-clip", source = { folder = "clip" } }
patch_encoder = { name = "tiny-umt", kind = "umt", source = { folder = "flash" }, batch = 8 }
language_model = { source = { folder = "flash" }, layout = "videochat_flash", max_context = 1500, max_new_tokens = 6 }
connector = { source = { folder = "flash" }, layout = "hico" }
[hico]
[encoder_shape]
frame = "ViT-B-32"
image_size = 224
patch_size = 16
width = 64
layers = 1
heads = 4
feed_forward = 256
"""


@pytest.fixture(scope="module")
def flash_profile(models: Path) -> str:
    """A profile of a whole checkpoint with the published names: clip encoder, connector and language model."""
    save_videochat_flash(models / "flash", width=64, blocks=1, mm_vision_tower="umt-large")
    path = models / "tiny-flash.toml"
    path.write_text(FLASH)
    return str(path)


@pytest.mark.parametrize("kind", ["siglip", "umt"])
def test_footage_is_ingested_by_clips_and_asked_about(
    sightline: Command, footage: Path, clip_profile: str, flash_profile: str, profile: str, tmp_path: Path, kind: str
) -> None:
    chosen, tokens = (clip_profile, 2) if kind == "siglip" else (flash_profile, 16)
    place = tmp_path / "store"
    done = sightline("ingest", footage, "--store", place, "--profile", chosen, "--json")
    assert (done.code, done.data["frames"]) == (0, FRAMES)
    store = Store.open(place)
    assert (store.encoders.clip_frames, store.encoders.patches) == (4, tokens)
    assert store.verify() == []
    window = store.window(["front"])
    rows = store.patches(window)
    numbers = clip_numbers(window.captured_at)
    assert len(np.unique(numbers)) == FRAMES // 4 - 3  # 24 of 36 seconds are of this stream
    assert np.isfinite(rows).all()
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == len(rows)  # every frame has tokens of its own
    asked = sightline(
        "ask", "what colour was the truck", "--store", place, "--profile", chosen, "--stream", "front",
        "--option", "red", "--option", "blue", "--json",
    )  # fmt: skip
    assert asked.code == 0, asked.err
    assert asked.data["answer"] in ("red", "blue")

    # Another profile's vectors are never mixed in, although the SigLIP is the same.
    other = sightline("ingest", footage, "--store", place, "--profile", profile)
    assert other.code == 1
    assert "ingest the footage again into a new store" in other.err

    added = sightline("alerts", "add", "a red truck", "--store", place, "--profile", chosen)
    if kind == "siglip":
        assert added.code == 0
    else:
        assert added.code == 2
        assert "tiny-umt is a clip encoder without a text tower" in added.err
        assert len(added.err.splitlines()) == 1


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeskApp]:
    """A desk over a store of clips."""
    monkeypatch.setattr("tests.support.desk_app.PAIR", PAIR.model_copy(update={"clip_frames": 4}))
    made = desk_app(tmp_path, users=False)
    yield made
    made.close()


def test_a_part_of_a_picture_is_refused_for_clips(desk: DeskApp) -> None:
    at = f"{BEGAN:%Y-%m-%dT%H:%M:%SZ}"
    headers = {"Origin": "http://localhost:8080"}
    like = {"stream": "gate-1", "at": at, "box": [0.2, 0.2, 0.6, 0.8]}
    found = desk.ask("POST", f"{API}/search", json={"like": like, "limit": 3}, headers=headers)
    assert found.status_code == 422, found.text
    assert "by clips of 4 frames" in found.text
    heat = desk.ask("GET", f"{API}/heatmap", params={"stream": "gate-1", "at": at, "question": "none"})
    assert heat.status_code == 422, heat.text
    assert "no place in one picture" in heat.text
