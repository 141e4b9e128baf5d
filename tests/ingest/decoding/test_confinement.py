"""Attempts to break out of the decoder's confinement, layer by layer, each in a process that has confined itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from index.errors import DecodeFailed, NotVideo, SandboxUnavailable, SourceError
from ingest.decoding.confinement import LAYERS, Posture, probe, require
from ingest.decoding.sandbox import Decoding
from tests.support.footage import make_video

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement exists on Linux only")

_LAYERS = {
    "all": "confine()",
    "landlock alone": "_applied({'landlock': lambda: _apply_landlock((), (), None)})",
    "seccomp alone": "_prctl(38, 1); filter_system_calls()",
    "namespaces alone": "_leave_namespaces()",
}


def attempt(code: str, *, layer: str = "all", arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process that was confined by one layer or by all; it prints REACHED where it breaks out."""
    program = (
        "import ctypes, os, signal, socket, sys, mmap\n"
        "from ingest.decoding.confinement import *\n"
        "from ingest.decoding.confinement import _applied, _apply_landlock, _prctl, _leave_namespaces\n"
        f"{_LAYERS[layer]}\n"
        f"try:\n    {code}\nexcept OSError as error:\n    print('refused', error.errno)\nelse:\n    print('REACHED')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_every_layer_holds_here() -> None:
    posture = probe()
    assert posture.missing == [], str(posture)
    require(posture)


@pytest.mark.parametrize("layer", ["all", "landlock alone", "seccomp alone"])
@pytest.mark.parametrize(
    "code",
    ["open('/etc/passwd')", "open(sys.argv[1], 'w')", "os.listdir('/')", "open(f'/proc/{os.getppid()}/mem', 'rb')"],
)
def test_no_file_opens(layer: str, code: str, tmp_path: Path) -> None:
    done = attempt(code, layer=layer, arguments=(str(tmp_path / "new"),))
    assert done.stdout.startswith("refused"), done
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layer", ["all", "landlock alone", "seccomp alone", "namespaces alone"])
def test_no_connection_even_to_loopback(layer: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        code = "socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5)"
        done = attempt(code, layer=layer, arguments=(str(server.getsockname()[1]),))
        assert done.stdout.startswith("refused"), done
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_socket_of_any_family() -> None:
    for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"):
        assert attempt(f"socket.socket(socket.{family}, socket.SOCK_RAW)").stdout.startswith("refused")


@pytest.mark.parametrize(
    "code",
    [
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)",
        "ctypes.CDLL(None).unshare(0x10000000)",
        "os.posix_spawn('/bin/true', ['true'], {})",
    ],
)
def test_exec_fork_and_ptrace_end_the_process(code: str) -> None:
    done = attempt(code)
    assert "REACHED" not in done.stdout
    assert done.returncode == -signal.SIGSYS


@pytest.mark.parametrize("layer", ["all", "landlock alone", "seccomp alone"])
def test_no_signal_reaches_another_process(layer: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            done = attempt("os.kill(int(sys.argv[1]), 9)", layer=layer, arguments=(str(other.pid),))
            assert other.poll() is None
            if done.stdout:
                assert done.stdout.startswith("refused"), done
        finally:
            other.kill()


def test_no_executable_memory() -> None:
    assert attempt("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)").stdout.startswith("refused")


def test_no_capability_is_left() -> None:
    code = "print([l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm', 'CapBnd', 'NoNew'))])"
    program = f"from ingest.decoding.confinement import *\nisolate(readable=['/proc'])\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.count("0000000000000000") == 3, done.stdout
    assert "NoNewPrivs:\\t1" in done.stdout


def test_what_was_named_stays_open(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "a").write_text("kept")
    program = (
        "import sys\nfrom pathlib import Path\nfrom ingest.decoding.confinement import confine\n"
        "i, o = Path(sys.argv[1]), Path(sys.argv[2])\nprint(confine(readable=[i], writable=[o]).missing)\n"
        "(o / 'b').write_text((i / 'a').read_text())\n"
        "try:\n    (i / 'a').write_text('changed')\nexcept OSError:\n    print('read only')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\nread only\n"
    assert (tmp_path / "out" / "b").read_text() == (tmp_path / "in" / "a").read_text() == "kept"


def test_a_posture_without_a_layer_that_matters_is_refused() -> None:
    whole = dict.fromkeys(LAYERS, "")
    require(Posture({**whole, "namespaces": "not permitted"}))
    with pytest.raises(SandboxUnavailable, match="landlock: not supported"):
        require(Posture({**whole, "landlock": "not supported"}))


# ---- the decoder itself ----------------------------------------------------------------------------------------------


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_running_decoder_is_confined(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=30)
    with Decoding(tmp_path / "v.mp4") as decoding:
        decoding.info()
        held = status(decoding.process.pid)
        assert (held["NoNewPrivs"], held["Seccomp"], int(held["CapEff"], 16)) == ("1", "2", 0)
        assert os.readlink(f"/proc/{decoding.process.pid}/ns/net") != os.readlink("/proc/self/ns/net")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{victim}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{victim}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile {victim}\n"),
        ("list.txt", "ffconcat version 1.0\nfile {victim}\n"),
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("dash.mpd", '<?xml version="1.0"?><MPD><Period><BaseURL>{victim}</BaseURL></Period></MPD>'),
    ],
)
def test_a_playlist_is_no_file(name: str, text: str, tmp_path: Path) -> None:
    make_video(tmp_path / "victim.mp4", seconds=3)
    (tmp_path / name).write_text(text.format(victim=tmp_path / "victim.mp4"))
    with pytest.raises(NotVideo), Decoding(tmp_path / name) as decoding:
        list(decoding)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), tmp_path):
        with pytest.raises(NotVideo, match="not a regular file"):
            Decoding(path)


