"""A backfill writes the rows that `sightline ingest` writes, however the work is cut, stopped and repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import BackfillFailed
from index.records import Segment
from index.store import Store
from ingest.decoding.decoder import decode, open_video
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding
from ingest.embedding import encode_records
from ingest.file_ingest import ingest_sources
from ingest.footage_report import FootageAmount
from model.encoders.encoder import Encoders, load_encoders
from model.profiles.profile import load_profile
from pipeline.backfill import work
from pipeline.backfill.elements import ProbedFile, WorkerSettings
from pipeline.backfill.job import backfill
from pipeline.backfill.manifest import Entry, read_manifest
from pipeline.backfill.report import FileResult
from pipeline.backfill.work import Indexer, plan, probe
from tests.support.command import Command
from tests.support.footage import make_video
from tests.support.stores import assert_same

pytestmark = pytest.mark.timeout(1800)
AT = datetime(2024, 3, 1, 8, tzinfo=UTC)
SECONDS = 10  # of a segment
TWO_WORKERS = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module")
def encoders(profile: str) -> Encoders:
    return load_encoders(load_profile(profile), "cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras: four clips a few seconds long, one of 47 s, and one that shows again what two clips show."""
    folder = tmp_path_factory.mktemp("archive")
    for number, seconds in enumerate((7, 12.4, 3, 25)):
        made = AT + timedelta(minutes=number)
        make_video(folder / f"east_{made:%Y%m%dT%H%M%SZ}.mp4", seconds=seconds, gop=23)
    make_video(folder / f"west_{AT:%Y%m%dT%H%M%SZ}.mp4", seconds=47, rate=Fraction(30_000, 1001), gop=75)
    twice = AT + timedelta(minutes=1, seconds=2)
    make_video(folder / f"east_{twice:%Y%m%dT%H%M%SZ}.mp4", seconds=30, gop=10, size=(80, 48))
    return folder


