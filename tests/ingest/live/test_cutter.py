"""Live packets into segments: nothing lost, each file whole, times by the clock; sizes, codecs and counters change."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.decoding.h264 import parameter_sets
from ingest.live.capture_clock import CaptureClock
from ingest.live.cutter import LiveCutter, LiveSegment
from ingest.segments.names import parse_name, segment_name
from tests.support.footage import make_video

START = 1_700_000_000.0


def decoded(segment: LiveSegment) -> list[tuple[int, int]]:
    """(microseconds, width) of each frame that the segment's file decodes to."""
    with av.open(io.BytesIO(segment.payload)) as file:
        frames = list(file.decode(video=0))
        first = frames[0].time
        return [(segment.start + round((frame.time - first) * 1e6), frame.width) for frame in frames]


def cut(
    path: Path, *, seconds: float = 2.0, change: Any = lambda i, packet: packet, arrivals: Any = None, **more: Any
) -> tuple[LiveCutter, list[LiveSegment]]:
    """Everything of a file as if it came live at its own pace."""
    segments: list[LiveSegment] = []
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        cutter = LiveCutter(stream, CaptureClock(), seconds=seconds, max_bytes=more.pop("max_bytes", 2**28), **more)
        for i, packet in enumerate(source.demux(stream)):
            if not packet.size:
                continue
            at = float(packet.dts * packet.time_base)
            segments += cutter.push(change(i, packet), START + at)
        segments += cutter.close()
    return cutter, segments


@pytest.mark.parametrize("suffix", [".ts", ".mp4", ".mkv"])
def test_every_frame_is_in_one_segment(tmp_path: Path, suffix: str) -> None:
    make_video(tmp_path / f"a{suffix}", seconds=9, gop=10)
    cutter, segments = cut(tmp_path / f"a{suffix}")
    times = [at for segment in segments for at, _ in decoded(segment)]
    assert len(times) == 90 == cutter.frames
    assert [len(decoded(segment)) for segment in segments] == [20, 20, 20, 20, 10]
    assert all(abs(b - a - 100_000) < 1_500 for a, b in itertools.pairwise(times))
    assert cutter.dropped == 0
    assert [round(segment.duration, 2) for segment in segments] == [2.0, 2.0, 2.0, 2.0, 1.0]


def test_b_frames_keep_their_order(tmp_path: Path) -> None:
    make_video(tmp_path / "a.ts", seconds=6, gop=10, x264=":bframes=3:b-adapt=0:scenecut=0")
    cutter, segments = cut(tmp_path / "a.ts")
    times = [at for segment in segments for at, _ in decoded(segment)]
    assert len(times) == 60
    assert all(b > a for a, b in itertools.pairwise(times))
    assert cutter.newest is not None
    assert cutter.newest >= times[-1]


def test_a_change_of_size_begins_a_segment(tmp_path: Path) -> None:
    """MPEG-TS whose camera switches from 64 × 48 to 128 × 96 and goes on counting."""
    make_video(tmp_path / "small.ts", seconds=3, gop=10)
    make_video(tmp_path / "large.ts", seconds=3, gop=10, size=(128, 96), first=3.0)
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    cutter, segments = cut(joined, seconds=10.0)
    frames = [frame for segment in segments for frame in decoded(segment)]
    assert len(segments) == 2
    assert {width for _, width in decoded(segments[0])} == {64}
    assert {width for _, width in decoded(segments[1])} == {128}
    assert len(frames) >= 59  # the demuxer may give the very last frame of the first file away
    assert all(b > a for (a, _), (b, _) in itertools.pairwise(frames))
    assert cutter.frames == len(frames)


def test_a_counter_that_jumps_begins_a_segment(tmp_path: Path) -> None:
    make_video(tmp_path / "a.ts", seconds=6, gop=10)

    def jump(i: int, packet: Any) -> Any:
        if i >= 35:  # in the middle of a group of pictures: the rest of that cannot be decoded
            packet.pts += 10**8
            packet.dts += 10**8
        return packet

    cutter, segments = cut(tmp_path / "a.ts", seconds=10.0, change=jump)
    assert [len(decoded(segment)) for segment in segments] == [35, 20]
    assert (cutter.dropped, cutter.skipped) == (0, 5)
    assert cutter.clock.anchors == 2
    late = [at / 1e6 - START for segment in segments for at, _ in decoded(segment)]
    assert late[34] == pytest.approx(late[0] + 3.4, abs=0.01)
    assert late[35] == pytest.approx(late[0] + 4.0, abs=0.3)


