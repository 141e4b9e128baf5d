"""Thumbnails, contact sheets, heat maps, timelines, saved files, and pictures from outside."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from index.errors import PictureInvalid, SourceNotFound, UsageError
from index.records import rfc3339
from index.store import Store
from pipeline.pictures import uploaded
from pipeline.pictures.heat_map import grid_of, heat_map
from pipeline.pictures.saving import Outputs, frame_file_name, save_frames
from pipeline.pictures.scaling import thumbnail
from pipeline.pictures.sheet import MAX_PIXELS, Captioned, contact_sheet, drawable, fitted
from pipeline.pictures.stored import frame_pictures
from pipeline.pictures.uploaded import decode_picture, read_picture
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

RED, BLUE = (200, 30, 30), (30, 30, 200)


def encoded(
    colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), kind: str = "JPEG", **extra: object
) -> bytes:
    """A picture whose left half has one colour and whose right half is black."""
    image = Image.new("RGB", size, colour)
    image.paste((0, 0, 0), (size[0] // 2, 0, *size))
    out = io.BytesIO()
    image.save(out, kind, **extra)
    return out.getvalue()


def pixels(jpeg: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.int64)


# ---- thumbnails and sheets ------------------------------------------------------------------------------------------


def test_a_thumbnail_fits_keeps_its_shape_and_is_never_enlarged() -> None:
    assert pixels(thumbnail(encoded(RED, (320, 240)), 160)).shape == (120, 160, 3)
    assert pixels(thumbnail(encoded(RED, (320, 240)), 1000)).shape == (240, 320, 3)
    assert pixels(thumbnail(b"damaged", 40, 30)).shape == (30, 40, 3)
    for width in (0, -1, 5000):
        with pytest.raises(UsageError, match="1 to 4096 pixels"):
            thumbnail(encoded(RED), width)


def test_a_sheet_has_its_pictures_in_order() -> None:
    colours = [RED, BLUE, RED, BLUE, BLUE]
    sheet = pixels(contact_sheet([Captioned(encoded(c, (320, 240)), "gate") for c in colours], columns=2))
    step_x, step_y = 320 + 8, 240 + 2 * 20 + 8
    assert sheet.shape == (3 * step_y + 8, 2 * step_x + 8, 3)
    for number, colour in enumerate(colours):
        x, y = 8 + number % 2 * step_x + 40, 8 + number // 2 * step_y + 100
        assert np.abs(sheet[y, x] - colour).max() < 12, number
    assert np.abs(sheet[2 * step_y + 100, step_x + 60] - (248, 250, 252)).max() < 4  # the cell that is left over


@pytest.mark.parametrize("count", [1, 2, 12, 13, 300, 20_000])
@pytest.mark.parametrize("columns", [None, 1, 5, 100])
def test_a_sheet_is_bounded_for_any_count(count: int, columns: int | None) -> None:
    picture = Captioned(encoded(RED), "gate  2024-03-01T08:00:00Z", "0.5")
    jpeg = contact_sheet([picture] * count, columns=columns, title="Search: a red car", note="note")
    width, height = Image.open(io.BytesIO(jpeg)).size
    assert 96 <= width * height <= MAX_PIXELS
    assert max(width, height) < 65_000


def test_texts_of_a_sheet_fit_and_letters_without_a_glyph_are_named() -> None:
    assert drawable("gate-2, 99 %") == "gate-2, 99 %"
    assert drawable("前门\n") == "\\u524d\\u95e8\\u000a"
    assert drawable("后门") != drawable("前门")
    assert fitted("a" * 500, 12, 100).endswith("…")
    assert len(fitted("i" * 100, 12, 100)) > len(fitted("w" * 100, 12, 100))
    with pytest.raises(UsageError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(UsageError, match="1 to 100 columns"):
        contact_sheet([Captioned(b"", "")], columns=0)


# ---- heat maps ------------------------------------------------------------------------------------------------------


def test_heat_is_where_the_values_are() -> None:
    values = np.zeros((4, 4), np.float32)
    values[0, 3] = 2.5  # top right
    grey = io.BytesIO()
    Image.new("RGB", (320, 240), (100, 100, 100)).save(grey, "JPEG", quality=95)
    drawn = pixels(heat_map(grey.getvalue(), values.reshape(-1)))
    assert drawn.shape == (480, 640, 3)
    change = np.abs(drawn - 100).sum(2)
    assert change[:100, 560:].mean() > 150
    assert change[300:, :300].max() < 25


def test_grids() -> None:
    assert grid_of(np.array([1.0, 2, 3, 5])).tolist() == [[0, 0.25], [0.5, 1]]
    assert grid_of(np.full((2, 3), 7.0)).tolist() == [[0, 0, 0], [0, 0, 0]]
    for wrong in (np.zeros(5), np.zeros(0), np.array([np.nan] * 4), np.zeros((2, 2, 2))):
        with pytest.raises(UsageError, match="patches"):
            grid_of(wrong)


# ---- stored pictures and files --------------------------------------------------------------------------------------


def test_scattered_frames_get_their_own_pictures(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", PAIR)
    for name in ("back", "front"):
        for chunk in range(3):
            records = make_records(name, BEGAN + chunk * 900 * SECOND, 20, mark=f"{name} {chunk}")
            store.append(make_segment(records, chunk), records)
    wanted = [("front", BEGAN + 7 * SECOND), ("back", BEGAN + 1803 * SECOND), ("front", BEGAN + 9 * SECOND)]
    gone = [("front", BEGAN + 500 * SECOND), ("nowhere", BEGAN), ("front", BEGAN + 7 * SECOND + 1)]
    assert frame_pictures(store, [*wanted, *gone]) == {
        wanted[0]: b"JPEG front 0 7", wanted[1]: b"JPEG back 2 3", wanted[2]: b"JPEG front 0 9",
    }  # fmt: skip


NAMES = st.text(st.sampled_from("aAbßé前.-_%9"), min_size=1, max_size=128)


@given(NAMES, NAMES, st.integers(0, 2**40), st.integers(0, 2**40))
def test_two_frames_never_share_a_file_on_any_file_system(a: str, b: str, at: int, other: int) -> None:
    one, two = frame_file_name(a, at), frame_file_name(b, other)
    assert (one.casefold() == two.casefold()) == ((a, at) == (b, other))
    assert one.isascii()
    assert len(one) <= 255
    assert not set(one) & set('/\\:*?"<>| \0')


def test_nothing_is_replaced_silently(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "frames"
    frames = {("gate", BEGAN): b"one", ("gate", BEGAN + SECOND // 2): b"two"}
    files = save_frames(folder, frames)
    assert [path.name for path in files] == ["gate_2024-03-01T08-00-00Z.jpg", "gate_2024-03-01T08-00-00.500000Z.jpg"]
    assert save_frames(folder, frames) == files  # the same content
    with pytest.raises(UsageError, match="exists with other content"):
        save_frames(folder, {**frames, ("aisle", BEGAN): b"new", ("gate", BEGAN): b"three"})
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"one", b"two"]
    save_frames(folder, {("gate", BEGAN): b"three"}, force=True)
    assert files[0].read_bytes() == b"three"
    (tmp_path / "a.html").touch()
    for outputs, says in (
        (Outputs(html=tmp_path / "a.html"), "the file exists"),
        (Outputs(html=tmp_path / "a.jpg"), r"name the file \.html"),
        (Outputs(sheet=tmp_path / "a.png"), r"name the file \.jpg"),
        (Outputs(sheet=tmp_path / "no" / "a.jpg"), "no folder"),
        (Outputs(frames=tmp_path / "a.html"), "not a folder"),
    ):
        with pytest.raises(UsageError, match=says):
            outputs.check()
    assert Outputs(html=tmp_path / "a.html", force=True).check().wanted
    assert not Outputs().check().wanted


# ---- pictures from outside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_picture_is_decoded_in_the_confined_process(kind: str) -> None:
    found = decode_picture(encoded(RED, kind=kind))
    assert found.shape == (48, 64, 3)
    assert np.abs(found[24, 10].astype(int) - RED).max() < 12
    assert found[24, 50].max() < 12


def test_a_picture_is_turned_upright_and_scaled_down() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    found = decode_picture(encoded(RED, (4000, 3000), exif=turned.tobytes()))
    assert found.shape == (1024, 768, 3)
    assert np.abs(found[100, 384].astype(int) - RED).max() < 12  # what was left is at the top
    assert found[900, 384].max() < 12


def test_limits_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        """Fail: the picture is opened."""
        raise AssertionError("opened")

    large = tmp_path / "large.jpg"
    large.write_bytes(encoded(RED))
    with large.open("r+b") as file:
        file.truncate(30 * 2**20)
    with monkeypatch.context() as patch:
        patch.setattr(uploaded, "Decoding", fail)
        with pytest.raises(PictureInvalid, match="larger than 20 MiB"):
            read_picture(large)
    for side, says in ((8_000, "at most 50 megapixels"), (20_000, "can be read|megapixels")):
        bomb = io.BytesIO()
        Image.new("1", (side, side)).save(bomb, "PNG")  # 64 and 400 megapixels in a few kilobytes
        with pytest.raises(PictureInvalid, match=says):
            decode_picture(bomb.getvalue())


@pytest.mark.parametrize(
    "data", [b"", b"no picture", b"GIF89a" + b"\0" * 100, b"\xff\xd8\xff\xe0" + b"\0" * 50, b"<svg></svg>"]
)
def test_what_is_no_picture_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(PictureInvalid, match=r"x\.jpg"):
        read_picture(tmp_path / "x.jpg")


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="No such file"):
        read_picture(tmp_path / "none.jpg")
    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(PictureInvalid, match="not a regular file"):
            read_picture(place)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]))
def test_damaged_pictures_are_typed_errors(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(RED, kind=kind))
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(len(data))] = rng.integers(256)
    try:
        found = decode_picture(bytes(data[: rng.integers(1, len(data) + 1)]))
    except PictureInvalid:
        return
    assert found.ndim == 3
    assert max(found.shape) <= 1024


def test_times_of_names_are_those_of_the_frames() -> None:
    assert frame_file_name("gate", BEGAN) == f"gate_{rfc3339(BEGAN).replace(':', '-')}.jpg"
