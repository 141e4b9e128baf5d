"""What may be read, and that the connection goes where the check said."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from index.errors import NotVideo, SourceDenied, SourceError, SourceNotFound
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.fetch import read_segment
from ingest.kafka.settings import KafkaSettings
from ingest.messages import segment_message
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import CheckedUrl, UrlPolicy, check_url
from tests.support.footage import make_video


def names(**table: list[str]) -> Any:
    """A resolver that knows these names, `_` for dots, and counts how often it was asked."""

    def resolve(host: str, port: int) -> list[str]:
        resolve.asked += 1  # type: ignore[attr-defined]
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
            return [host]
        except OSError:
            pass
        if host not in known:
            raise OSError("no such name")
        return known[host]

    known = {name.replace("_", "."): addresses for name, addresses in table.items()}
    resolve.asked = 0  # type: ignore[attr-defined]
    return resolve


OUTSIDE = UrlPolicy()


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://10.0.0.5/main",
        "rtsp://127.0.0.1:8554/x",
        "http://192.168.1.1/a.m3u8",
        "http://[::1]/a.m3u8",
        "http://[fd00::1]/a",
        "http://[::ffff:10.0.0.1]/a",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/a",
        "http://0.0.0.0/a",
        "http://224.0.0.1/a",
        "http://inside.example/a",
        "http://both.example/a",
        "udp://239.1.1.1:5000",
        "srt://198.51.100.1:9",
        "file:///etc/passwd",
        "loop:/etc/passwd",
        "concat:/etc/passwd",
        "gopher://1.1.1.1/",
        "/etc/passwd",
    ],
)
def test_from_outside_nothing_inside_is_reached(url: str) -> None:
    resolve = names(inside_example=["10.1.2.3"], both_example=["1.1.1.1", "10.1.2.3"])
    with pytest.raises(SourceDenied):
        check_url(url, OUTSIDE, resolve=resolve)


@pytest.mark.parametrize("url", ["http://", "rtsp:///x", "http://nowhere.example/a", "http://1.1.1.1:99999/"])
def test_what_leads_nowhere_is_not_found(url: str) -> None:
    with pytest.raises(SourceNotFound):
        check_url(url, OUTSIDE, resolve=names())


def test_the_address_is_resolved_once_and_pinned() -> None:
    resolve = names(cam_example=["1.1.1.1"])
    checked = check_url("rtsp://user:pw@cam.example:8554/main?x=1", OUTSIDE, resolve=resolve)
    assert (checked.host, checked.port, checked.address) == ("cam.example", 8554, "1.1.1.1")
    assert checked.pinned == "rtsp://user:pw@1.1.1.1:8554/main?x=1"
    assert resolve.asked == 1
    six = check_url("https://[2606:4700::1111]/a", OUTSIDE, resolve=names())
    assert six.pinned == "https://[2606:4700::1111]/a"
    assert six.port == 443


def test_hosts_networks_and_files_are_allowed_by_name() -> None:
    cameras = UrlPolicy(hosts=("*.cam.example",), networks=("10.1.0.0/16",))
    resolve = names(a_cam_example=["10.1.2.3"], b_cam_example=["10.2.2.3"], c_example=["10.1.2.3"])
    assert check_url("rtsp://A.cam.example/x", cameras, resolve=resolve).address == "10.1.2.3"
    for url in ("rtsp://b.cam.example/x", "rtsp://c.example/x"):
        with pytest.raises(SourceDenied):
            check_url(url, cameras, resolve=resolve)
    operator = UrlPolicy.operator()
    for url in ("rtsp://10.0.0.5/x", "udp://:5000", "udp://239.1.1.1:5000", "loop:/footage.mp4"):
        assert check_url(url, operator, resolve=names()).url == url
    with pytest.raises(SourceDenied):
        check_url("http://169.254.169.254/latest", operator, resolve=names())
    with pytest.raises(SourceDenied):
        check_url("loop:/footage.mp4", UrlPolicy.operator(files=False), resolve=names())
    with pytest.raises(ValueError, match="networks"):
        UrlPolicy(networks=("10.0.0.0/99",))


def test_no_message_shows_a_password() -> None:
    for url in (
        "rtsp://user:hunter2@10.0.0.1/x",
        "rtsp://user:hun@ter2@10.0.0.1/x",
        "foo://user:hunter2@h/?token=hunter2",
    ):
        with pytest.raises(SourceError) as caught:
            check_url(url, OUTSIDE, resolve=names())
        assert "ter2" not in str(caught.value)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append((self.headers["Host"], self.path, self.headers.get("Authorization")))
        where = server.redirects.get(self.path)
        self.send_response(302 if where else 200)
        if where:
            self.send_header("Location", where)
        self.end_headers()
        if not where:
            self.wfile.write(b"x" * 1000)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.seen, server.redirects = [], {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_http_goes_to_the_pinned_address_by_the_hosts_name(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolves to another address the second time, as an attacker's would: nobody asks a second time."""
    answers = iter([["127.0.0.1"], ["203.0.113.9"]])
    monkeypatch.setattr(
        "ingest.sources.pinned_http.check_url", lambda u, p: check_url(u, p, resolve=lambda h, n: next(answers))
    )
    policy = UrlPolicy(networks=("127.0.0.1",))
    port = web.server_port
    with PinnedHttp(policy, timeout=60).open(f"http://user:pw@cam.example:{port}/a?b=1") as body:
        assert len(body.read()) == 1000
    assert web.seen == [(f"cam.example:{port}", "/a?b=1", "Basic dXNlcjpwdw==")]