def test_joining_in_the_middle_of_a_group_of_pictures_drops_nothing(tmp_path: Path) -> None:
    make_video(tmp_path / "a.ts", seconds=6, gop=10)
    with av.open(str(tmp_path / "a.ts")) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        cutter = LiveCutter(source.streams.video[0], CaptureClock(), seconds=2.0, max_bytes=2**28)
        segments = [s for p in packets[13:] for s in cutter.push(p, START + float(p.dts * p.time_base))]
        segments += cutter.close()
    assert (cutter.dropped, cutter.skipped) == (0, 7)
    assert sum(segment.frames for segment in segments) == 40


def test_a_stream_whose_first_packets_have_no_times_loses_none(tmp_path: Path) -> None:
    """As RTSP brings them: the key frame without pts and dts, the next ones without dts."""
    make_video(tmp_path / "a.ts", seconds=4, gop=10, x264=":bframes=2:b-adapt=0")

    def bare(i: int, packet: Any) -> Any:
        if i == 0:
            packet.pts = None
        return packet

    segments: list[LiveSegment] = []
    with av.open(str(tmp_path / "a.ts")) as source:
        stream = source.streams.video[0]
        cutter = LiveCutter(stream, CaptureClock(), seconds=2.0, max_bytes=2**28)
        for i, packet in enumerate(source.demux(stream)):
            if packet.size:
                at = float(packet.dts * packet.time_base)
                if i < 3:
                    packet.dts = None
                segments += cutter.push(bare(i, packet), START + at)
        segments += cutter.close()
    times = [at for segment in segments for at, _ in decoded(segment)]
    assert len(times) == 40
    assert all(abs(b - a - 100_000) < 1_500 for a, b in itertools.pairwise(times))


def test_what_was_buffered_while_opening_is_not_late(tmp_path: Path) -> None:
    """The first five seconds come at once, more than a segment of them; the rest as it is captured."""
    make_video(tmp_path / "a.ts", seconds=12, gop=10)
    segments: list[LiveSegment] = []
    with av.open(str(tmp_path / "a.ts")) as source:
        cutter = LiveCutter(source.streams.video[0], CaptureClock(), seconds=2.0, max_bytes=2**28)
        packets = [packet for packet in source.demux(video=0) if packet.size]
        zero = float(packets[0].dts * packets[0].time_base)
        for packet in packets:
            arrival = START + max(5.0, float(packet.dts * packet.time_base) - zero)
            segments += cutter.push(packet, arrival)
        segments += cutter.close()
    assert [round(segment.start / 1e6 - START, 1) for segment in segments] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert cutter.clock.anchors == 1


def test_a_segment_is_bounded_where_no_key_frame_comes(tmp_path: Path) -> None:
    make_video(tmp_path / "a.ts", seconds=6, gop=250, size=(320, 240))
    cutter, segments = cut(tmp_path / "a.ts", max_bytes=1000)
    assert len(segments) == 1
    assert cutter.dropped > 0
    assert cutter.skipped == 0
    assert cutter.dropped + sum(segment.frames for segment in segments) == 60


def test_parameter_sets_are_those_before_the_first_slice() -> None:
    sps, pps, slice_ = b"\0\0\0\1\x67abc", b"\0\0\0\1\x68d", b"\0\0\1\x65picture\0\0\1\x67late"
    assert parameter_sets(sps + pps + slice_, 0, "h264") == b"\x67abc"
    lengths = b"".join(len(unit).to_bytes(4, "big") + unit for unit in (b"\x67abc", b"\x68d", b"\x65picture"))
    assert parameter_sets(lengths, 4, "h264") == b"\x67abc"
    assert parameter_sets(b"\0\0\0\1\x42\x01xyz" + b"\0\0\1\x26\x01pic", 0, "hevc") == b"\x42\x01xyz"
    assert parameter_sets(b"anything", 0, "mpeg4") == b""


@settings(max_examples=50)
@given(
    stream=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    start=st.integers(0, 4_000_000_000_000_000),
    duration=st.integers(1, 10**9),
    media=st.sampled_from(["video/mp4", "video/x-matroska"]),
)
def test_names_say_what_they_were_made_of(stream: str, start: int, duration: int, media: Any) -> None:
    name = segment_name(stream, start, duration / 1e6, media)
    found = parse_name(f"some/folder/{name}")
    assert found is not None
    assert (found.stream, found.start, found.media_type, found.name) == (stream, start, media, name)
    assert found.end == start + duration
    assert parse_name(name + ".part") is None
