"""Files cut into segments, against a reference that looks at all packets at once."""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import DecodeFailed, MessageTooLarge, NotVideo, SourceNotFound
from index.records import to_micros
from ingest.decoding.decoder_process import DecoderProcess
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import FAILED, HEADER, OPENED, SEGMENT, SEGMENT_BODY
from ingest.decoding.sandbox import Decoding
from ingest.decoding.worker import ParentPipes
from ingest.kafka.publisher import segments_of
from ingest.segments.cutter import CutSegment, SegmentFile, cut_file
from ingest.segments.cutting import Cutting, cut
from tests.support.footage import make_video

B_FRAMES = ":bframes=2:b-adapt=0"


@dataclass(frozen=True, slots=True)
class Shown:
    """One packet of a file, in decoding order."""

    pts: float
    key: bool


def packets(path: Path) -> list[Shown]:
    with av.open(str(path)) as container:
        found = [
            Shown(float(packet.pts * packet.time_base), packet.is_keyframe)
            for packet in container.demux(container.streams.video[0])
            if packet.pts is not None and packet.time_base is not None
        ]
    return found


def groups(path: Path, seconds: float, frame: float) -> list[list[float]]:
    """The reference: pts of each segment's frames, from all packets of the file."""
    segments: list[list[float]] = []
    for packet in packets(path):
        if packet.key and (not segments or packet.pts - segments[-1][0] >= seconds - frame / 2):
            segments.append([])
        if segments and (not segments[-1] or packet.pts >= segments[-1][0]):
            segments[-1].append(packet.pts)
    return [sorted(segment) for segment in segments]