@pytest.fixture(scope="module")
def ingested(archive: Path, encoders: Encoders, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What `ingest` makes of it."""
    store = Store.create(tmp_path_factory.mktemp("ingested") / "store", encoders.pair)
    ingest_sources([archive], store=store, encoders=encoders, segment_seconds=SECONDS)
    return store


def run(archive: Path, store: Path, profile: str, **more: Any) -> Any:
    entries = more.pop("entries", None) or read_manifest(str(archive))
    given = {"segment_seconds": SECONDS, "piece_seconds": 2 * SECONDS, "device": "cpu", "threads": 1, **more}
    return backfill(entries, store=str(store), profile=profile, **given)


def versions(store: Path) -> list[int]:
    return [len(list((store / name / "_delta_log").glob("*.json"))) for name in ("frames", "patches", "segments")]


def test_a_backfill_is_what_ingest_writes_and_a_second_one_changes_nothing(
    archive: Path, ingested: Store, profile: str, tmp_path: Path, encoders: Encoders
) -> None:
    store = tmp_path / "store"
    report = run(archive, store, profile)
    assert_same(Store.open(store), ingested)
    assert (report.files, report.stored, report.skipped, report.lost) == (6, 6, 0, 0)
    assert report.frames == ingested.window().captured_at.size
    assert report.counters["pieces"] > report.files  # long files were cut
    assert report.counters["pieces_staged"] < report.counters["pieces"]  # and others appended straight away
    assert not list((store / "staging").glob("*/*"))
    before = versions(store)
    again = run(archive, store, profile)
    assert (again.stored, again.skipped) == (0, 6)
    total = report.frames
    assert (report.footage.stored.frames, report.footage.stored.seconds) == (total, total)
    assert report.footage.repeated.frames == 11  # the clip at 1:02 shows again what the one at 1:00 shows to 1:12.4
    assert report.footage.dropped == FootageAmount()
    assert (again.footage.stored.frames, again.footage.repeated.frames) == (0, total)
    report = ingest_sources([archive], store=Store.open(store), encoders=encoders, segment_seconds=SECONDS)
    assert all(file.skipped for file in report.files)
    assert versions(store) == before


def test_clips_are_those_of_ingest(archive: Path, clip_profile: str, tmp_path: Path) -> None:
    """A clip's tokens depend on the frames in it, so a batch that cut one would show in its rows."""
    encoders = load_encoders(load_profile(clip_profile), "cpu")
    expected = Store.create(tmp_path / "expected", encoders.pair)
    ingest_sources([archive], store=expected, encoders=encoders, segment_seconds=SECONDS)
    run(archive, tmp_path / "store", clip_profile)
    found = Store.open(tmp_path / "store")
    assert_same(found, expected)
    assert found.encoders.clip_frames == 4


@pytest.mark.parametrize("names", [None, "{stream}_{start:%Y%m%dT%H%M%S}.mp4"])
def test_the_zone_of_a_clock_is_stored(profile: str, tmp_path: Path, encoders: Encoders, names: str | None) -> None:
    """Also from staging, which takes files that overlap."""
    folder = tmp_path / "local"
    folder.mkdir()
    make_video(folder / "east_20241027T023000.mp4", seconds=3)  # twice on that day
    make_video(folder / "west_20240701T080000.mp4", seconds=3)
    make_video(folder / "west_20240701T080002.mp4", seconds=3)
    expected, zone = Store.create(tmp_path / "expected", encoders.pair), "Europe/Amsterdam"
    ingest_sources([folder], store=expected, encoders=encoders, segment_seconds=SECONDS, timezone=zone, names=names)
    clocks = [segment.clock for segment in expected.segments()]
    assert clocks == [f"filename ({zone}; the first of two equal times)", *[f"filename ({zone})"] * 2]
    run(folder, tmp_path / "store", profile, entries=read_manifest(str(folder), timezone=zone, names=names))
    assert_same(Store.open(tmp_path / "store"), expected)


def test_two_worker_processes_write_the_same(archive: Path, ingested: Store, profile: str, tmp_path: Path) -> None:
    report = run(archive, tmp_path / "store", profile, options=TWO_WORKERS)
    assert_same(Store.open(tmp_path / "store"), ingested)
    assert report.counters["files_stored"] == report.stored == 6


def test_a_backfill_goes_on_where_an_ingest_was_stopped_and_the_other_way_round(
    archive: Path, ingested: Store, profile: str, tmp_path: Path, encoders: Encoders
) -> None:
    class Stopped(Exception):
        pass

    class Stopping:
        def __init__(self, store: Store, commits: int) -> None:
            self.store, self.left = store, commits
            self.segments = store.segments

        def append(self, *what: Any) -> Segment | None:
            if not self.left:
                raise Stopped
            self.left -= 1
            return self.store.append(*what)

        def seal(self) -> int:
            return 0

    store = Store.create(tmp_path / "store", encoders.pair)
    with pytest.raises(Stopped):
        ingest_sources(
            [archive], store=Stopping(store, len(ingested.segments()) - 3), encoders=encoders, segment_seconds=SECONDS
        )
    assert 0 < len(store.segments("west")) < len(ingested.segments("west"))  # in the middle of the longest file
    report = run(archive, tmp_path / "store", profile)
    assert report.skipped == 5
    assert_same(Store.open(tmp_path / "store"), ingested)


def test_bad_files_are_dead_letters_and_too_many_fail_the_job(
    archive: Path, profile: str, tmp_path: Path, encoders: Encoders
) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "text.mp4").write_text("this is no video\n" * 50)
    make_video(tmp_path / "whole.mkv", seconds=47, gop=20)
    whole = (tmp_path / "whole.mkv").read_bytes()
    (mixed / f"cut_{AT:%Y%m%dT%H%M%SZ}.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    make_video(mixed / f"good_{AT:%Y%m%dT%H%M%SZ}.mp4", seconds=4)
    expected = Store.create(tmp_path / "expected", encoders.pair)
    told = ingest_sources([mixed], store=expected, encoders=encoders, segment_seconds=SECONDS)
    assert sorted(bool(file.problem) for file in told.files) == [False, True, True]
    absent = Entry(uri=str(mixed / "absent.mp4"), stream="absent")
    entries = [*read_manifest(str(mixed)), absent]
    report = run(mixed, tmp_path / "store", profile, entries=entries, max_lost=0.5)
    assert_same(Store.open(tmp_path / "store"), expected)
    assert report.errors == {"DecodeFailed": 1, "NotVideo": 1, "SourceNotFound": 1}
    assert (report.lost, report.lost_ratio) == (2, 0.5)
    assert report.footage.dropped.files == 3
    cut = next(file for file in told.files if file.stream_id == "cut")
    assert report.footage.dropped.seconds == pytest.approx(47 - cut.seconds, abs=0.2)
    assert report.footage.model_dump()["stored"] == told.footage.model_dump()["stored"]
    letters = [json.loads(line) for line in Path(str(report.dead_letters)).read_text().splitlines()]
    assert {(Path(r["uri"]).name[:4], r["state"], r["kind"]) for r in letters} == {
        ("text", "lost", "NotVideo"),
        ("abse", "lost", "SourceNotFound"),
        ("cut_", "stored", "DecodeFailed"),
    }
    assert "truncated" in next(r["problem"] for r in letters if r["state"] == "stored")
    with pytest.raises(BackfillFailed, match=r"2 of 4 files gave nothing, more than --max-lost 0\.2"):
        run(mixed, tmp_path / "store", profile, entries=entries, max_lost=0.2)


def test_footage_that_changes_its_nature_is_done_in_one_piece(profile: str, tmp_path: Path, encoders: Encoders) -> None:
    """A key frame each second at first, every fourth later: what a piece does depends on those before it."""
    folder = tmp_path / "uneven"
    folder.mkdir()
    times = [i / 10 for i in range(250)] + [25 + i * 0.4 for i in range(62)]
    make_video(folder / f"odd_{AT:%Y%m%dT%H%M%SZ}.mp4", times=times, gop=10)
    expected = Store.create(tmp_path / "expected", encoders.pair)
    ingest_sources([folder], store=expected, encoders=encoders, segment_seconds=SECONDS)
    modes = [segment.decode_mode for segment in expected.segments()]
    assert modes[0] == "keyframes" != modes[-1]
    run(folder, tmp_path / "store", profile)
    assert_same(Store.open(tmp_path / "store"), expected)


# ---- stopped -----------------------------------------------------------------------------------------------------


def _group(leader: int) -> list[str]:
    """The command lines of the processes of a process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == leader:
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, ValueError):
            continue
    return found


HELD_WORKERS = """
import sys
if any("sdk_worker" in word for word in sys.orig_argv):
    from pathlib import Path
    from tests.support.gate import Gate
    from tests.support.gated_command import before_the_third_commit
    before_the_third_commit(Gate(Path({gate!r})))
"""


def test_a_job_killed_in_the_middle_is_finished_by_running_it_again(
    archive: Path, profile: str, tmp_path: Path, encoders: Encoders
) -> None:
    expected = Store.create(tmp_path / "expected", encoders.pair)
    ingest_sources([archive], store=expected, encoders=encoders, segment_seconds=2)
    store = tmp_path / "store"
    command = [sys.executable, "-m", "pipeline.cli", "backfill", "--manifest", str(archive), "--store", str(store)]
    command += ["--profile", profile, "--threads", "1", "--piece-minutes", "0.2", "--json", "--", *TWO_WORKERS]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGHTLINE_")}
    # Beam starts its workers itself: what holds them at the third commit is imported when Python starts.
    gate = tmp_path / "gate"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HELD_WORKERS.format(gate=str(gate)))
    environment |= {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{os.getcwd()}"}
    environment |= {"SIGHTLINE_SEGMENT_SECONDS": "2", "SIGHTLINE_DEVICE": "cpu"}
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 800
        commits = store / "segments" / "_delta_log"
        while len(list(commits.glob("*.json"))) < 3 and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert job.poll() is None, (tmp_path / "log").read_text()
        workers = [line for line in _group(job.pid) if "sdk_worker" in line]
        os.killpg(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
    assert len(workers) >= 2  # two worker processes were at work
    done, whole = len(Store.open(store).segments()), len(expected.segments())
    assert 0 < done < whole  # in the middle of it
    report = run(archive, store, profile, segment_seconds=2, piece_seconds=12)
    assert report.files == report.stored + report.skipped == 6
    assert_same(Store.open(store), expected)


# ---- pieces ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("rate", [Fraction(10), Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(50)])
@pytest.mark.parametrize("gop", [1, 7, 30, 250])
def test_pieces_put_together_are_the_whole(tmp_path: Path, suffix: str, rate: Fraction, gop: int) -> None:
    """For every length of a GOP, rate and container, with frames out of order: none is lost, doubled or another."""
    path, limits = tmp_path / f"v.{suffix}", DecodeLimits()
    make_video(path, seconds=11, rate=rate, gop=gop, first=1.3, x264=":bframes=3:b-adapt=0:open-gop=1")

    def frames(after: float, until: float | None) -> list[tuple[float, bytes]]:
        source = os.open(path, os.O_RDONLY)
        return [(p.pts, bytes(p.data)) for p in decode(open_video(source, limits), limits, after=after, until=until)]

    whole = frames(0, None)
    assert len(whole) == 11
    for length in (1, 3, 4):
        cuts = list(range(0, 11, length))
        pieces = [frames(a, b) for a, b in zip(cuts, [*map(float, cuts[1:]), None], strict=True)]
        assert [pts for piece in pieces for pts, _ in piece] == [pts for pts, _ in whole], length
        assert [frame for piece in pieces for frame in piece] == whole, length


@settings(max_examples=int(os.environ.get("BORDER_EXAMPLES", "12")), deadline=None)
@given(
    rate=st.fractions(Fraction(1), Fraction(60), max_denominator=1001),
    gop=st.integers(1, 400),
    length=st.integers(1, 5),
    first=st.floats(0, 3),
    seconds=st.integers(1, 9),
)
def test_whatever_the_gop_and_the_rate_no_frame_at_a_border_is_lost_or_doubled(
    rate: Fraction, gop: int, length: int, first: float, seconds: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, limits = Path(folder) / "v.mkv", DecodeLimits()
        make_video(path, seconds=seconds, rate=rate, gop=gop, first=first, x264=":bframes=2:open-gop=1")

        def frames(after: float, until: float | None) -> list[tuple[float, bytes]]:
            source = os.open(path, os.O_RDONLY)
            pictures = decode(open_video(source, limits), limits, after=after, until=until)
            return [(picture.pts, bytes(picture.data)) for picture in pictures]

        whole = frames(0, None)
        cuts = list(range(0, seconds, length))
        pieces = [frames(a, b) for a, b in zip(cuts, [*map(float, cuts[1:]), None], strict=True)]
    assert whole
    assert [pts for piece in pieces for pts, _ in piece] == [pts for pts, _ in whole]
    assert [frame for piece in pieces for frame in piece] == whole


def test_the_decoder_stops_at_the_given_second(archive: Path) -> None:
    [west] = archive.glob("west*")
    with Decoding(west, after=10) as decoding:
        decoding.until = 20.0
        times = [pts - decoding.info().first for pts, _ in decoding]
    assert [int(t + 1e-6) for t in times] == list(range(10, 20))


def test_files_that_share_time_are_one_group_and_others_are_not(archive: Path, ingested: Store, tmp_path: Path) -> None:
    worker = WorkerSettings(str(tmp_path), str(tmp_path / "staging"), "", None, SECONDS, 2, DecodeLimits(), 1)
    empty = Store.create(tmp_path / "store", ingested.encoders)
    files = [probe(worker, empty, order, entry) for order, entry in enumerate(read_manifest(str(archive)))]
    east = [f for f in files if isinstance(f, ProbedFile) and f.footage.stream_id == "east"]
    groups: dict[str, set[int]] = {}
    for piece in plan(worker, east):
        groups.setdefault(piece.group, set()).add(piece.file.order)
        assert piece.alone == (piece.pieces == 1)
    assert sorted(map(len, groups.values())) == [1, 1, 1, 2]


# ---- the command -------------------------------------------------------------------------------------------------


def test_frames_that_wait_are_bounded_by_bytes(
    archive: Path, ingested: Store, tmp_path: Path, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "store", encoders.pair)
    worker = WorkerSettings(store.url, str(tmp_path / "staging"), "", None, SECONDS, 100, DecodeLimits(), 1)
    indexer, held = Indexer(worker, store, encoders), list[int]()

    def counted(encoders: Encoders, batches: Any, **more: Any) -> Any:
        held.append(sum(pixels.nbytes for _, _, frames in batches for pixels in frames.pixels))
        return encode_records(encoders, batches, **more)

    frame_bytes = 64 * 48 * 3
    monkeypatch.setattr(work, "encode_records", counted)
    monkeypatch.setattr("ingest.chunks.BATCH_BYTES", 3 * frame_bytes)
    monkeypatch.setattr(work, "BATCH_BYTES", 3 * frame_bytes)
    west = [entry for entry in read_manifest(str(archive)) if entry.stream == "west"]
    probed = [probe(worker, store, order, entry) for order, entry in enumerate(west)]
    (piece,) = plan(worker, [file for file in probed if isinstance(file, ProbedFile)])
    (result,) = (*indexer.add(piece), *indexer.flush())
    assert max(held) <= 6 * frame_bytes  # what waited, and one batch of the reader; 32 frames without the bound
    frames = store.window(["west"]).captured_at
    assert frames.tolist() == ingested.window(["west"]).captured_at.tolist()
    assert isinstance(result, FileResult)
    assert result.frames == frames.size


def test_the_command_reports_in_words_json_and_a_file(
    sightline: Command, archive: Path, profile: str, tmp_path: Path
) -> None:
    clip = tmp_path / "clips"
    clip.mkdir()
    shutil.copy(next(archive.glob("east_20240301T080200Z*")), clip)
    (tmp_path / "m.csv").write_text(f"uri,stream\n{next(clip.iterdir())},roof\n")
    common = ("backfill", "--manifest", tmp_path / "m.csv", "--store", tmp_path / "s", "--profile", profile)
    dry = sightline(*common, "--dry-run", "--json").data
    assert (dry["files"], dry["frames"], dry["unreadable"]) == (1, 3, 0)
    assert dry["store_bytes"] > 3 * 2 * 16 * 24
    assert dry["gpu_hours"] == pytest.approx(3 / dry["frames_per_second"] / 3600)
    assert "1 files, about 0.00 hours, 3 frames" in sightline(*common, "--dry-run", "--frames-per-second", 100).out
    assert not (tmp_path / "s").exists()
    result = sightline(*common, "--report", tmp_path / "r.json")
    assert result.code == 0, result.err
    assert "1 (1 stored, 0 stored before, 0 lost)" in result.out
    assert json.loads((tmp_path / "r.json").read_text())["frames"] == 3
    again = sightline(*common, "--json").data
    assert (again["skipped"], again["frames"]) == (1, 0)
    assert sightline("streams", "--store", tmp_path / "s", "--json").data[0]["stream_id"] == "roof"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--runner", "Sparkle"), "--runner Sparkle is unknown; use one of DirectRunner"),
        (("--max-lost", "1.5"), "--max-lost must lie between 0 and 1"),
        (("--piece-minutes", "1"), "a piece of 60 s must hold at least one segment of 300 s"),
        (("--dry-run", "--sample", "0"), "--sample must be at least 1"),
        (("--names", "{camera}.mp4"), "{camera} is unknown"),
    ],
)
def test_wrong_usage(
    sightline: Command, archive: Path, profile: str, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    result = sightline("backfill", "--manifest", archive, "--store", tmp_path / "s", "--profile", profile, *arguments)
    assert result.code == 2
    assert expected in result.err
    assert result.err.count("\n") == 1
