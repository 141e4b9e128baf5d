"""Cameras as an operator has them: watched and recorded through real servers, listed, clipped, added and removed."""

from __future__ import annotations

import functools
import http.server
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from index.records import rfc3339
from tests.support.kafka_server import free_ports
from tests.support.live import (
    RtspServer,
    convert,
    emitted,
    ffmpeg,
    footage,
    kept,
    live,
    long_footage,
    rtsp,
    seconds_kept,
    seconds_stored,
)
from tests.support.processes import Process

__all__ = ["footage", "long_footage", "rtsp"]
pytestmark = [pytest.mark.system, pytest.mark.timeout(1500)]


def test_watch_stores_every_second_of_every_camera(
    tmp_path: Path, rtsp: RtspServer, long_footage: Path, profile: str, sightline: Process
) -> None:
    """RTSP by TCP and by UDP, and a file in a loop, in one process; and a camera that does not answer."""
    rtsp.order("mount", "/one", "h264", long_footage)
    rtsp.order("mount", "/two", "h264", long_footage)
    (closed, metrics) = free_ports(2)
    listed = tmp_path / "cameras.toml"
    listed.write_text(
        f'[[cameras]]\nstream = "one"\nurl = "{rtsp.url("one")}"\n'
        f'[[cameras]]\nstream = "two"\nurl = "{rtsp.url("two")}"\ntransport = "udp"\n'
        f'[[cameras]]\nstream = "loop"\nurl = "loop:{long_footage}"\n'
        f'[[cameras]]\nstream = "gone"\nurl = "rtsp://user:hunter2@127.0.0.1:{closed}/x"\n'
    )
    arguments = ("watch", "--cameras", listed, "--store", tmp_path / "store", "--profile", profile)
    with live(tmp_path, *arguments, "--seconds", 3, "--metrics-port", metrics, "--json") as running:
        for stream in ("one", "two", "loop"):
            running.until_segments(stream, 3)
        failed = running.until_state("gone", "failed")
        assert "refused" in str(failed.why)
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=120).read().decode()
        shown = sightline("cameras", "--folder", running.folder)
        said = emitted(sightline("cameras", "--folder", running.folder, "--json").stdout)
        report = emitted(running.stop())
        everything = running.log.read_text() + text + shown.stdout + str(said)
    assert "hunter2" not in everything
    assert 'sightline_camera_state{state="live",stream="one"} 1.0' in text
    assert 'sightline_camera_state{state="live",stream="gone"} 0.0' in text
    for name in ("frames_total", "dropped_frames_total", "late_frames_total", "reconnects_total"):
        assert f'sightline_camera_{name}{{stream="two"}}' in text
    for name in ("newest_timestamp_seconds", "clock_drift_seconds"):
        assert f'sightline_camera_{name}{{stream="two"}}' in text
    assert said["running"] is True
    assert {camera["stream"]: camera["state"] for camera in said["cameras"]}["loop"] == "live"
    assert "gone" in shown.stdout
    stored = {stream: seconds_stored(tmp_path / "store", stream) for stream in ("one", "two", "loop")}
    for seconds in stored.values():
        assert len(seconds) >= 9
        assert [b - a for a, b in pairwise(seconds)] == [1] * (len(seconds) - 1)
    assert report["frames"] == sum(map(len, stored.values()))
    assert sightline("verify", "--store", tmp_path / "store").returncode == 0
    assert not list(running.folder.rglob("*.mp4"))


def test_a_clip_is_exact_to_a_group_of_pictures(tmp_path: Path, long_footage: Path, sightline: Process) -> None:
    """A recording of a file without an end; two seconds a group. The clip plays, and its time is the camera's."""
    with live(tmp_path, "record", f"gate=loop:{long_footage}", "--to", tmp_path / "tape", "--seconds", 3) as running:
        running.until_segments("gate", 3)
        running.stop()
    tape = kept(tmp_path / "tape", "gate")
    for a, b in pairwise(tape):
        assert abs(b.start - a.end) < 1000
    start, end = tape[0].start + 3_000_000, tape[0].start + 8_500_000
    out = tmp_path / "out.mp4"
    arguments = ("--stream", "gate", "--from", rfc3339(start), "--to", rfc3339(end), "--recording", tmp_path / "tape")
    report = emitted(sightline("clip", *arguments, out, "--json").stdout)
    with av.open(str(out)) as file:
        times = [frame.time for frame in file.decode(video=0)]
    assert report["frames"] == len(times)
    assert report["start"] == rfc3339(tape[0].start + 2_000_000)
    assert times[0] == 0
    assert all(abs(b - a - 0.1) < 0.002 for a, b in pairwise(times))
    assert abs(times[-1] - 6.4) < 0.11  # from second 2 to just before 8.5
    ingested = sightline("streams", "--store", tmp_path / "none")
    assert ingested.returncode == 1
    late = sightline("clip", "--stream", "gate", "--from", "2001-01-01T00:00:00Z", "--to", "2001-01-01T00:01:00Z",
                     "--recording", tmp_path / "tape", tmp_path / "late.mp4")  # fmt: skip
    assert late.returncode == 1
    assert "nothing is recorded" in late.stderr
    before = out.read_bytes()
    again = sightline("clip", *arguments, out)
    assert again.returncode == 2
    assert "pass --force" in again.stderr
    assert out.read_bytes() == before


