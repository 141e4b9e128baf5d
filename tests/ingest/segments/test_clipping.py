"""Clips are written by a confined process: of recordings, and of one ordinary file."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import av
import pytest

from index.errors import DecodeFailed, EmptyWindow, NotVideo, SandboxUnavailable, UsageError
from ingest.decoding.confinement import probe
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.sandbox import Decoding, open_regular
from ingest.live.clip import clip
from ingest.live.recorder import Recorder, folder_url
from ingest.live.spool import SpooledSegment
from ingest.segments.clipping import ClipSpan, ClipWriter, clip_file
from ingest.segments.names import parse_name, segment_name
from tests.support.footage import make_video

BEGAN = 1_709_280_000_000_000  # 2024-03-01T08:00:00Z
SECOND = 1_000_000


def cut(path: Path, out: Path, start: float, end: float, **more: Any) -> ClipSpan:
    """Clip the file between two times in seconds from its first frame."""
    source = open_regular(path)
    try:
        with out.open("wb+") as file:
            return clip_file(
                source,
                file.fileno(),
                began=BEGAN,
                start=BEGAN + round(start * SECOND),
                end=BEGAN + round(end * SECOND),
                name=path.name,
                **more,
            )
    finally:
        os.close(source)


def grey(path: Path) -> list[tuple[float, int]]:
    """Time and mean of each frame of a clip; an error of the decoder is raised."""
    with av.open(str(path)) as file:
        file.streams.video[0].codec_context.options = {"err_detect": "explode"}
        return [(frame.time, round(frame.to_ndarray(format="gray").mean())) for frame in file.decode(video=0)]


@pytest.mark.parametrize(
    ("suffix", "kind", "x264"),
    [
        ("mp4", "mp4", ""),
        ("mkv", "matroska", ""),
        ("mp4", "mp4", ":bframes=3"),
        ("ts", "mp4", ":bframes=3"),
        ("mkv", "mp4", ":bframes=3"),
    ],
)
def test_a_clip_of_a_file_is_the_frames_from_the_intra_frame_before(
    tmp_path: Path, suffix: str, kind: Any, x264: str
) -> None:
    film = tmp_path / f"film.{suffix}"
    make_video(film, seconds=40, gop=20, x264=x264, first=1.4 if suffix == "ts" else 0.0)
    span = cut(film, tmp_path / f"clip.{kind}", 21.05, 27.0, kind=kind)
    whole, frames = grey(film), grey(tmp_path / f"clip.{kind}")
    assert span.first == BEGAN + 20 * SECOND  # intra frames are every 2 s
    assert 70 <= span.frames == len(frames) <= 73  # B-frames before the end refer to frames behind it
    assert span.end == pytest.approx(BEGAN + 27 * SECOND, abs=0.3 * SECOND)
    assert [value for _, value in frames[:70]] == [value for _, value in whole[200:270]]
    assert [at for at, _ in frames[:70]] == pytest.approx([i / 10 for i in range(70)], abs=0.002)
    for at, value in frames[70:]:
        assert 7.0 <= round(at, 2) <= 7.4
        assert value == whole[200 + round(at * 10)][1]
    with av.open(str(tmp_path / f"clip.{kind}")) as file:
        assert file.metadata[next(k for k in file.metadata if k.lower() == "creation_time")].startswith(
            "2024-03-01T08:00:20"
        )


def test_a_clip_goes_into_a_pipe(tmp_path: Path) -> None:
    make_video(tmp_path / "film.mp4", seconds=60, gop=10, size=(320, 240))
    for kind in ("mp4", "matroska"):
        reader, writer = os.pipe()
        received = bytearray()

        def read(descriptor: int, into: bytearray) -> None:
            while data := os.read(descriptor, 4096):
                into += data

        thread = threading.Thread(target=read, args=(reader, received))
        thread.start()
        source = open_regular(tmp_path / "film.mp4")
        span = clip_file(
            source,
            writer,
            began=BEGAN,
            start=BEGAN + 5 * SECOND,
            end=BEGAN + 55 * SECOND,
            kind=kind,
            name="film",
        )
        os.close(source)
        os.close(writer)
        thread.join()
        os.close(reader)
        (tmp_path / "clip").write_bytes(received)
        assert len(grey(tmp_path / "clip")) == span.frames == 500


def test_a_seek_leads_to_the_clip_without_reading_what_is_before(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    make_video(film, seconds=240, gop=20, size=(64, 48))
    data = bytearray(film.read_bytes())
    start, half = data.index(b"mdat") + 8, 0
    with av.open(str(film)) as file:
        half = next(p.pos for p in file.demux(video=0) if p.is_keyframe and p.pts * p.time_base >= 120)
    (tmp_path / "whole.mp4").write_bytes(data)
    before = cut(tmp_path / "whole.mp4", tmp_path / "one.mp4", 130, 140)
    # The file's head stays, from which the probe reads; what follows it is lost, and nothing needs it.
    lost = start + (half - start) // 4
    data[lost:half] = bytes(half - lost)
    film.write_bytes(data)
    assert cut(film, tmp_path / "two.mp4", 130, 140) == before
    assert grey(tmp_path / "two.mp4") == grey(tmp_path / "one.mp4")


def test_times_are_those_that_the_store_has(tmp_path: Path) -> None:
    film = tmp_path / "film.ts"
    make_video(film, seconds=20, gop=10, first=1.4)
    with Decoding(film) as decoding:
        info = decoding.info()
        stored = [pts - info.first for pts, _ in decoding]
    span = cut(film, tmp_path / "clip.mp4", stored[7], stored[12])
    assert (span.first, span.frames) == (BEGAN + round(stored[7] * SECOND), 50)


def test_what_has_no_frames_is_said_and_bad_files_are_typed(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    make_video(film, seconds=4, gop=10)
    with pytest.raises(EmptyWindow, match=r"film\.mp4: no frame between 2024-03-01T08:01:00Z"):
        cut(film, tmp_path / "clip.mp4", 60, 70)
    with pytest.raises(EmptyWindow):
        cut(film, tmp_path / "clip.mp4", -70, -60)
    with pytest.raises(UsageError, match="is not before"):
        cut(film, tmp_path / "clip.mp4", 2, 2)
    (tmp_path / "text.mp4").write_bytes(b"no video" * 1000)
    with pytest.raises(NotVideo, match=r"^text\.mp4: not a video file"):
        cut(tmp_path / "text.mp4", tmp_path / "clip.mp4", 0, 1)
    with pytest.raises(DecodeFailed, match="exceed the limit of 100 pixels"):
        cut(film, tmp_path / "clip.mp4", 0, 1, limits=DecodeLimits(pixels=100))


def test_a_clip_cannot_outgrow_its_bound(tmp_path: Path) -> None:
    make_video(tmp_path / "film.mp4", seconds=30, gop=10, size=(320, 240))
    source = open_regular(tmp_path / "film.mp4")
    with (
        (tmp_path / "clip.mkv").open("wb+") as out,
        ClipWriter(
            source,
            out.fileno(),
            kind="matroska",
            start=BEGAN,
            end=BEGAN + 30 * SECOND,
            name="film",
            output_bytes=40_000,
        ) as writer,
        pytest.raises(DecodeFailed, match=r"^film: "),
    ):
        writer.add(BEGAN)
    os.close(source)
    assert (tmp_path / "clip.mkv").stat().st_size <= 40_000


def test_the_parent_parses_no_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = []
    for i in range(2):
        name = parse_name(segment_name("gate", BEGAN + i * 4 * SECOND, 4.0, "video/mp4"))
        assert name is not None
        path = tmp_path / name.name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_video(path, seconds=4, gop=10)
        segments.append(SpooledSegment(name, path, path.stat().st_size, 40))
    tape = folder_url(str(tmp_path / "tape"))
    Recorder(tape).write(segments)

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("media was parsed in this process")

    monkeypatch.setattr(av, "open", opened)
    report = clip(tape, "gate", BEGAN + SECOND, BEGAN + 6 * SECOND, tmp_path / "clip.mp4")
    assert (report.segments, report.frames, report.missing_seconds) == (2, 50, 0.0)
    if probe().sufficient:
        confined = DecodeLimits(require_sandbox=True)
        assert clip(tape, "gate", BEGAN, BEGAN + 6 * SECOND, tmp_path / "clip.mkv", limits=confined).frames == 60
    else:
        with pytest.raises(SandboxUnavailable):
            clip(tape, "gate", BEGAN, BEGAN + SECOND, tmp_path / "x.mkv", limits=DecodeLimits(require_sandbox=True))


def test_a_hostile_segment_of_a_recording_is_a_typed_error_and_leaves_no_file(tmp_path: Path) -> None:
    tape = tmp_path / "tape"
    bad = tape / segment_name("gate", BEGAN, 4.0, "video/mp4")
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile:///etc/passwd\n")
    with pytest.raises(NotVideo, match=r"^gate: not a video file"):
        clip(folder_url(str(tape)), "gate", BEGAN, BEGAN + SECOND, tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["tape"]
