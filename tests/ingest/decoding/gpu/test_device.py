"""Decoding on a GPU: what happens where there is none or it refuses a stream, and the layers that let it through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import structlog
from numpy.typing import NDArray

from index.errors import GpuUnavailable, SourceUnsupported
from ingest.decoding import decoder, sandbox
from ingest.decoding.decoder import open_video
from ingest.decoding.gpu import device
from ingest.decoding.limits import DecodeLimits, Decoder
from ingest.decoding.sandbox import Decoding, VideoInfo
from pipeline.settings import load_settings
from tests.support.footage import make_video

ROOT = Path(__file__).parents[4]

Decoded = tuple[VideoInfo, list[tuple[float, NDArray[np.uint8]]]]


def decode(path: Path, where: Decoder) -> Decoded:
    with Decoding(path, limits=DecodeLimits(decoder=where)) as decoding:
        return decoding.info(), list(decoding)


def same_frames(one: Decoded, other: Decoded) -> bool:
    pairs = zip(one[1], other[1], strict=True)
    return all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in pairs)


@pytest.fixture
def no_gpu() -> None:
    if device.load_libraries() == "":
        pytest.skip("this machine has a GPU that decodes; test_gpu.py tests it")


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_frames_are_those_of_software_and_one_warning_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.mp4"
    make_video(path, seconds=4)
    monkeypatch.setattr(sandbox, "_warned", set())
    with structlog.testing.capture_logs() as logs:
        fallen, again = decode(path, "gpu"), decode(path, "gpu")
    software = decode(path, "software")
    assert len(software[1]) == 4
    assert same_frames(fallen, software)
    assert same_frames(again, software)
    assert (fallen[0].gpu, software[0].gpu, software[0].gpu_problem) == (False, False, "")
    assert "driver" in fallen[0].gpu_problem
    assert [(line["log_level"], line["reason"]) for line in logs] == [("warning", fallen[0].gpu_problem)]
    assert "\n" not in logs[0]["reason"]


@pytest.mark.usefixtures("no_gpu")
def test_gpu_only_is_an_error_without_a_gpu(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=1)
    with pytest.raises(GpuUnavailable, match=r'v\.mp4: no GPU decodes video here .*decoder = "gpu"'):
        decode(tmp_path / "v.mp4", "gpu-only")


@pytest.mark.usefixtures("no_gpu")
def test_a_decoder_without_its_gpu_is_confined_as_one_of_software(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=1)
    limits = DecodeLimits(decoder="gpu", require_sandbox=True)
    with Decoding(tmp_path / "v.mp4", limits=limits) as decoding:
        assert len(list(decoding)) == 1


@pytest.mark.usefixtures("no_gpu")
def test_starting_a_gpu_that_is_not_there_says_so() -> None:
    assert device.start()


@pytest.mark.skipif(sys.platform != "linux", reason="confinement exists on Linux only")
def test_the_devices_are_known_to_a_confined_process() -> None:
    """It cannot list `/dev`, so a list that was made anew would be empty there."""
    program = (
        "import glob\nfrom ingest.decoding.gpu import device\n"
        "glob_of, device.glob = device.glob, lambda pattern: ['/dev/nvidia0']\n"
        "device.devices(); device.glob = glob_of\n"
        "from ingest.decoding.confinement import isolate\nisolate()\nprint(glob.glob('/dev/*'), device.devices())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "[] ['/dev/nvidia0']"


def software_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that refuses each stream: what PyAV gives then is a context that decodes in software."""
    monkeypatch.setattr(decoder, "hardware", lambda: None)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264"), ("mpeg4", "mpeg4"), ("ffv1", "ffv1")])
def test_a_stream_that_the_gpu_refuses_is_decoded_in_software(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, name: str
) -> None:
    software_stands_in(monkeypatch)
    path = tmp_path / "v.mkv"
    make_video(path, seconds=3, codec=codec)
    with path.open("rb") as file:
        video = open_video(file.fileno(), DecodeLimits(decoder="gpu"), gpu=True)
        frames = [(frame.pts, bytes(frame.data)) for frame in decoder.decode(video, DecodeLimits(decoder="gpu"))]
    with path.open("rb") as file:
        plain = open_video(file.fileno(), DecodeLimits())
        expected = [(frame.pts, bytes(frame.data)) for frame in decoder.decode(plain, DecodeLimits())]
    assert (video.gpu, video.gpu_problem) == (False, f"the GPU has no decoder for {name}")
    assert (plain.gpu, plain.gpu_problem) == (False, "")
    assert frames == expected
    assert len(frames) == 3


def test_a_stream_that_the_gpu_refuses_is_an_error_with_gpu_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    software_stands_in(monkeypatch)
    make_video(tmp_path / "v.mp4", seconds=1)
    with (
        (tmp_path / "v.mp4").open("rb") as file,
        pytest.raises(SourceUnsupported, match="the GPU has no decoder for h264; set decoder"),
    ):
        open_video(file.fileno(), DecodeLimits(decoder="gpu-only"), gpu=True)


class Accelerated:
    """An `av.CodecContext` of FFmpeg that says it has a device, as one does whose device then refuses the stream."""

    is_hwaccel = True

    def __init__(self, context: av.VideoCodecContext) -> None:
        self.name, self.decode, self.flush_buffers = context.name, context.decode, context.flush_buffers


def test_a_device_that_refuses_after_opening_is_noticed_by_the_first_frame(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=2)
    with av.open(str(tmp_path / "v.mp4")) as container:
        context = container.streams.video[0].codec_context
        packets = [packet for packet in container.demux(video=0) if packet.size]
        problem = device.refusal(Accelerated(context), packets)
        assert problem == "the GPU cannot decode this h264 (yuv420p, 64 × 48)"
        assert "no frame came out" in device.refusal(Accelerated(context), [])
        # The decoder was reset: the same packets give every frame.
        assert sum(len(context.decode(packet)) for packet in [*packets, None]) == 20


def test_the_setting_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().decode_limits.decoder == "software"
    monkeypatch.setenv("SIGHTLINE_DECODER", "gpu-only")
    limits = load_settings().decode_limits
    assert (limits.decoder, limits.in_software().decoder) == ("gpu-only", "software")


def attempt(code: str) -> str:
    """What `code` prints in a process that is confined but for `/dev/zero`; `refused` where the system refuses it."""
    program = (
        "import fcntl, os, socket\n"
        "from ingest.decoding.confinement import filter_system_calls, isolate\n"
        "isolate(devices=['/dev/zero']); filter_system_calls(devices=True)\n"
        f"try:\n    {code}\nexcept PermissionError:\n    print('refused')\nelse:\n    print('reached')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={"PYTHONPATH": str(ROOT)},
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="confinement exists on Linux only")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.close(os.open('/dev/zero', os.O_RDWR))", "reached"),
        ("os.open('/dev/full', os.O_RDWR)", "refused"),
        ("open('/etc/passwd')", "refused"),
        ("open('/proc/1/cmdline')", "refused"),
        ("os.unlink('/dev/zero')", "refused"),
        ("socket.socket()", "refused"),
    ],
)
def test_a_device_lets_no_more_through_than_itself(code: str, expected: str) -> None:
    assert attempt(code) == expected
