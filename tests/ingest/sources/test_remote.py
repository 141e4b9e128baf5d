"""Footage behind real servers on loopback: HTTP, and S3's own protocol."""

from __future__ import annotations

import functools
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from index.errors import NotVideo, SourceDenied, SourceError, SourceNotFound
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
            self.released.wait(300)
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
    thread.join(120)


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


def test_a_pattern_lists_the_index_of_a_server(film: Path) -> None:
    for name in ("day 1/a.mp4", "day 1/b.mp4", "day 2/a.mp4", "day 2/a.txt", "other/a.mp4"):
        (film.parent / name).parent.mkdir(exist_ok=True)
        (film.parent / name).write_bytes(film.read_bytes())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    serving = _serve(functools.partial(Quiet, directory=str(film.parent)))
    site = next(serving)
    found = expand([f"{site}/day*/*.mp4"])
    assert found.files == [f"{site}/day%201/a.mp4", f"{site}/day%201/b.mp4", f"{site}/day%202/a.mp4"]
    with fetched(found.files[0]) as path:
        assert path.read_bytes() == film.read_bytes()
    assert [type(error) for _, error in expand([f"{site}/none/*.mp4", f"{site}/*.mov"]).problems] == [
        SourceNotFound
    ] * 2
    next(serving, None)


class _Hostile(http.server.BaseHTTPRequestHandler):
    """Redirects `/to?URL` there; other paths are an HLS playlist of `secret`, a folder's index that names it, or it."""

    secret: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path, _, query = self.path.partition("?")
        port = self.server.server_port  # type: ignore[attr-defined]
        body = {
            "/list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{self.secret}\n#EXT-X-ENDLIST\n",
            "/index/": f'<a href="http://127.0.0.2:{port}/index/x.mp4">x</a> <a href="../y.mp4">y</a> '
            f'<a href="file://{self.secret}">z</a> <a href="w.mp4">w</a>',
        }.get(path, "")
        self.send_response(302 if path == "/to" else 200)
        if path == "/to":
            self.send_header("Location", query)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hostile(film: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    serving = _serve(type("Handler", (_Hostile,), {"secret": film, "asked": asked}))
    yield next(serving), asked
    next(serving, None)


def test_a_redirect_of_a_source_is_checked(hostile: tuple[str, list[str]], film: Path) -> None:
    site, asked = hostile
    for target in (
        "http://169.254.169.254/latest",
        "http://[::ffff:100.100.100.200]/",
        f"file://{film}",
        "s3://a/b.mp4",
    ):
        with pytest.raises(SourceError), fetched(f"{site}/to?{target}"):
            pass
    assert len(asked) == 4
    with pytest.raises(SourceDenied), fetched("http://169.254.169.254/latest/x.mp4"):
        pass


def test_a_playlist_as_a_source_is_no_video(hostile: tuple[str, list[str]]) -> None:
    site, asked = hostile
    for path in ("/list.mp4", f"/to?{site}/list.mp4"):
        with pytest.raises(NotVideo):
            list(read_frames(site + path))
    assert asked == ["/list.mp4", f"/to?{site}/list.mp4", "/list.mp4"]


def test_an_index_names_only_what_is_below_it(hostile: tuple[str, list[str]]) -> None:
    site, asked = hostile
    assert expand([f"{site}/index/*"]).files == [f"{site}/index/w.mp4"]
    assert asked == ["/index/"]


def test_a_source_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(4000):
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setattr(ingest_sources, "TIMEOUT_SECONDS", 0.5)
    serving = _serve(Dripping)
    site = next(serving)
    began = time.monotonic()
    with pytest.raises(SourceNotFound, match="cannot be fetched"), fetched(f"{site}/front.mp4"):
        pass
    assert time.monotonic() - began < 100, "less than the 200 s of the drops"
    next(serving, None)


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