def test_a_messages_object_reaches_the_named_host_and_no_other(web: Any, tmp_path: Path) -> None:
    """Also by a redirect of the server that was named."""
    base = f"http://127.0.0.1:{web.server_port}"
    web.redirects = {"/out/a.mp4": f"http://localhost:{web.server_port}/in/a.mp4"}
    settings = KafkaSettings(objects=(base,))

    def read(path: str) -> None:
        message = segment_message("gate", 10**15, 1.0, b"x" * 1000, uri=base + path)
        read_segment(message, settings=settings, limits=DecodeLimits())

    with pytest.raises(NotVideo):  # it was fetched, and a thousand x are no video
        read("/in/a.mp4")
    with pytest.raises(SourceDenied):
        read("/out/a.mp4")
    assert [path for _, path, _ in web.seen] == ["/in/a.mp4", "/out/a.mp4"]


def test_a_redirect_is_checked_again_and_leaves_the_password_behind(web: Any) -> None:
    base = f"http://127.0.0.1:{web.server_port}"
    web.redirects = {
        "/inside": "http://10.0.0.1/",
        "/file": "file:///etc/passwd",
        "/round": "/round",
        "/on": f"{base}/there",
    }
    opener = PinnedHttp(UrlPolicy(networks=("127.0.0.1",)), timeout=60, max_bytes=100)
    for path, kind in (("/inside", SourceDenied), ("/file", SourceError), ("/round", SourceNotFound)):
        with pytest.raises(kind):
            opener.open(base + path)
    with (
        opener.open(f"http://user:pw@127.0.0.1:{web.server_port}/on") as body,
        pytest.raises(SourceNotFound, match="larger"),
    ):
        body.read()
    assert web.seen[-1] == (f"127.0.0.1:{web.server_port}", "/there", None)


def test_a_playlist_cannot_reach_files_or_addresses_inside(web: Any, tmp_path: Path) -> None:
    """Through the very code that opens cameras; FFmpeg alone would read the first of them."""
    from ingest.live.source import LiveSource

    secret = tmp_path / "secret.ts"
    make_video(secret, seconds=2)  # it would play
    for entry in (f"file://{secret}", str(secret), "http://169.254.169.254/x.ts", f"concat:{secret}"):
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{entry}\n#EXT-X-ENDLIST\n".encode()

        class Playlist(_Handler):
            def do_GET(self, playlist: bytes = playlist) -> None:
                server: Any = self.server
                server.seen.append(self.path)
                self.send_response(200 if self.path == "/a.m3u8" else 404)
                self.end_headers()
                self.wfile.write(playlist if self.path == "/a.m3u8" else b"")

        web.RequestHandlerClass = Playlist
        with pytest.raises(SourceError):
            LiveSource(
                f"http://127.0.0.1:{web.server_port}/a.m3u8",
                UrlPolicy.operator(),
                transport="tcp",
                connect=60.0,
                stall=60.0,
            )
        assert "/a.m3u8" in web.seen