def test_editing_the_list_adds_and_removes_cameras(tmp_path: Path, long_footage: Path) -> None:
    """One stays, one goes, one comes; an invalid list changes nothing."""
    listed = tmp_path / "cameras.toml"

    def write(*streams: str) -> None:
        part = tmp_path / "part"
        part.write_text("".join(f'[[cameras]]\nstream = "{s}"\nurl = "loop:{long_footage}"\n' for s in streams))
        part.replace(listed)

    write("stays", "goes")
    with live(tmp_path, "record", "--cameras", listed, "--to", tmp_path / "tape", "--seconds", 2) as running:
        running.until_state("stays", "live")
        running.until_state("goes", "live")
        write("stays", "comes")
        running.until_state("comes", "live")
        running.until("goes is gone", lambda: running.camera("goes") is None)
        listed.write_text("[[cameras]]\nstream = 7\n")
        running.until("the invalid list was read", lambda: "is invalid" in running.log.read_text())
        before = running.camera("stays")
        assert before is not None
        running.until_segments("stays", before.segments + 2)
        after = running.until_state("stays", "live")
        assert after.reconnects == 0
        running.until_segments("comes", 1)
        running.stop()
    stays = kept(tmp_path / "tape", "stays")
    assert all(abs(b.start - a.end) < 1000 for a, b in pairwise(stays))
    assert kept(tmp_path / "tape", "goes")
    assert kept(tmp_path / "tape", "comes")


@contextmanager
def _hls(footage: Path, folder: Path) -> Iterator[str]:
    folder.mkdir()
    encoder = ffmpeg(
        *("-re", "-i", footage, "-c", "copy", "-f", "hls", "-hls_time", 2, "-hls_flags", "delete_segments"),
        folder / "a.m3u8",
    )
    handler: Any = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a.m3u8"
    finally:
        server.shutdown()
        server.server_close()
        encoder.kill()
        encoder.wait()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _sent(footage: Path, folder: Path, kind: str) -> Iterator[str]:
    """What ffmpeg sends by UDP, or serves as RTMP."""
    (port,) = free_ports(1)
    url = {"udp": f"udp://127.0.0.1:{port}", "rtmp": f"rtmp://127.0.0.1:{port}/live/cam"}[kind]
    how = ("-f", "mpegts", f"{url}?pkt_size=1316") if kind == "udp" else ("-f", "flv", "-listen", 1, url)
    encoder = ffmpeg("-re", "-i", footage, "-c", "copy", *how)
    try:
        yield url
    finally:
        encoder.kill()
        encoder.wait()


@pytest.mark.parametrize("kind", ["hls", "rtmp", "udp"])
def test_other_sources(kind: str, tmp_path: Path, long_footage: Path) -> None:
    """Recorded without a gap, and what is recorded plays."""
    source = _hls(long_footage, tmp_path / "web") if kind == "hls" else _sent(long_footage, tmp_path, kind)
    with (
        source as url,
        live(tmp_path, "record", f"cam={url}", "--to", tmp_path / "tape", "--seconds", 2, "--json") as running,
    ):
        running.until_segments("cam", 3)
        running.stop()
    tape = kept(tmp_path / "tape", "cam")
    held = seconds_kept(tmp_path / "tape", tape)
    assert held == list(range(held[0], held[-1] + 1))
    for segment in tape[:-1]:  # the last one was closed between frames that are shown in another order
        with av.open(str(tmp_path / "tape" / segment.name)) as file:
            assert sum(1 for _ in file.decode(video=0)) == round(segment.duration * 10) == 20


def test_a_protocol_that_this_build_lacks_is_an_error(tmp_path: Path) -> None:
    with live(tmp_path, "record", "cam=srt://127.0.0.1:9", "--to", tmp_path / "tape") as running:
        failed = running.until_state("cam", "failed")
        running.stop()
    if "cannot read srt" not in str(failed.why):
        assert "cannot be opened" in str(failed.why)  # this build has SRT, and no server answers


def test_invalid_arguments_are_errors_at_once(tmp_path: Path, sightline: Process) -> None:
    for arguments, said in (
        (("record", "rtsp://u:hunter2@h/x", "a=ftp://u:hunter2@h/", "--to", "t"), "not a live source"),
        (("record", "rtsp://h/x", "rtsp://g/x", "--to", "t"), "NAME=URL"),
        (("record", "rtsp://h/x"), "--to"),
        (("cameras", "--folder", "nowhere"), "no camera"),
    ):
        done = sightline(*arguments)
        assert done.returncode in (1, 2), arguments
        assert said in done.stderr, (arguments, done.stderr)
        assert "hunter2" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_hevc_is_recorded_too(tmp_path: Path, rtsp: RtspServer, footage: Path) -> None:
    more = ("-preset", "ultrafast", "-tag:v", "hvc1", "-x265-params", "keyint=20:open-gop=0:log-level=none")
    rtsp.order("mount", "/hevc", "hevc", convert(footage, tmp_path / "hevc.mp4", "-c:v", "libx265", *more))
    with live(tmp_path, "record", rtsp.url("hevc"), "--to", tmp_path / "tape", "--seconds", 2) as running:
        running.until_segments("hevc", 2)
        running.stop()
    with av.open(str(tmp_path / "tape" / kept(tmp_path / "tape", "hevc")[0].name)) as file:
        assert file.streams.video[0].codec_context.name == "hevc"
        assert sum(1 for _ in file.decode(video=0)) == 20
