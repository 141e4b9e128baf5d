"""Hostile URLs: whatever a URL, a redirect, a playlist or an index names, nothing forbidden is reached.

A server on loopback takes the place of two others, by the addresses that their names resolve to: `public.example` on the
public Internet, `nas.example` in the local network. Each case has one hostile target, in one of many notations, and one
way in: the URL itself, a redirect, an entry of a playlist, a link of an index, the URI of a Kafka message. Connections to
other addresses are recorded and never made; on loopback a second server, which must not be asked, records what comes. One
case in eight names a harmless target and must reach it.
"""

from __future__ import annotations

import html
import http.server
import ipaddress
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from index.errors import SightlineError
from ingest.decoding.limits import DecodeLimits
from ingest.kafka.fetch import read_segment
from ingest.kafka.settings import KafkaSettings
from ingest.live.source import LiveSource
from ingest.messages import parse_segment, segment_message
from ingest.sources.files import expand, fetched
from ingest.sources.pinned_http import PinnedHttp
from ingest.sources.url_policy import UrlPolicy, check_url, resolve_host
from tests.support.footage import make_video

__all__ = ["UrlsResult", "fuzz_urls", "targets"]

PUBLIC, LAN = "93.184.216.34", "192.168.1.5"
_INSIDE: tuple[str, ...] = (
    "127.0.0.1",
    "127.0.0.2",
    "10.0.0.7",
    "172.16.3.4",
    "192.168.1.9",
    "169.254.169.254",
    "192.0.0.192",
)
_INSIDE += ("100.100.100.200", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1")
_NEVER = ("127.0.0.1", "127.0.0.2", "169.254.169.254", "192.0.0.192", "100.100.100.200", "0.0.0.0")
_INSIDE6 = ("::1", "::", "fe80::1", "fd00::1", "fec0::1", "fd00:ec2::254", "ff02::1", "64:ff9b:1::1", "2001:db8::1")
_NEVER6 = ("::1", "::", "fe80::1", "fd00:ec2::254")
_LOCAL_NAMES = ("localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "ip6-localhost")


@dataclass(slots=True)
class Web:
    """The two servers, and what was asked of them."""

    port: int = 0
    """Port of the servers by name."""
    secret_port: int = 0
    """Port of the server that must not be asked."""
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    """Status, headers and body by path."""
    asked: list[str] = field(default_factory=list)
    """Paths that were asked of the servers by name."""
    secrets: list[str] = field(default_factory=list)
    """Connections to the server that must not be asked."""
    attempts: list[str] = field(default_factory=list)
    """Addresses that a connection was attempted to."""
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    """By name the addresses of each resolution, in turn."""

    def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a name, as the system resolves it where it is no name of the fuzzer."""
        if (known := self.names.get(host.rstrip(".").lower())) is not None:
            known.append(known.pop(0))
            return known[-1]
        if host.lower() in map(str.lower, _LOCAL_NAMES):
            return ["127.0.0.1"]
        socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)  # a number in any notation: no name server is asked
        return resolve_host(host, port)

    def connect(self, address: tuple[str, int], timeout: float, **_: Any) -> socket.socket:
        """Connect by the table: the servers by name, the one that must not be asked, and no other."""
        self.attempts.append(address[0])
        if address[0] in (PUBLIC, LAN):
            address = ("127.0.0.1", self.port)
        elif not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            raise ConnectionRefusedError("the fuzzer makes no connection to another machine")
        made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(timeout)
        made.connect(address)
        return made


@contextmanager
def _web(part: bytes) -> Iterator[Web]:
    web = Web(names={"public.example": [[PUBLIC]], "nas.example": [[LAN]]})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            status, headers, body = web.pages.get(
                self.path, (200, {}, part) if self.path == "/part.ts" else (404, {}, b"")
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ExitStack() as stack:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        stack.callback(server.server_close)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(server.shutdown)
        web.port = server.server_port
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")):
            listening = socket.socket(family, socket.SOCK_STREAM)
            stack.callback(listening.close)
            try:
                listening.bind((host, web.secret_port))
            except OSError:
                continue  # no IPv6 on this machine, or an address that others use
            web.secret_port = listening.getsockname()[1]
            listening.listen(16)
            threading.Thread(target=_serve_secret, args=(listening, web, host, part), daemon=True).start()
        for module in ("ingest.sources.pinned_http", "ingest.live.source"):
            stack.enter_context(patch(f"{module}.check_url", lambda u, p: check_url(u, p, resolve=web.resolve)))
        stack.enter_context(patch("socket.create_connection", web.connect))
        yield web


def _serve_secret(listening: socket.socket, web: Web, host: str, part: bytes) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            connection, _ = listening.accept()
            web.secrets.append(host)
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(part) + part)


# ---- targets -----------------------------------------------------------------------------------------------------------


def _ipv4(rng: random.Random, address: str) -> str:
    """An IPv4 address in one of the notations that a resolver takes, or that a careless parser might."""
    number = int(ipaddress.IPv4Address(address))
    a, b, c, d = address.split(".")
    low = number & 0xFFFFFF
    forms = [
        *(address, f"{address}.", str(number), hex(number), f"0{number:o}", f"{a}.{low}", f"{a}.{b}.{number & 0xFFFF}"),
        *(f"0x{int(a):x}.{b}.{c}.{d}", f"0{int(a):o}.0{int(b):o}.0{int(c):o}.0{int(d):o}", f"{a}.0x{low:x}"),
        *("".join(f"%{ord(x):02x}" for x in address), address.replace(".", "。"), address.replace(".", "．")),
        *(address.translate({ord("0") + i: 0xFF10 + i for i in range(10)}), address.replace("1", "①"), f"{address}%00"),
        *(str(number + 2**32), f"{a}..{b}.{c}.{d}", f"{a}.{b}.{c}.{d}.", f"{number}."),
    ]
    return rng.choice(forms)


def _ipv6(rng: random.Random, address: str) -> str:
    """An IPv6 address, perhaps one that stands for an IPv4 address, in brackets."""
    if ":" not in address:
        number = int(ipaddress.IPv4Address(address))
        high, low = number >> 16, number & 0xFFFF
        six = rng.choice(
            [
                *(f"::ffff:{address}", f"::{address}", f"::ffff:0:{address}", f"64:ff9b::{address}"),
                *(f"::ffff:{high:x}:{low:x}", f"64:ff9b:1::{high:x}:{low:x}", f"2002:{high:x}:{low:x}::1"),
                f"2001:0:{int(ipaddress.IPv4Address(PUBLIC)) >> 16:x}:0:0:0:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}",
                f"64:ff9b:1:{high:x}:{low >> 8:x}:{(low & 0xFF) << 8:x}::",
            ]
        )
    else:
        six = address
    forms = [six, six.upper(), ipaddress.IPv6Address(six).exploded, f"{six}%25lo", f"{six}%lo", f"{six}%251"]
    return f"[{rng.choice(forms)}]"


def _dressed(rng: random.Random, host: str, port: int) -> str:
    """A URL of a host, in one of the forms that parsers read differently."""
    path = rng.choice(["/part.ts", "/", "/latest/meta-data/", "/x.m3u8", "/?u=http://public.example/", ""])
    where = f"{host}:{port}"
    forms = [
        *(f"http://{where}{path}", f"HTTP://{where}{path}", f"https://{where}{path}", f"//{where}{path}"),
        *(f"http:{where}{path}", f"http:/{where}{path}", f"http:///{where}{path}", f"http:\\\\{where}{path}"),
        *(
            f"http://public.example@{where}{path}",
            f"http://public.example:80@{where}{path}",
            f"http://u:p@{where}{path}",
        ),
        *(
            f"http://{where}#@public.example/",
            f"http://{where}\\@public.example{path}",
            f"http://{where}?@public.example/",
        ),
        *(
            f"ht\ttp://{where}{path}",
            f" http://{where}{path}",
            f"http://{where[:4]}\t{where[4:]}{path}",
            f"\\\\{where}{path}",
        ),
        *(
            f"http://{host}:0{port}{path}",
            f"http://{host}:+{port}{path}",
            f"http://{host}{path}",
            f"http://{host}:{path}",
        ),
        *(
            f"http://public.example&{where}{path}",
            f"http://public.example%2f@{where}{path}",
            f"http://{where}/%2e%2e{path}",
        ),
    ]
    return rng.choice(forms) if rng.random() < 0.6 else forms[0]


def _foreign(rng: random.Random, secret: Path, port: int) -> str:
    """A target that is no HTTP URL: a local file, or another protocol."""
    return rng.choice(
        [
            *(f"file://{secret}", f"file:{secret}", f"FILE://{secret}", f"file://localhost{secret}", str(secret)),
            *(f"concat:{secret}", f"subfile,,start,0,end,0,,:{secret}", f"crypto:{secret}", f"crypto+file:{secret}"),
            *(f"cache:file:{secret}", f"async:{secret}", f"hls+file://{secret}", f"../../../../../../../..{secret}"),
            *(f"pipe:{port}", "fd:0", "data:video/mp2t;base64,R0A=", f"unix:{secret}", f"md5:{secret}.out", "http://["),
            *(
                f"tcp://127.0.0.1:{port}",
                f"udp://127.0.0.1:{port}",
                f"rtp://127.0.0.1:{port}",
                f"tls://127.0.0.1:{port}",
            ),
            *(
                f"rtsp://127.0.0.1:{port}/x",
                f"rtmp://127.0.0.1:{port}/x/y",
                f"ftp://127.0.0.1:{port}/x",
                f"srt://127.0.0.1:{port}",
            ),
            *(
                f"gopher://127.0.0.1:{port}/x",
                f"httpproxy://127.0.0.1:{port}/",
                f"mmsh://127.0.0.1:{port}/",
                "s3://bucket/x.ts",
            ),
            *(
                f"hls+http://127.0.0.1:{port}/part.ts",
                f"ffrtmphttp://127.0.0.1:{port}/",
                "javascript:1",
                "http://\x00/",
            ),
        ]
    )


def targets(rng: random.Random, web: Web, secret: Path, number: int, *, lan: bool) -> str:
    """A hostile target; with `lan` one that a server of the local network must not name either. Names that resolve to forbidden addresses are entered in `web.names`."""
    port = rng.choice([web.secret_port, web.secret_port, web.secret_port, 80, 443, 8080])
    address = rng.choice(_NEVER if lan else _INSIDE)
    match rng.randrange(10):
        case 0 | 1 | 2:
            return _dressed(rng, _ipv4(rng, address), port)
        case 3 | 4:
            return _dressed(rng, _ipv6(rng, address), port)
        case 5:
            return _dressed(rng, _ipv6(rng, rng.choice(_NEVER6 if lan else _INSIDE6)), port)
        case 6:
            name = f"hostile{number}.example"
            held = address if rng.random() < 0.7 else _ipv6(rng, address)[1:-1].partition("%")[0]
            web.names[name] = rng.choice([[[held]], [[PUBLIC, held]], [[held, PUBLIC]], [[PUBLIC], [held]]])
            return _dressed(rng, rng.choice([name, name.upper(), f"{name}."]), port)
        case 7:
            return _dressed(rng, rng.choice(_LOCAL_NAMES), port)
        case _:
            return _foreign(rng, secret, web.secret_port)


# ---- ways in -----------------------------------------------------------------------------------------------------------


def _line(target: str) -> str:
    """The target as a header or a line of text can hold it."""
    return target.replace("\r", "").replace("\n", "").encode("utf-8").decode("latin-1")


def _redirects(web: Web, rng: random.Random, base: str, number: int, target: str) -> str:
    """A URL that redirects to the target, perhaps in several steps."""
    steps = rng.choice([1, 1, 2, 3])
    for step in range(steps):
        to = _line(target) if step == steps - 1 else rng.choice([base, ""]) + f"/{number}/r{step + 1}"
        web.pages[f"/{number}/r{step}"] = (rng.choice([301, 302, 303, 307, 308]), {"Location": to}, b"")
    return f"{base}/{number}/r0"


def _playlist(web: Web, rng: random.Random, base: str, number: int, target: str, *, harmless: bool = False) -> str:
    """A URL of a playlist, under any name and type, that names the target in one of its tags."""
    kind = rng.choice(["text/plain", "application/vnd.apple.mpegurl", "video/mp2t", "application/octet-stream"])
    name = rng.choice(["a.m3u8", "A.M3U8", "a.ts", "video.mp4", "list?x=.m3u8", "x"])
    entry = f"#EXTINF:3,\n{target}\n"
    body = (
        entry
        if harmless
        else rng.choice(
            [
                *(entry, entry, entry, f'#EXT-X-MAP:URI="{target}"\n#EXTINF:3,\n/part.ts\n'),
                *(
                    f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:3,\n/part.ts\n',
                    f"#EXTINF:3,\n#EXT-X-BYTERANGE:99@0\n{target}\n",
                ),
                *(f"#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n", f"#EXT-X-STREAM-INF:BANDWIDTH=1\n/{number}/n\n"),
                f'#EXT-X-MEDIA:TYPE=VIDEO,GROUP-ID="v",NAME="v",URI="{target}"\n#EXT-X-STREAM-INF:BANDWIDTH=1,VIDEO="v"\n{target}\n',
            ]
        )
    )
    head, end = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:3\n", "#EXT-X-ENDLIST\n"
    web.pages[f"/{number}/n"] = (200, {"Content-Type": kind}, (head + entry + end).encode())
    web.pages[f"/{number}/{name}"] = (200, {"Content-Type": kind}, (head + body + end).encode())
    return f"{base}/{number}/{name}"


def _live(url: str) -> bytes:
    """What a camera delivers: one packet, or nothing."""
    source = LiveSource(url, UrlPolicy.operator(), transport="tcp", connect=3, stall=3)
    try:
        return bytes(next(iter(source.packets()), b""))
    finally:
        source.close()


def _file(url: str) -> bytes:
    with fetched(url) as path:
        return path.read_bytes()


def _indexed(web: Web, base: str, number: int, target: str) -> bytes:
    """The files that an index names, which links to the target."""
    page = f'<a href="{html.escape(target)}">x</a><a href={target}>x</a><a href="part.ts/../../part.ts">x</a>'
    web.pages[f"/{number}/"] = (200, {"Content-Type": "text/html"}, page.encode())
    found = expand([f"{base}/{number}/*"])
    if not found.files:
        raise found.problems[0][1]
    return b"".join(map(_file, found.files))


def _message(base: str, url: str, secret: bytes) -> bytes:
    """What a Kafka worker that may read below `base` decodes of a message with this URI."""
    sent = segment_message("gate", 10**15, 3.0, secret, uri="http://x/", media_type="video/mp2t")
    message = parse_segment(json.dumps({**json.loads(sent.to_bytes()), "uri": url}).encode(), None)
    frames = read_segment(message, settings=KafkaSettings(objects=(base,)), limits=DecodeLimits())
    return bytes(frames.pixels[0])


@dataclass(slots=True)
class UrlsResult:
    """What became of all cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How many of each way in ended how: `reached` for a harmless target, or the type of the error."""
    urls: int = 0
    """Different targets."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of each case that broke a promise."""
    seconds: float = 0.0
    """Seconds that all took."""
    slowest: float = 0.0
    """Seconds of the slowest case."""


def fuzz_urls(folder: Path, *, seed: int, cases: int, first: int = 0) -> UrlsResult:
    """Try `cases` hostile targets; see `UrlsResult` for what is counted. Each depends on the seed and its number alone."""
    secret = folder / "secret.ts"
    make_video(secret, seconds=3, rate=5)
    result, began, seen = UrlsResult(), time.monotonic(), set[str]()
    with _web(secret.read_bytes()) as web:
        for number in range(first, first + cases):
            since = time.monotonic()
            way, target, problem, outcome = _case(web, random.Random(f"{seed}/{number}"), secret, number)
            result.outcomes[f"{way}: {outcome}"] += 1
            seen.add(target.replace(str(web.secret_port), "PORT").replace(str(number), "N"))
            if problem:
                result.failures.append((number, f"{way} of {target!r}: {problem}"))
            result.slowest = max(result.slowest, time.monotonic() - since)
    result.seconds, result.urls = time.monotonic() - began, len(seen)
    return result


def _case(web: Web, rng: random.Random, secret: Path, number: int) -> tuple[str, str, str | None, str]:
    """One case: its way in, its target, what is wrong, and how it ended."""
    host = rng.choice(["public.example", "public.example", "nas.example"])
    base, harmless = f"http://{host}:{web.port}", rng.random() < 0.125
    lan = host.startswith("nas")
    target = f"{base}/part.ts" if harmless else targets(rng, web, secret, number, lan=lan)
    part = secret.read_bytes()
    outside = PinnedHttp(UrlPolicy(networks=(LAN,)), timeout=3)
    ways: dict[str, Callable[[], bytes]] = {
        "URL": lambda: outside.open(target).read(),
        "redirect": lambda: _file(_redirects(web, rng, base, number, target)),
        "redirect of a stream": lambda: _live(_redirects(web, rng, base, number, target)),
        "playlist": lambda: _live(_playlist(web, rng, base, number, target, harmless=harmless)),
        "redirect of a playlist": lambda: _live(
            _playlist(web, rng, base, number, _redirects(web, rng, base, number, target))
        ),
        "index": lambda: _indexed(web, base, number, target),
        "message": lambda: _message(base, rng.choice([target, f"{base}@{target}", f"{base}{target}"]), part),
        "redirect of a message": lambda: _message(base, _redirects(web, rng, base, number, target), part),
    }
    way = (
        rng.choice(sorted(ways))
        if not harmless
        else rng.choice(["URL", "redirect", "redirect of a stream", "playlist"])
    )
    for each in (web.attempts, web.secrets, web.asked):
        each.clear()
    got, outcome, problem = b"", "nothing", None
    try:
        got = ways[way]()
    except SightlineError as error:
        outcome = type(error).__name__
    except Exception as error:
        return way, target, f"untyped {type(error).__name__}: {error}", "untyped"
    if web.secrets:
        problem = f"the server that must not be asked was asked at {web.secrets}"
    elif wrong := set(web.attempts) - {PUBLIC, LAN if lan or way == "URL" else PUBLIC}:
        problem = f"a connection to {sorted(wrong)} was attempted"
    elif got and not harmless and "/part.ts" not in web.asked:
        problem = f"{len(got)} bytes of something forbidden arrived"
    elif harmless and not got:
        problem = f"a harmless target was not reached ({outcome})"
    return way, target, problem, "reached" if got else outcome
