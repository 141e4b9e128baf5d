"""Searches by picture, filters, and the files that search, keyframes and ask write."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from index.store import Store
from tests.support.command import Command

QUESTION = "what colour was the truck at the gate ?"


def test_search_by_a_stored_frame_by_its_picture_and_with_a_text(
    sightline: Command, filled: str, profile: str, tmp_path: Path
) -> None:
    place = ("--store", filled, "--profile", profile, "--json")
    like = sightline("search", "--like", "front@2024-03-01T08:00:07Z", *place).data
    assert (like[0]["stream_id"], like[0]["best"], like[0]["score"]) == (
        "front", "2024-03-01T08:00:07Z", pytest.approx(1, abs=1e-5),
    )  # fmt: skip
    assert like[0]["percentile"] == pytest.approx(100 * 23 / 24, abs=0.01)  # the 23 other frames score less
    assert like[0]["meaning"] == "higher than 95.8 % of the frames of front"
    store = Store.open(filled)
    window = store.window(["front"])
    picture = tmp_path / "seen.jpg"
    picture.write_bytes(store.pictures(window)[7])
    seen = sightline("search", "--image", picture, *place).data
    assert (seen[0]["stream_id"], seen[0]["best"]) == ("front", "2024-03-01T08:00:07Z")
    text = sightline("search", "red truck", *place).data
    alone = sightline("search", "red truck", "--image", picture, "--weight", "0", *place).data
    assert [(m["best"], m["score"]) for m in alone] == [(m["best"], pytest.approx(m["score"], abs=1e-5)) for m in text]
    local = sightline("search", "--like", "front@2024-03-01 09:00:07", "--timezone", "Europe/Amsterdam", *place)
    assert local.data[0]["best"] == "2024-03-01T08:00:07Z"
    assert "--like 2024-03-01 09:00:07 is 2024-03-01T08:00:07Z (Europe/Amsterdam)" in local.err


def test_filters_and_offsets(sightline: Command, filled: str, profile: str) -> None:
    place = ("--store", filled, "--profile", profile, "--json")
    whole = sightline("search", "red truck", "--top", "50", *place).data
    assert sightline("search", "red truck", "--top", "2", "--offset", "1", *place).data == whole[1:3]
    few = sightline("search", "red truck", "--top", "50", "--min-percentile", "90", *place).data
    assert few == [moment for moment in whole if moment["percentile"] >= 90]
    morning = ("--time-of-day", "09:01-09:02", "--timezone", "Europe/Amsterdam")
    assert {m["stream_id"] for m in sightline("search", "red truck", *morning, *place).data} == {"back"}
    none = sightline("search", "red truck", "--time-of-day", "22:00-06:00", "--store", filled, "--profile", profile)
    assert none.out == "nothing was found among 0 frames\n"


def test_a_verifier_that_does_not_know_yes_or_is_down_confirms_nothing(
    sightline: Command, filled: str, profile: str
) -> None:
    place = ("--store", filled, "--profile", profile)
    mute = sightline("search", "red truck", "--top", "2", "--verify", "1", *place)
    assert mute.code == 0
    assert "of its stream; not looked at: the language model of the tiny profile does not answer yes or no" in mute.out
    down = sightline("search", "red truck", "--verify", "5", "--service", "http://127.0.0.1:9", *place, "--json")
    assert down.code == 0
    looks = {(m["verification"]["state"], "127.0.0.1:9" in m["verification"]["why"]) for m in down.data}
    assert looks == {("not_looked", True)}


@pytest.mark.parametrize("command", [("search", "red truck"), ("keyframes", QUESTION), ("ask", QUESTION)])
def test_report_sheet_and_frames(
    sightline: Command, filled: str, profile: str, tmp_path: Path, command: tuple[str, str]
) -> None:
    place = ("--store", filled, "--profile", profile)
    files = ("--html", tmp_path / "r.html", "--sheet", tmp_path / "s.jpg", "--save-frames", tmp_path / "frames")
    done = sightline(*command, *place, *files)
    assert done.code == 0, done.err
    text = (tmp_path / "r.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text
    saved = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert text.count("<img") == len(saved) >= 3
    assert all(re.fullmatch(r"(front|back)_2024-03-01T08-0[01]-\d\dZ\.jpg", name) for name in saved)
    assert command[1] in text
    sheet = Image.open(io.BytesIO((tmp_path / "s.jpg").read_bytes()))
    assert sheet.format == "JPEG"
    refused = sightline(*command, *place, *files)
    assert (refused.code, refused.out) == (2, "")
    assert "the file exists; choose another name, or pass --force" in refused.err
    assert sightline(*command, *place, *files, "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search",), "nothing to look for; give a text, --image or --like"),
        (("search", "--like", "front"), "--like must be STREAM@TIME"),
        (("search", "--like", "no/where@now"), "cannot name a stream"),
        (("search", "--like", "front@soon", "--verify", "1"), "--verify needs a text"),
        (("search", "q", "--time-of-day", "night"), "--time-of-day night: not a time of day; write 22:00-06:00"),
        (("search", "q", "--html", "x.txt"), "--html x.txt: name the file .html"),
        (("ask", "q", "--sheet", "no/x.jpg"), "no folder no"),
    ],
)
def test_wrong_usage(sightline: Command, arguments: tuple[str, ...], says: str) -> None:
    result = sightline(*arguments, "--store", "none")
    assert (result.code, result.out) == (2, "")
    assert says in result.err


def test_a_picture_that_is_none_is_one_line(sightline: Command, filled: str, profile: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    result = sightline("search", "--image", tmp_path / "x.jpg", "--store", filled, "--profile", profile)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "not a picture that can be read" in result.err
