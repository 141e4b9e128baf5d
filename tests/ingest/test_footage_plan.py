"""The plan of a run: which stream each file belongs to, and two cameras that would become one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from index.errors import StreamConflict, UsageError
from index.store import Store
from ingest.file_ingest import ingest_sources
from ingest.footage_plan import plan_footage
from tests.support.footage import make_video
from tests.support.kafka_worker import counting
from tests.support.records import PAIR


def video(path: Path, seconds: float = 4, gop: int = 250) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.parent / "being-made.mp4"
    make_video(plain, seconds=seconds, gop=gop)
    plain.rename(path)
    return path


def streams(folder: Path, **more: str) -> list[tuple[str, str]]:
    plan = plan_footage([folder], **more)  # type: ignore[arg-type]
    return [(Path(file.source).name, file.name.stream) for file in plan.files]


def test_files_of_the_same_name_in_two_folders_are_two_streams(tmp_path: Path) -> None:
    for camera in ("front", "back"):
        video(tmp_path / camera / "12.34.mp4", gop=5 if camera == "front" else 10)
        video(tmp_path / f"{camera}-2" / "video.mp4", gop=5 if camera == "front" else 10)
    assert sorted(stream for _, stream in streams(tmp_path)) == ["back", "back-2", "front", "front-2"]


def test_names_in_any_script_stay_apart(tmp_path: Path) -> None:
    for name in ("前门_20240301_080000.mp4", "后门_20240301_080000.mp4", "Straße_20240301_080000.mp4"):
        video(tmp_path / name)
    assert sorted(stream for _, stream in streams(tmp_path)) == sorted(["前门", "后门", "Straße"])


def test_two_sources_that_claim_the_same_seconds_stop_before_anything_is_stored(tmp_path: Path) -> None:
    a = video(tmp_path / "a" / "gate_20240301_080000.mp4", seconds=20, gop=5)
    b = video(tmp_path / "b" / "gate_20240301_080003.mp4", seconds=20, gop=10)
    store = Store.create(tmp_path / "store", PAIR)
    with pytest.raises(StreamConflict) as raised:
        ingest_sources([a.parent, b.parent], store=store, encoders=counting())
    assert str(a) in str(raised.value)
    assert str(b) in str(raised.value)
    assert store.segments() == []
    first = ingest_sources([a.parent, b.parent], store=store, encoders=counting(), overlap="first")
    assert [(file.frames, file.repeated) for file in first.files] == [(20, 0), (3, 17)]
    assert first.repeated == 17


def test_the_last_may_win(tmp_path: Path) -> None:
    a = video(tmp_path / "a" / "gate_20240301_080000.mp4", seconds=6, gop=5)
    b = video(tmp_path / "b" / "gate_20240301_080000.mp4", seconds=6, gop=10)
    store = Store.create(tmp_path / "store", PAIR)
    report = ingest_sources([a, b], store=store, encoders=counting(), overlap="last")
    assert {file.file: file.frames for file in report.files} == {str(a): 0, str(b): 6}


def test_copies_of_one_file_are_no_conflict(tmp_path: Path) -> None:
    a = video(tmp_path / "a" / "gate_20240301_080000.mp4", seconds=6)
    (tmp_path / "b").mkdir()
    shutil.copy(a, tmp_path / "b" / a.name)
    assert len(plan_footage([tmp_path]).files) == 2


def test_recordings_that_follow_each_other_are_not_opened(tmp_path: Path) -> None:
    for minute in range(3):
        (tmp_path / f"gate_20240301_08{minute:02d}00.mp4").write_bytes(b"not opened")
    assert [stream for _, stream in streams(tmp_path)] == ["gate"] * 3


def test_a_recorders_layout_is_recognized_and_said(tmp_path: Path) -> None:
    for camera in ("front", "back"):
        video(tmp_path / "2024-03-01" / "08" / camera / "00.00.mp4")
    store = Store.create(tmp_path / "store", PAIR)
    report = ingest_sources([tmp_path / "2024-03-01"], store=store, encoders=counting())
    assert report.layout == "Frigate"
    assert {(s.stream_id, s.first) for s in store.streams()} == {
        ("front", 1_709_280_000_000_000),
        ("back", 1_709_280_000_000_000),
    }
    assert {file.clock for file in report.files} == {"filename (UTC)"}


def test_local_names_follow_the_zone(tmp_path: Path) -> None:
    path = video(tmp_path / "gate_20240701_080000.mp4")
    store = Store.create(tmp_path / "store", PAIR)
    report = ingest_sources([path], store=store, encoders=counting(), timezone="Europe/Amsterdam")
    assert (report.files[0].start, report.files[0].clock) == ("2024-07-01T06:00:00Z", "filename (Europe/Amsterdam)")


def test_the_same_bytes_under_a_new_modification_time_are_stored_once(tmp_path: Path) -> None:
    path = video(tmp_path / "gate.mp4")
    store = Store.create(tmp_path / "store", PAIR)
    for modified in (1_709_280_000, 1_709_390_000):
        os.utime(path, (modified, modified))
        report = ingest_sources([path], store=store, encoders=counting())
    assert report.files[0].skipped
    assert store.streams()[0].frames == 4


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    video(tmp_path / "camera" / "gate.mp4")
    (tmp_path / "camera" / "._gate.mp4").write_bytes(b"resource fork")
    (tmp_path / "camera" / "notes.txt").write_text("no footage")
    (tmp_path / "camera" / "again").symlink_to(tmp_path / "camera")
    (tmp_path / "linked").symlink_to(tmp_path / "camera")
    plan = plan_footage([tmp_path / "linked"])
    assert [Path(file.source).name for file in plan.files] == ["gate.mp4"]
    reasons = "\n".join(plan.skipped)
    assert "AppleDouble" in reasons
    assert "notes.txt: not a suffix" in reasons
    assert "again: a link to a folder that is listed already" in reasons


def test_a_folder_behind_a_link_is_read(tmp_path: Path) -> None:
    video(tmp_path / "disk" / "gate.mp4")
    (tmp_path / "cameras").mkdir()
    (tmp_path / "cameras" / "gate").symlink_to(tmp_path / "disk")
    assert len(plan_footage([tmp_path / "cameras"]).files) == 1


@pytest.mark.parametrize("name", ["gate[1].mp4", "gate*.mp4", "12:30:05.mp4", "a::b.mp4", "%20.mp4", "gate?x=1.mp4"])
def test_names_that_look_like_something_else_are_names(tmp_path: Path, name: str) -> None:
    path = video(tmp_path / "gate" / name)
    store = Store.create(tmp_path / "store", PAIR)
    report = ingest_sources([path], store=store, encoders=counting())
    assert (report.frames, report.failed) == (4, [])
    assert report.files[0].file == str(path)


def test_a_name_that_is_no_utf_8_is_stored_losslessly(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/Stra\xdfe_20240301_080000.mp4"
    plain = video(tmp_path / "plain.mp4")
    try:
        os.rename(plain, path)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    store = Store.create(tmp_path / "store", PAIR)
    report = ingest_sources([tmp_path], store=store, encoders=counting())
    assert (report.frames, report.failed) == (4, [])
    assert store.segments()[0].uri.endswith("Stra\\xdfe_20240301_080000.mp4")
    assert store.streams()[0].stream_id == "Stra-xdfe"


def test_wrong_options_are_said_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    for more in (
        {"names": "{camera}.mp4"},
        {"timezone": "Mars"},
        {"stream": "../up"},
        {"names": "{stream}_{date}.mp4"},
    ):
        with pytest.raises(UsageError):
            plan_footage([tmp_path], **more)  # type: ignore[arg-type]