@pytest.mark.parametrize(
    "address",
    [
        "::ffff:10.0.0.1",
        "::10.0.0.1",
        "::7f00:1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::1.1.1.1",
        "64:ff9b:1:a00:0:100::",
        "2002:a00:1::1",
        "2001:0:101:101::f5ff:fffe",
        "fec0::1",
        "feff::1",
        "fd00::1",
        "::1",
        "::",
    ],
)
def test_private_addresses_in_every_form_are_refused_from_outside(address: str) -> None:
    with pytest.raises(SourceDenied):
        check_url(f"http://[{address}]/a", OUTSIDE, resolve=names())


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "192.0.0.192",
        "100.100.100.200",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[::ffff:0:169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[64:ff9b:1:a9fe:a9:fe00::]",
        "[2002:a9fe:a9fe::1]",
        "[64:ff9b::6464:64c8]",
    ],
)
def test_addresses_with_credentials_are_refused_to_the_operator_too(host: str) -> None:
    with pytest.raises(SourceDenied, match="reserved"):
        check_url(f"http://{host}/latest", UrlPolicy.operator(), resolve=names())


def test_which_addresses_are_public() -> None:
    resolve = names(out_example=["1.1.1.1"], in_example=["10.0.0.5"], nat_example=["64:ff9b::1.1.1.1"])
    operator = UrlPolicy.operator()
    found = {
        host: check_url(f"http://{host}.example/", operator, resolve=resolve).public for host in ("out", "in", "nat")
    }
    assert found == {"out": True, "in": False, "nat": True}
    assert check_url("http://[2606:4700::1111]/", operator, resolve=names()).public
    assert not check_url("http://[fec0::1]/", operator, resolve=names()).public


def pretend(monkeypatch: pytest.MonkeyPatch, host: str, address: str = "1.1.1.1") -> None:
    """Let a name be at an address; the connection goes to loopback all the same."""

    def check(url: str, policy: UrlPolicy) -> CheckedUrl:
        if urlsplit(url).hostname != host:
            return check_url(url, policy)
        checked = check_url(url, policy, resolve=lambda _, __: [address])
        return replace(checked, address="127.0.0.1")

    monkeypatch.setattr("ingest.sources.pinned_http.check_url", check)


