"""Footage behind real servers on loopback: HTTP, and S3's own protocol."""

from __future__ import annotations

import functools
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from index.errors import SourceNotFound
from ingest.decoding.sandbox import read_frames
from ingest.sources import files as ingest_sources
from ingest.sources.files import expand, fetched
from tests.support.footage import make_video

pytestmark = pytest.mark.system
CHANGED = datetime(2024, 3, 1, 8, 0, tzinfo=UTC)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder. Answers for ranges; `/cut/` breaks off in the middle, `/mute/` never answers."""

    asked: list[tuple[str, str]]
    released: threading.Event

    def _send(self, *, body: bool) -> None:
        place = Path(self.directory) / Path(self.path.partition("?")[0]).name
        self.asked.append((self.command, self.path))
        if self.path.startswith("/mute/"):
            self.released.wait(60)
            self.close_connection = True
            return
        if not place.exists():
            self.send_error(404)
            return
        data = place.read_bytes()
        first, last, wanted = 0, len(data) - 1, self.headers.get("Range")
        if wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(last, int(end or last))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", formatdate(CHANGED.timestamp(), usegmt=True))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if body:
            part = data[first : last + 1]
            self.wfile.write(part[: len(part) // 2] if self.path.startswith("/cut/") else part)
        self.close_connection = True

    def do_GET(self) -> None:
        self._send(body=True)

    def do_HEAD(self) -> None:
        self._send(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _serve(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    make_video(tmp_path / "served" / "front.mp4", seconds=4)
    return tmp_path / "served" / "front.mp4"


@pytest.fixture
def site(film: Path) -> Iterator[str]:
    released = threading.Event()
    made = type("Handler", (_Handler,), {"asked": [], "released": released})
    yield from _serve(functools.partial(made, directory=str(film.parent)))
    released.set()


def test_http(site: str, film: Path) -> None:
    frames = list(read_frames(f"{site}/front.mp4?token=abc"))
    assert [f.pts_seconds for f in frames] == pytest.approx([0, 1, 2, 3], abs=1e-3)
    # No clock in name or container: it is when the server says the file was changed, not when it was fetched.
    assert frames[0].captured_at == CHANGED - timedelta(seconds=4)  # the time of the change is the end of the footage


def test_a_server_that_knows_no_ranges(film: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with film.open("ab") as file:  # more than one of fsspec's blocks
        file.write(b"\0\0\0\x08free" * 1_500_000)
    serving = _serve(functools.partial(Quiet, directory=str(film.parent)))
    site = next(serving)
    assert len(list(read_frames(f"{site}/front.mp4"))) == 4
    with fetched(f"{site}/front.mp4") as path:
        assert path.read_bytes() == film.read_bytes()
    assert not path.exists()
    next(serving, None)


def test_http_that_breaks_off(site: str, film: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"cannot be fetched .*not completed") as caught:
        list(read_frames(f"{site}/cut/front.mp4?token=hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_http_that_has_no_such_file(site: str) -> None:
    with pytest.raises(SourceNotFound, match="no such file") as caught:
        list(read_frames(site.replace("http://", "http://user:hunter2@") + "/absent.mp4"))
    assert "hunter2" not in str(caught.value)


def test_http_that_never_answers(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_sources, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(SourceNotFound, match=r"cannot be fetched|no such file"):
        list(read_frames(f"{site}/mute/front.mp4"))


def test_http_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(SourceNotFound, match=r"cannot be fetched|no such file"):
            list(read_frames(f"http://127.0.0.1:{taken.getsockname()[1]}/front.mp4"))


@pytest.fixture
def bucket(film: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with the film in it; where it is and who may read is configuration of the environment."""
    import boto3
    from fsspec.config import conf
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (("ACCESS_KEY_ID", "tester"), ("SECRET_ACCESS_KEY", "hunter2"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setitem(conf, "s3", {"endpoint_url": endpoint})
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="archive")
    for key in ("2024/front_2024-03-01T08-00-00Z.mp4", "2024/yard.mp4", "2024/notes.txt"):
        client.upload_file(str(film), "archive", key)
    S3FileSystem.clear_instance_cache()
    yield "s3://archive"
    S3FileSystem.clear_instance_cache()
    server.stop()


def test_an_object_store(bucket: str, film: Path) -> None:
    frames = list(read_frames(f"{bucket}/2024/front_2024-03-01T08-00-00Z.mp4"))
    assert [f.captured_at.isoformat() for f in frames] == [f"2024-03-01T08:00:0{k}+00:00" for k in range(4)]
    with fetched(f"{bucket}/2024/yard.mp4") as path:
        assert path.read_bytes() == film.read_bytes()
        uploaded = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    with fetched(f"{bucket}/2024/yard.mp4") as path:  # the clock of last resort is the object's, whenever it is read
        assert datetime.fromtimestamp(path.stat().st_mtime, UTC) == uploaded


def test_folders_and_patterns_of_an_object_store(bucket: str) -> None:
    both = [f"{bucket}/2024/front_2024-03-01T08-00-00Z.mp4", f"{bucket}/2024/yard.mp4"]
    assert expand([f"{bucket}/2024"]).files == both
    assert expand([f"{bucket}/*/ya*.mp4"]).files == both[1:]


def test_what_is_not_in_an_object_store(bucket: str) -> None:
    with pytest.raises(SourceNotFound, match="no such file") as caught:
        list(read_frames(f"{bucket}/2024/absent.mp4"))
    assert "hunter2" not in str(caught.value)
    assert [type(error) for _, error in expand([f"{bucket}/none/*.mp4"]).problems] == [SourceNotFound]