def shown(segment: CutSegment) -> list[float]:
    """pts in the file of every frame that decodes from a segment alone."""
    with av.open(io.BytesIO(segment.payload)) as container:
        frames = list(container.decode(container.streams.video[0]))
    assert not any(frame.is_corrupt for frame in frames)
    return [segment.pts + float(frame.pts * frame.time_base) for frame in frames if frame.pts is not None]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([10, 25, Fraction(30_000, 1001)]),
    st.integers(3, 40),
    st.sampled_from(["", B_FRAMES, B_FRAMES + ":open-gop=1"]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from(["v.mp4", "v.mkv", "v.ts"]),
    st.sampled_from([0.0, 2.3]),
)
def test_segments_are_those_of_looking_at_all_packets(
    rate: Fraction | int, gop: int, x264: str, seconds: float, name: str, first: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        make_video(path, seconds=5, rate=rate, gop=gop, x264=x264, first=first)
        frame = 1 / float(rate)
        expected = groups(path, seconds, frame)
        found = list(cut(path, seconds=seconds))
    assert len(found) == len(expected)
    for segment, times in zip(found, expected, strict=True):
        assert segment.pts == pytest.approx(times[0], abs=2e-3)
        assert shown(segment) == pytest.approx(times, abs=2e-3)
        assert segment.duration == pytest.approx(times[-1] - times[0] + frame, abs=5e-3)
    for segment, after in pairwise(found):
        assert after.pts - segment.pts >= seconds - frame / 2 - 5e-3
        assert segment.pts + segment.duration <= after.pts + 5e-3


def test_the_last_frame_of_a_transport_stream_is_shown(tmp_path: Path) -> None:
    """Its packets have no duration, and MP4 hides frames beyond the sum of durations where there are B frames."""
    times = make_video(tmp_path / "v.ts", seconds=2, gop=250, x264=B_FRAMES)
    [segment] = cut(tmp_path / "v.ts", seconds=10)
    assert segment.media_type == "video/mp4"
    assert len(shown(segment)) == len(times)


def test_closed_groups_lose_no_frame(tmp_path: Path) -> None:
    times = make_video(tmp_path / "v.mp4", seconds=12, gop=15, x264=B_FRAMES)
    found = list(cut(tmp_path / "v.mp4", seconds=3))
    assert [segment.media_type for segment in found] == ["video/mp4"] * 4
    assert [pts for segment in found for pts in shown(segment)] == pytest.approx(times, abs=1e-3)


def test_frames_of_an_open_group_that_are_shown_first_are_dropped(tmp_path: Path) -> None:
    times = make_video(tmp_path / "v.mp4", seconds=12, gop=15, x264=B_FRAMES + ":open-gop=1")
    found = [pts for segment in cut(tmp_path / "v.mp4", seconds=3) for pts in shown(segment)]
    assert found == sorted(found)
    assert len(times) - 6 <= len(found) < len(times)  # two B frames at each of three borders


def test_a_codec_that_mp4_lacks_goes_into_matroska(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mkv", seconds=2, codec="libvpx")
    assert {segment.media_type for segment in cut(tmp_path / "v.mkv")} == {"video/x-matroska"}


def test_a_segment_over_the_bound_is_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=4, gop=10)
    whole = [len(segment.payload) for segment in cut(tmp_path / "v.mp4", seconds=1)]
    assert len(whole) == 4
    with pytest.raises(MessageTooLarge, match="more than 200 bytes"):
        list(cut(tmp_path / "v.mp4", seconds=1, max_bytes=200))


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(NotVideo, match=r"^front: not a video file"):
        list(cut(tmp_path / "v.mp4", name="front"))
    with pytest.raises(SourceNotFound, match=r"^http://\*\*\*@camera/v: No such file"):
        list(cut(tmp_path / "absent.mp4", name="http://user:hunter2@camera/v"))


def test_a_truncated_file_gives_the_segments_before(tmp_path: Path) -> None:
    make_video(tmp_path / "v.ts", seconds=20, gop=10)
    raw = (tmp_path / "v.ts").read_bytes()
    (tmp_path / "v.ts").write_bytes(raw[: len(raw) // 2])
    found = []
    try:
        for segment in cut(tmp_path / "v.ts", seconds=2):
            found.append(segment)  # noqa: PERF402
    except DecodeFailed as error:
        assert "reading ended early" in str(error)  # noqa: PT017
    assert 2 < len(found) < 10


@pytest.mark.parametrize(
    "error", [IndexError("tuple index out of range"), OSError(5, "Input/output error"), ValueError("x")]
)
def test_an_error_of_the_library_is_an_error_of_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "a.mp4", seconds=3)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(SegmentFile, "add", fail)
    with pytest.raises(DecodeFailed, match="ended early"):
        cut_here(tmp_path / "a.mp4")


def cut_here(path: Path) -> None:
    """Run the task of the confined process in this one."""
    with path.open("rb") as file, tempfile.TemporaryFile() as memory, open(os.devnull, "wb") as out:
        memory.truncate(2**20)
        parent = ParentPipes(out, io.BytesIO(bytes(10)))  # every segment is copied at once
        cut_file(parent, {"seconds": 1, "max_bytes": 2**20}, file.fileno(), memory.fileno(), DecodeLimits())


class TakenOver:
    """In place of the process that cuts: it sends these bytes and ends."""

    sent = b""

    def __init__(self, order: Any, *, source: int, memory: int) -> None:
        self.stdout, out = os.pipe()
        self.stderr, error = os.pipe()
        self.stdin = os.open(os.devnull, os.O_WRONLY)
        os.write(out, self.sent)
        os.close(out)
        os.close(error)

    def wait(self) -> int:
        return 3

    def close(self) -> None:
        for descriptor in (self.stdin, self.stdout, self.stderr):
            with suppress(OSError):
                os.close(descriptor)


def packed(kind: bytes, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body)) + body


OPEN = packed(OPENED, b'{"mode": "all", "first": 0.0, "duration": null, "created": null}')


@pytest.mark.parametrize("before", [b"", OPEN])
@pytest.mark.parametrize(
    "sent",
    [
        packed(b"?", b""),
        packed(OPENED, b'{"mode": "all", "first": Infinity, "duration": null, "created": null}'),
        packed(SEGMENT, b""),
        packed(SEGMENT, SEGMENT_BODY.pack(math.nan, 1, 0, 1)),
        packed(SEGMENT, SEGMENT_BODY.pack(0, math.inf, 0, 1)),
        packed(SEGMENT, SEGMENT_BODY.pack(0, -1, 0, 1)),
        packed(SEGMENT, SEGMENT_BODY.pack(0, 1, 200, 1)),
        packed(SEGMENT, SEGMENT_BODY.pack(0, 1, 0, 2**40)),
        HEADER.pack(SEGMENT, 2**32 - 1),
        packed(FAILED, b'{"type": "SystemExit", "message": "x"}'),
    ],
)
def test_messages_of_a_process_that_was_taken_over_are_refused(
    before: bytes, sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ingest.segments.cutting.DecoderProcess", type("Sending", (TakenOver,), {"sent": before + sent})
    )
    (tmp_path / "v.mp4").write_bytes(b"footage")
    with pytest.raises(DecodeFailed, match=r"^front: the decoder sent an invalid message"):
        list(cut(tmp_path / "v.mp4", name="front", max_bytes=1000))


@pytest.mark.skipif(sys.platform != "linux", reason="confinement exists on Linux only")
def test_the_process_that_cuts_is_confined(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=20, gop=10)
    started: list[DecoderProcess] = []

    class Started(DecoderProcess):
        def __init__(self, order: Any, *, source: int, memory: int) -> None:
            super().__init__(order, source=source, memory=memory)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.segments.cutting.DecoderProcess", Started)
        segments = cut(tmp_path / "v.mp4", seconds=1)
        next(segments)
    lines = (line.partition(":") for line in Path(f"/proc/{started[0].pid}/status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
    assert len(list(segments)) == 19


def test_a_playlist_is_not_cut(tmp_path: Path) -> None:
    make_video(tmp_path / "secret.ts", seconds=3)
    (tmp_path / "v.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(NotVideo):
        list(cut(tmp_path / "v.mp4"))


def test_one_process_opens_and_cuts_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_video(tmp_path / "v.ts", seconds=30, gop=10, first=1.4, x264=B_FRAMES)
    started: list[str] = []

    class Started(DecoderProcess):
        def __init__(self, order: Any, *, source: int, memory: int) -> None:
            started.append(order["task"])
            super().__init__(order, source=source, memory=memory)

    with Decoding(tmp_path / "v.ts") as decoding:
        expected = decoding.info()
    monkeypatch.setattr("ingest.segments.cutting.DecoderProcess", Started)
    monkeypatch.setattr("ingest.decoding.sandbox.DecoderProcess", Started)
    began = datetime(2024, 3, 1, 8, tzinfo=UTC)
    found = list(segments_of(tmp_path / "v.ts", "gate", start=began, seconds=10))
    assert started == ["cut"]
    assert [at.micros for at, _ in found] == [to_micros(began) + i * 10_000_000 for i in range(3)]
    assert found[0][1].pts == pytest.approx(expected.first, abs=1e-6)
    with Cutting(tmp_path / "v.ts") as cutting:
        info = cutting.info()
    assert (info.first, info.duration, info.created) == (expected.first, expected.duration, expected.created)


@pytest.mark.parametrize("leap", [3.0, 40.0])
def test_a_gap_at_the_start_ends_a_segment_and_one_later_does_too(tmp_path: Path, leap: float) -> None:
    times = [i / 10 for i in range(30)]
    times += [times[-1] + leap + i / 10 for i in range(300)]
    times += [times[-1] + leap + i / 10 for i in range(30)]
    make_video(tmp_path / "v.mkv", times=times, gop=10)
    found = list(cut(tmp_path / "v.mkv", seconds=20))
    lengths = [segment.duration for segment in found]
    if leap > 10:  # longer than `Timeline.gap`: no segment reaches across it
        assert [round(length) for length in lengths] == [3, 20, 10, 3]
    assert sum(len(shown(segment)) for segment in found) == len(times)
