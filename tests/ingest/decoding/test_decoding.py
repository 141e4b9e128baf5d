"""Real files through the sandboxed decoder."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from index.errors import DecodeFailed, NoFrames, NotVideo, SourceDenied, SourceNotFound, UsageError
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding, read_frames
from tests.support.footage import make_video
from tests.support.tools import need

RATES = [Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(60_000, 1001), 10, 1]


@pytest.mark.parametrize("rate", RATES)
def test_every_second_has_its_frame(tmp_path: Path, rate: Fraction | int) -> None:
    times = make_video(tmp_path / "v.mp4", rate=rate, seconds=8)
    got = [f.pts_seconds for f in read_frames(tmp_path / "v.mp4")]
    expected = [next(t for t in times if t >= k - 1e-6) for k in range(8)]
    assert got == pytest.approx(expected, abs=1e-3)


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.9, 1.3, 1.4, 4.2, 4.3, 5.0, 5.1]
    make_video(tmp_path / "v.mkv", times=times)
    assert [f.pts_seconds for f in read_frames(tmp_path / "v.mkv")] == pytest.approx([0.0, 1.3, 4.2, 5.0], abs=2e-3)


def test_a_stream_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    make_video(tmp_path / "v.ts", first=7.3, seconds=4)
    start = datetime(2024, 3, 1, 8, tzinfo=UTC)
    frames = list(read_frames(tmp_path / "v.ts", start=start))
    assert [round((f.captured_at - start).total_seconds()) for f in frames] == [0, 1, 2, 3]


def test_key_frames_alone_where_each_second_has_one(tmp_path: Path) -> None:
    make_video(tmp_path / "dense.mp4", seconds=6, gop=10)
    make_video(tmp_path / "sparse.mp4", seconds=6, gop=250)
    modes = {}
    for name in ("dense", "sparse"):
        with Decoding(tmp_path / f"{name}.mp4") as decoding:
            assert len(list(decoding)) == 6
            modes[name] = decoding.info().mode
    assert modes["dense"] == "keyframes"
    assert modes["sparse"] in ("nonref", "all")


def test_pixels_are_what_was_written(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=3)
    frames = list(read_frames(tmp_path / "v.mp4"))
    assert [int(f.pixels.mean()) for f in frames] == pytest.approx([0, 70, 140], abs=4)
    assert frames[0].pixels.shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        ({"pixel_format": "yuv420p10le"}, (48, 64, 3)),
        ({"pixel_format": "yuv444p", "size": (63, 47)}, (47, 63, 3)),
        ({"x264": ":interlaced=1"}, (48, 64, 3)),
        ({"aspect": Fraction(2)}, (48, 128, 3)),
        ({"audio": True}, (48, 64, 3)),
        ({"second_size": (32, 32)}, (48, 64, 3)),
    ],
)
def test_footage_of_every_kind(tmp_path: Path, made: dict[str, object], shape: tuple[int, ...]) -> None:
    make_video(tmp_path / "v.mkv", seconds=3, **made)  # type: ignore[arg-type]
    frames = list(read_frames(tmp_path / "v.mkv"))
    assert [f.pixels.shape for f in frames] == [shape] * 3


def test_a_file_cut_off_in_the_middle_keeps_what_decodes(tmp_path: Path) -> None:
    make_video(tmp_path / "whole.mkv", seconds=60, size=(160, 120), gop=20)
    raw = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(raw[: len(raw) // 2])
    frames = []
    with pytest.raises(DecodeFailed, match=r"truncated|ended early"):  # noqa: PT012
        for frame in read_frames(tmp_path / "cut.mkv"):
            frames.append(frame)  # noqa: PERF402
    assert 10 < len(frames) < 60


@pytest.mark.parametrize(("name", "content"), [("empty.mp4", b""), ("text.mp4", b"not a film\n" * 500)])
def test_what_is_no_video_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotVideo, match=name):
        list(read_frames(tmp_path / name))


def test_a_video_without_frames(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mkv", times=[0.0])
    raw = (tmp_path / "v.mkv").read_bytes()
    cluster = raw.find(b"\x1f\x43\xb6\x75")
    (tmp_path / "none.mkv").write_bytes(raw[:cluster])
    with pytest.raises((NoFrames, NotVideo)):
        list(read_frames(tmp_path / "none.mkv"))


def test_a_missing_file_and_a_forbidden_scheme(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"no such file|No such file"):
        list(read_frames(tmp_path / "absent.mp4"))
    with pytest.raises(SourceDenied, match="gopher"):
        list(read_frames("gopher://user:secret@host/film.mp4"))


def test_a_start_is_a_datetime_rfc_3339_or_microseconds(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=1)
    at = datetime(2024, 3, 1, 8, tzinfo=UTC)
    for start in (at, "2024-03-01T08:00:00Z", 1_709_280_000_000_000):
        assert [f.captured_at for f in read_frames(tmp_path / "v.mp4", start=start)] == [at]
    with pytest.raises(UsageError, match="start"):
        read_frames(tmp_path / "v.mp4", start="noon")


def test_a_naive_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="time zone"):
        read_frames(tmp_path / "v.mp4", start=datetime(2024, 3, 1))


@pytest.mark.system
def test_a_decoder_that_is_killed_fails_its_file_alone(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=60, size=(640, 480), gop=10)
    with Decoding(tmp_path / "v.mp4") as decoding:
        frames = iter(decoding)
        next(frames)
        assert decoding.process.poll() is None  # alive, with frames left to send
        os.kill(decoding.process.pid, signal.SIGKILL)
        with pytest.raises(DecodeFailed, match="SIGKILL"):
            list(frames)


@pytest.mark.system
def test_a_decoder_that_stalls_is_stopped(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=60, size=(640, 480), gop=10)
    with Decoding(tmp_path / "v.mp4", limits=DecodeLimits(stall_seconds=8)) as decoding:
        frames = iter(decoding)
        next(frames)
        os.kill(decoding.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DecodeFailed, match="sent nothing for 8 s"):
            list(frames)
        assert time.monotonic() - began < 120
        assert decoding.process.poll() is not None


def test_limits_of_pixels_frames_and_memory(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=5, size=(320, 240))
    for limits, said in (
        (DecodeLimits(pixels=1000), "pixels"),
        (DecodeLimits(frames=2), "more than 2 frames"),
        (DecodeLimits(memory_bytes=40 * 2**20), "memory|exit code|killed"),
    ):
        with pytest.raises(DecodeFailed, match=said):
            list(read_frames(tmp_path / "v.mp4", limits=limits))


def test_the_childs_environment_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    make_video(tmp_path / "v.mp4", seconds=60, size=(640, 480), gop=10)
    with Decoding(tmp_path / "v.mp4") as decoding:
        decoding.info()
        environment = Path(f"/proc/{decoding.process.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"hunter2" not in environment


def test_frames_do_not_share_memory(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=3)
    first, second, _ = read_frames(tmp_path / "v.mp4")
    assert not np.shares_memory(first.pixels, second.pixels)


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_footage_of_a_turned_camera_stands_upright(tmp_path: Path, turned: int) -> None:
    """As ffmpeg shows it, which follows the display matrix too."""
    need("ffmpeg")
    planes = np.full((48 * 3 // 2, 64), 128, np.uint8)
    planes[:48] = np.arange(48)[:, None] * 3 + np.arange(64)  # no two corners are alike
    with av.open(str(tmp_path / "lying.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        out.mux(stream.encode(None))
    lying, upright = str(tmp_path / "lying.mp4"), str(tmp_path / "turned.mp4")
    copy = ["-i", lying, "-c", "copy", "-metadata:s:v:0", f"rotate={turned}", upright]
    raw = ["-i", upright, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    subprocess.run(["ffmpeg", "-v", "error", *copy], check=True, stdin=subprocess.DEVNULL)
    shown = subprocess.run(["ffmpeg", "-v", "error", *raw], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    frames = list(read_frames(upright))
    assert len(frames) == 2
    height, width = (48, 64) if turned == 180 else (64, 48)
    want = np.frombuffer(shown.stdout, np.uint8).reshape(height, width, 3)
    assert frames[0].pixels.shape == want.shape
    assert np.abs(frames[0].pixels.astype(int) - want).max() <= 3