def test_a_public_server_cannot_redirect_to_a_private_address(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = web.server_port
    pretend(monkeypatch, "public.example")
    web.redirects = {
        "/in": f"http://127.0.0.1:{port}/secret",
        "/twice": f"http://public.example:{port}/in",
        "/on": f"http://public.example:{port}/there",
        "/out": f"http://public.example:{port}/in",
    }
    opener = PinnedHttp(UrlPolicy.operator(), timeout=60)
    for path in ("/in", "/twice"):
        with pytest.raises(SourceDenied):
            opener.open(f"http://public.example:{port}{path}")
    with pytest.raises(SourceDenied):
        opener.open(f"http://127.0.0.1:{port}/out")  # private, then public, then private again
    assert "/secret" not in [path for _, path, _ in web.seen]
    with opener.open(f"http://public.example:{port}/on") as body:
        assert not body.policy.private
    with opener.open(f"http://127.0.0.1:{port}/there") as body:  # what the operator names may be private
        assert body.policy.private


def test_another_machine_cannot_redirect_to_loopback(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = web.server_port
    pretend(monkeypatch, "nas.example", "192.168.1.5")
    web.redirects = {"/in": f"http://127.0.0.1:{port}/secret", "/beside": f"http://nas.example:{port}/there"}
    opener = PinnedHttp(UrlPolicy.operator(), timeout=60)
    with pytest.raises(SourceDenied, match="this machine itself"):
        opener.open(f"http://nas.example:{port}/in")
    opener.open(f"http://nas.example:{port}/beside").close()
    assert [path for _, path, _ in web.seen] == ["/in", "/beside", "/there"]
    allowed = UrlPolicy.operator(networks=("127.0.0.0/8",))
    PinnedHttp(allowed, timeout=60).open(f"http://nas.example:{port}/in").close()


class _Dripping(_Handler):
    """Sends a byte every 50 ms: of the headers below /headers, else of the body."""

    def do_GET(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 4000
        with suppress(OSError):
            if self.path != "/headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
            for letter in head:
                self.wfile.write(bytes([letter]))
                time.sleep(0.05)


@pytest.mark.parametrize("path", ["/headers", "/body"])
def test_a_server_that_drips_is_given_up(web: Any, path: str) -> None:
    web.RequestHandlerClass = _Dripping
    began = time.monotonic()
    with pytest.raises((SourceNotFound, TimeoutError), match=r"bytes a second|timed out"):
        PinnedHttp(UrlPolicy.operator(), timeout=1).open(f"http://127.0.0.1:{web.server_port}{path}").read()
    assert time.monotonic() - began < 100, "less than the 200 s of the drops"


class _Served(_Handler):
    """Serves `server.bodies`: by path, its content type and bytes."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append(self.path)
        where = server.redirects.get(self.path)
        kind, body = server.bodies.get(self.path, ("text/plain", b""))
        self.send_response(302 if where else 200 if self.path in server.bodies else 404)
        if where:
            self.send_header("Location", where)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a.m3u8", "application/vnd.apple.mpegurl"),
        ("/redirected", "text/plain"),
        ("/x.m3u8", "text/plain"),
        ("/X.M3U8", "application/octet-stream"),
        ("/list?x=.m3u8", "text/plain"),
        ("/video.mp4", "video/mp4"),
        ("/mpd", "application/dash+xml"),
        ("/concat", "text/plain"),
        ("/sdp", "application/sdp"),
    ],
)
def test_a_list_of_a_public_server_reaches_nothing_private(
    web: Any, path: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the code that opens cameras: what is a playlist is decided by its content."""
    from ingest.live.source import LiveSource

    make_video(tmp_path / "secret.ts", seconds=3)
    secret = f"http://127.0.0.1:{web.server_port}/secret.ts"
    body = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{secret}\n#EXT-X-ENDLIST\n"
    body = {
        "/mpd": f'<?xml version="1.0"?><MPD><Period><BaseURL>{secret}</BaseURL></Period></MPD>',
        "/concat": f"ffconcat version 1.0\nfile {secret}\n",
        "/sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }.get(path, body)
    web.RequestHandlerClass = _Served
    web.bodies = {
        path: (kind, body.encode()),
        "/x.m3u8": ("text/plain", body.encode()),
        "/secret.ts": ("video/mp2t", (tmp_path / "secret.ts").read_bytes()),
    }
    web.redirects = {"/redirected": f"http://public.example:{web.server_port}/x.m3u8"}
    pretend(monkeypatch, "public.example")
    monkeypatch.setattr("ingest.live.source.check_url", lambda url, policy: None)  # before any connection
    with pytest.raises(SourceError):
        list(
            LiveSource(
                f"http://public.example:{web.server_port}{path}",
                UrlPolicy.operator(),
                transport="tcp",
                connect=60,
                stall=60,
            ).packets()
        )
    assert "/secret.ts" not in web.seen


def test_a_playlist_without_its_suffix_is_played(web: Any, tmp_path: Path) -> None:
    from ingest.live.source import LiveSource

    make_video(tmp_path / "part.ts", seconds=3)
    web.RequestHandlerClass = _Served
    web.bodies = {
        "/list?x=1": ("text/plain", b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\npart.ts\n#EXT-X-ENDLIST\n"),
        "/part.ts": ("video/mp2t", (tmp_path / "part.ts").read_bytes()),
    }
    source = LiveSource(
        f"http://127.0.0.1:{web.server_port}/list?x=1", UrlPolicy.operator(), transport="tcp", connect=60, stall=60
    )
    assert source.stream.codec_context.width == 64
    source.close()