def test_a_file_whose_name_looks_like_a_protocol_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b.mp4", "12:30:05.mp4", "http:x.mp4", "-i.mp4"):
        make_video(tmp_path / "plain.mp4", seconds=2)
        (tmp_path / "plain.mp4").rename(tmp_path / name)
        with Decoding(name) as decoding:
            assert len(list(decoding)) == 2


# ---- the fork server -------------------------------------------------------------------------------------------------


def parent_of(pid: int) -> int:
    return int(status(pid)["PPid"])


def test_a_fork_server_that_was_killed_is_started_again(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=30)
    with Decoding(tmp_path / "v.mp4") as decoding:
        frames = iter(decoding)
        next(frames)
        os.kill(parent_of(decoding.process.pid), signal.SIGKILL)
        wait_until_dead(decoding.process.pid)
        with pytest.raises(DecodeFailed, match="SIGKILL"):
            list(frames)
    with Decoding(tmp_path / "v.mp4") as decoding:
        assert len(list(decoding)) == 30


def test_children_end_with_the_process_that_asked(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=60)
    program = (
        "import sys, time\nfrom ingest.decoding.sandbox import Decoding\n"
        "decoding = Decoding(sys.argv[1])\ndecoding.info()\nprint(decoding.process.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "v.mp4")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        server = parent_of(child)
        parent.kill()
    wait_until_dead(child)
    wait_until_dead(server)


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 120
    while _alive(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return status(pid)["State"][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_was_forked_has_a_server_of_its_own(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=5)
    program = (
        "import json, os, sys\nfrom ingest.decoding.sandbox import Decoding\n"
        "def frames():\n    with Decoding(sys.argv[1]) as decoding:\n        return len(list(decoding))\n"
        "first = frames()\npid = os.fork()\nif pid == 0:\n    print(json.dumps(frames()), flush=True)\n    os._exit(0)\n"
        "os.waitpid(pid, 0)\nprint(json.dumps([first, frames()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "v.mp4")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [5, [5, 5]]


def test_many_files_at_once_and_no_descriptor_left(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=5)
    (tmp_path / "broken.mp4").write_bytes(b"no video")

    def frames(name: str) -> int:
        try:
            with Decoding(tmp_path / name) as decoding:
                return len(list(decoding))
        except SourceError:
            return -1

    frames("v.mp4")
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(frames, ["v.mp4", "broken.mp4"] * 20))
    assert found == [5, -1] * 20
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_cpu_time_of_a_decoder_is_reported(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=30)
    with Decoding(tmp_path / "v.mp4") as decoding:
        frames = iter(decoding)
        next(frames)  # behind the last frame the process ends, and its entry in /proc with it
        assert decoding.process.cpu_seconds is None
        fields = Path(f"/proc/{decoding.process.pid}/stat").read_text().rpartition(") ")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        assert len(list(frames)) == 29
    assert decoding.process.cpu_seconds is not None
    assert used <= decoding.process.cpu_seconds + 0.02  # ticks of 10 ms
    assert decoding.process.cpu_seconds < used + 20
