"""What skipping work leaves out must not be seen: times and pixels beside a decoder that decodes everything."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from index.errors import DecodeFailed
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sampler import Sampler
from ingest.decoding.sandbox import Decoding, read_frames
from tests.support.footage import make_video

B_FRAMES = ":bframes=3:b-adapt=0:b-pyramid=normal"


def every_frame(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    """(pts, RGB) of the frames at one a second, from decoding all of them on one thread."""
    sampler, found = Sampler(), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            pts = float(frame.pts * frame.time_base)
            if sampler.take(pts):
                found.append((pts, frame.reformat(format="rgb24").to_ndarray()))
    return found


@pytest.mark.parametrize(
    ("name", "made", "mode"),
    [
        ("far.mp4", {"x264": B_FRAMES}, "nonref"),
        ("two_seconds.mp4", {"x264": B_FRAMES, "gop": 21}, "nonref"),
        ("no_b.mkv", {"gop": 17}, "nonref"),
        ("open.ts", {"x264": B_FRAMES + ":open-gop=1", "gop": 23}, "nonref"),
        ("refresh.ts", {"x264": ":intra-refresh=1", "gop": 8}, "nonref"),
        ("slow.mp4", {"x264": B_FRAMES, "rate": Fraction(3, 2), "seconds": 20}, "nonref"),
        ("mpeg4.mp4", {"codec": "mpeg4"}, "nonref"),
        ("open_dense.mp4", {"x264": B_FRAMES + ":open-gop=1", "gop": 10}, "nonref"),
        ("dense.mp4", {"x264": B_FRAMES, "gop": 10}, "keyframes"),
    ],
)
def test_the_same_frames_as_decoding_everything(tmp_path: Path, name: str, made: dict[str, Any], mode: str) -> None:
    make_video(tmp_path / name, **{"seconds": 9, "size": (96, 64), **made})
    expected = every_frame(tmp_path / name)
    with Decoding(tmp_path / name) as decoding:
        found = list(decoding)
        assert decoding.info().mode == mode
    assert [pts for pts, _ in found] == pytest.approx([pts for pts, _ in expected], abs=1e-6)
    for (_, got), (pts, want) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=f"at {pts} s")


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.avi"])
def test_going_on_in_the_middle_gives_what_was_missing(tmp_path: Path, name: str) -> None:
    make_video(tmp_path / name, seconds=24, x264=B_FRAMES, gop=95, codec="mpeg4" if name == "v.avi" else "libx264")
    with Decoding(tmp_path / name) as decoding:
        whole = list(decoding)
    assert len(whole) == 24
    with Decoding(tmp_path / name) as decoding:
        first = decoding.info().first
        decoding.after = 13.0
        rest = list(decoding)
    assert [round(pts - first) for pts, _ in rest] == list(range(13, 24))
    for (_, got), (_, want) in zip(rest, whole[13:], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_footage_that_must_be_turned(tmp_path: Path, degrees: int) -> None:
    upright = np.zeros((48, 80, 3), np.uint8)
    upright[:24, :40], upright[:24, 40:] = (255, 0, 0), (0, 255, 0)  # red and green above, blue and white below
    upright[24:, :40], upright[24:, 40:] = (0, 0, 255), (255, 255, 255)
    # As a camera on its side writes it: pixels turned one way, and a display matrix that turns them back.
    stored = np.ascontiguousarray(np.rot90(upright, -degrees // 90))
    with av.open(str(tmp_path / "v.mp4"), "w") as out:
        stream: Any = out.add_stream("libx264", rate=5, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], "yuv420p"
        stream.set_display_rotation(degrees)
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        out.mux(stream.encode(None))
    frames = list(read_frames(tmp_path / "v.mp4"))
    assert len(frames) == 2
    for frame in frames:
        assert frame.pixels.shape == upright.shape
        assert frame.pixels.flags.c_contiguous
        for y, x in ((12, 20), (12, 60), (36, 20), (36, 60)):
            assert np.abs(frame.pixels[y, x].astype(int) - upright[y, x]).max() < 40, (y, x)


def test_a_size_that_changes_in_the_middle(tmp_path: Path) -> None:
    parts = []
    for i, size in enumerate([(64, 48), (128, 96), (50, 38)]):
        parts.append(tmp_path / f"part{i}.ts")
        make_video(parts[-1], seconds=6, first=1.0 + 6 * i, size=size)
    (tmp_path / "v.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = [frame.pixels.shape[:2] for frame in read_frames(tmp_path / "v.ts")]
    assert len(shapes) == 18
    assert list(dict.fromkeys(shapes)) == [(48, 64), (96, 128), (38, 50)]


def test_pixels_that_are_not_square_do_not_break_the_limit(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mkv", seconds=1, size=(64, 48), aspect=Fraction(8))
    with pytest.raises(DecodeFailed, match="512 × 48 exceeds the limit"):
        list(read_frames(tmp_path / "v.mkv", limits=DecodeLimits(pixels=64 * 48)))
