"""Files whose timestamps do not ascend gently: every frame is kept, in order, and each step and gap is reported."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from ingest.decoding.sandbox import Decoding, VideoInfo
from ingest.segments.cutting import cut
from tests.support.footage import make_video


def frames(path: Path, after: float = 0.0) -> tuple[list[float], VideoInfo]:
    with Decoding(path, after=after) as decoding:
        info = decoding.info()
        times = [round(pts - info.first, 3) for pts, _ in decoding]
    return times, info


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *map(str, arguments)], check=True)


def recording(path: Path, seconds: float, *, offset: float = 0.0, colour: str = "red") -> Path:
    """A transport stream of five frames a second with an intra frame every two seconds."""
    source = f"color={colour}:duration={seconds}:rate=5:size=64x48"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-g", 10, "-bf", 2, "-output_ts_offset", offset, path)
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_joined_recordings_are_as_long_as_both(tmp_path: Path) -> None:
    one = recording(tmp_path / "one.ts", 20)
    times, info = frames(joined(tmp_path / "both.ts", one, one))
    assert times == [float(second) for second in range(40)]
    assert info.discontinuity_count == 1
    assert "steps back by" in str(info.clock_problem("v"))


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    first = recording(tmp_path / "one.ts", 10)
    second = recording(tmp_path / "two.ts", 10, offset=4)
    times, info = frames(joined(tmp_path / "both.ts", first, second))
    assert times == [float(second) for second in range(20)]
    assert "steps back by 6.4 s at 11.4 s" in str(
        info.clock_problem("v")
    )  # decoding times, of which 0.4 s are reordering


def test_a_pause_of_a_day_is_one_gap(tmp_path: Path) -> None:
    first = recording(tmp_path / "one.ts", 2)
    second = recording(tmp_path / "two.ts", 3, offset=80_000)
    times, info = frames(joined(tmp_path / "both.ts", first, second))
    assert times[:2] == [0, 1]
    assert 79_999 < times[2] < 80_001
    assert len(times) in (5, 6)  # by where in a second the footage behind the gap begins
    assert [int(b - a) for a, b in pairwise(times[3:])] == [1] * (len(times) - 4)
    assert str(info.clock_problem("v")).startswith("v: no footage for 7999")


def test_another_program_in_the_middle(tmp_path: Path) -> None:
    first = recording(tmp_path / "one.ts", 20)
    source = "color=blue:duration=20:rate=5:size=96x64"
    options = [
        "-c:v",
        "libx264",
        "-g",
        10,
        "-mpegts_start_pid",
        0x300,
        "-mpegts_service_id",
        2,
        "-mpegts_pmt_start_pid",
        0x1200,
    ]
    ffmpeg("-f", "lavfi", "-i", source, *options, tmp_path / "two.ts")
    path = joined(tmp_path / "both.ts", first, tmp_path / "two.ts")
    times, _ = frames(path)
    assert times == [float(second) for second in range(40)]
    with Decoding(path) as decoding:
        sizes = [pixels.shape[:2] for _, pixels in decoding]
    assert sizes == [(48, 64)] * 20 + [(64, 96)] * 20


@pytest.mark.parametrize("after", [5.0, 18.0, 25.0, 39.0])
def test_going_on_behind_a_step_gives_the_same_frames(tmp_path: Path, after: float) -> None:
    one = recording(tmp_path / "one.ts", 20)
    path = joined(tmp_path / "both.ts", one, one)
    whole, _ = frames(path)
    assert frames(path, after)[0] == [time for time in whole if time >= after]


def test_timestamps_that_start_late_are_not_a_truncated_file(tmp_path: Path) -> None:
    make_video(tmp_path / "plain.mkv", seconds=20)
    ffmpeg("-i", tmp_path / "plain.mkv", "-c", "copy", "-output_ts_offset", 100, tmp_path / "late.mkv")
    times, info = frames(tmp_path / "late.mkv")
    assert (len(times), round(info.first), round(info.duration or 0)) == (20, 100, 20)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_that_is_longer_is_not_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sound.{suffix}"
    video = "color=red:duration=8:rate=5:size=64x48"
    ffmpeg("-f", "lavfi", "-i", video, "-f", "lavfi", "-i", "sine=duration=25", "-c:v", "libx264", path)
    assert len(frames(path)[0]) == 8


def test_b_frames_in_avi_have_true_times(tmp_path: Path) -> None:
    make_video(tmp_path / "plain.mp4", seconds=12, x264=":bframes=3")
    ffmpeg("-i", tmp_path / "plain.mp4", "-c", "copy", tmp_path / "plain.avi")
    with Decoding(tmp_path / "plain.mp4") as decoding:
        expected = [int(pixels[0, 0, 0]) for _, pixels in decoding]
    with Decoding(tmp_path / "plain.avi") as decoding:
        found = [(round(pts, 3), int(pixels[0, 0, 0])) for pts, pixels in decoding]
    assert [time for time, _ in found] == [float(second) for second in range(12)]
    assert [grey for _, grey in found] == expected


def test_segments_of_joined_recordings_hold_every_frame(tmp_path: Path) -> None:
    one = recording(tmp_path / "one.ts", 20)
    segments = list(cut(joined(tmp_path / "both.ts", one, one), seconds=6))
    assert sum(segment.duration for segment in segments) == pytest.approx(40, abs=0.5)
    starts = [segment.pts for segment in segments]
    assert starts == sorted(starts)


def test_no_segment_reaches_across_a_gap(tmp_path: Path) -> None:
    first = recording(tmp_path / "one.ts", 4)
    second = recording(tmp_path / "two.ts", 4, offset=80_000)
    segments = list(cut(joined(tmp_path / "both.ts", first, second), seconds=10))
    assert [round(segment.duration) for segment in segments] == [4, 4]
    assert round(segments[1].pts - segments[0].pts) == 80_000


def test_a_leap_past_any_pause_is_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "leap.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(20):
            frame = av.VideoFrame(64, 48, "yuvj420p")
            frame.pts, frame.time_base = i * 200 + (10**9 if i >= 10 else 0), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    times, info = frames(path)
    assert times == [0.0, 1.0, 2.0, 3.0]
    assert "steps ahead by" in str(info.clock_problem("v"))
