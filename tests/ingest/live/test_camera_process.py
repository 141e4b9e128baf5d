"""The process of a camera: what it can still reach once it is confined, and that its sources still play."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ingest.sources.url_policy import UrlPolicy
from tests.support.footage import make_video
from tests.support.processes import ROOT
from tests.support.tools import need

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement exists on Linux only")


@contextmanager
def camera(url: str, folder: Path, **environment: str) -> Iterator[tuple[int, Iterator[dict[str, Any]]]]:
    """The process of a camera: its pid, and its events."""
    order = {
        "url": url,
        "stream": "cam",
        "transport": "tcp",
        "folder": str(folder),
        "newest": None,
        "connect": 10,
        "stall": 10,
        "seconds": 1,
        "max_bytes": 2**26,
        "memory_bytes": 2**31,
        "policy": UrlPolicy.operator().model_dump(mode="json"),
    }
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "ingest.live.camera_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()

        killer = threading.Timer(60, process.kill)  # a camera that says nothing fails the test
        killer.start()
        try:
            yield process.pid, map(json.loads, process.stdout)
        finally:
            killer.cancel()
            process.kill()


def until(events: Iterator[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The next event of a kind; an error before it fails the test."""
    for event in events:
        assert kind == "error" or event["event"] != "error", event
        if event["event"] == kind:
            return event
    raise AssertionError(f"no event {kind}")


def test_a_camera_is_confined_before_it_is_live(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", seconds=3)
    with camera(f"loop:{tmp_path / 'v.mp4'}", tmp_path / "spool") as (pid, events):
        assert until(events, "confined")["missing"] == []
        until(events, "open")
        lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        status = {name: value.strip() for name, _, value in lines}
        assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        segment = until(events, "segment")
        assert (tmp_path / "spool" / segment["name"]).stat().st_size == segment["bytes"]


def attempt(code: str, *arguments: object, folder: Path, ports: list[int]) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process confined as a camera's; it prints REACHED where it succeeds."""
    program = (
        "import os, signal, socket, sys\nfrom pathlib import Path\nfrom ingest.decoding.confinement import confine\n"
        f"socket.getaddrinfo('localhost', 1)\nconfine(readable=['/etc/hosts'], writable=[{str(folder)!r}], "
        f"connect={ports})\n"
        f"try:\n    {code}\nexcept OSError as error:\n    print('refused', error.errno)\nelse:\n    print('REACHED')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_only_its_own_port_is_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as other:
        code = "socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=5)"
        ports = [own.getsockname()[1]]
        for server, expected in ((own, "REACHED"), (other, "refused")):
            done = attempt(code, server.getsockname()[1], folder=tmp_path, ports=ports)
            assert done.stdout.startswith(expected), done
        done = attempt("socket.create_server(('127.0.0.1', 0))", folder=tmp_path, ports=ports)
        assert done.stdout.startswith("refused"), done


def test_no_local_socket_is_reached(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        code = "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        assert attempt(code, tmp_path / "socket", folder=tmp_path, ports=[554]).stdout.startswith("refused")
    for family in ("AF_PACKET", "AF_VSOCK", "AF_ALG"):
        code = f"socket.socket(socket.{family}, socket.SOCK_RAW)"
        assert attempt(code, folder=tmp_path, ports=[554]).stdout.startswith("refused"), family


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("Path(sys.argv[1], 'a').mkdir(); Path(sys.argv[1], 'a', 'b').write_text('x')", "REACHED"),
        ("open('/etc/hosts')", "REACHED"),
        ("socket.getaddrinfo('localhost', 1)", "REACHED"),
        ("open('/etc/passwd')", "refused"),
        ("open('/etc/hosts', 'a')", "refused"),
        ("Path(sys.argv[1], '..', 'beside').mkdir()", "refused"),
        ("Path(sys.argv[1], '..', 'beside').write_text('x')", "refused"),
        ("os.symlink('/etc/passwd', Path(sys.argv[1], 'link'))", "refused"),
        ("open(f'/proc/{os.getppid()}/environ')", "refused"),
    ],
)
def test_only_its_own_files_are_reached(code: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    done = attempt(code, tmp_path / "own", folder=tmp_path / "own", ports=[554])
    assert done.stdout.startswith(expected), done
    assert not (tmp_path / "beside").exists()


@pytest.mark.parametrize(
    "code", ["os.execv('/bin/true', ['true'])", "os.fork()", "os.posix_spawn('/bin/true', ['true'], {})"]
)
def test_no_program_and_no_process_is_started(code: str, tmp_path: Path) -> None:
    done = attempt(code, folder=tmp_path, ports=[554])
    assert "REACHED" not in done.stdout
    assert done.returncode == -signal.SIGSYS


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_hls_over_tls_plays(tmp_path: Path) -> None:
    """Certificates, and all that TLS loads late, are there once the process is confined."""
    need("openssl")
    make_video(tmp_path / "part.ts", seconds=3)
    (tmp_path / "list").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\npart.ts\n#EXT-X-ENDLIST\n")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://localhost:{server.server_port}/list"
    try:
        with camera(url, tmp_path / "spool", SSL_CERT_FILE=str(certificate)) as (_, events):
            assert until(events, "confined")["missing"] == ["namespaces"]
            until(events, "segment")
        with camera(url, tmp_path / "spool") as (_, events):
            assert "certificate" in until(events, "error")["message"]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("plays_first", [False, True])
@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("http://169.254.169.254/x.ts", "169.254.169.254"),
        ("file:///etc/passwd.ts", "which is not an HTTP URL"),
        ("concat:/etc/hosts.ts", "which is not an HTTP URL"),
    ],
)
def test_a_hostile_playlist_is_denied_with_the_reason_and_no_traceback(
    entry: str, why: str, plays_first: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_video(tmp_path / "part.ts", seconds=2)
    entries = (["part.ts"] if plays_first else []) + [entry] * 3
    lines = "".join(f"#EXTINF:2,\n{each}\n" for each in entries)
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-PLAYLIST-TYPE:VOD\n#EXT-X-TARGETDURATION:2\n{lines}#EXT-X-ENDLIST\n"
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with camera(f"http://127.0.0.1:{server.server_port}/list.m3u8", tmp_path / "spool") as (_, events):
            error = until(events, "error")
    finally:
        server.shutdown()
        server.server_close()
    assert (error["type"], why in error["message"]) == ("SourceDenied", True), error
    assert capfd.readouterr().err == ""


def test_an_rtsp_redirect_to_another_port_leads_nowhere(tmp_path: Path) -> None:
    """FFmpeg follows it without asking; the confinement stops it."""
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as other:
        own.settimeout(30)
        other.settimeout(0.5)
        ports = own.getsockname()[1], other.getsockname()[1]

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = own.accept()
                    with connection:
                        connection.recv(4096)
                        connection.sendall(
                            f"RTSP/1.0 302 Found\r\nCSeq: 1\r\nLocation: rtsp://127.0.0.1:{ports[1]}/x\r\n\r\n".encode()
                        )

        threading.Thread(target=answer, daemon=True).start()
        with camera(f"rtsp://127.0.0.1:{ports[0]}/x", tmp_path) as (_, events):
            until(events, "error")
        with pytest.raises(TimeoutError):
            other.accept()
