"""Redirects: one of an RTSP server, which FFmpeg follows by itself, leads to no packet; one of RTMP is not followed."""

from __future__ import annotations

import base64
import io
import multiprocessing
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import av
import numpy as np
import pytest

from index.errors import SourceDenied, SourceNotFound
from ingest.live.source import LiveSource
from ingest.sources.url_policy import UrlPolicy


def _units() -> list[bytes]:
    """The NAL units of one small picture in H.264: parameter sets and an intra frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=5, options={"preset": "ultrafast", "x264-params": "annexb=1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    units = file.getvalue().replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")[1:]
    return [unit for unit in units if unit[0] & 31 in (1, 5, 7, 8)]


UNITS = _units()


def _answer(request: str, redirect: str | None) -> bytes:
    lines = request.split("\r\n")
    method = lines[0].split(" ")[0]
    sequence = next(line for line in lines if line.lower().startswith("cseq"))
    if redirect is not None:
        return f"RTSP/1.0 302 Found\r\n{sequence}\r\nLocation: {redirect}\r\n\r\n".encode()
    head, body = f"RTSP/1.0 200 OK\r\n{sequence}\r\nSession: 1\r\n", ""
    if method == "OPTIONS":
        head += "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
    elif method == "DESCRIBE":
        sets = ",".join(base64.b64encode(unit).decode() for unit in UNITS if unit[0] & 31 in (7, 8))
        body = (
            "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
            f"a=fmtp:96 packetization-mode=1; sprop-parameter-sets={sets}\r\na=control:track\r\n"
        )
        head += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
    elif method == "SETUP":
        head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
    return f"{head}\r\n{body}".encode()


def _serve(listener: socket.socket, redirect: str | None) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_converse, args=(client, redirect), daemon=True).start()


def _converse(client: socket.socket, redirect: str | None) -> None:
    received = b""
    with suppress(OSError), client:
        while data := client.recv(65536):
            received += data
            while b"\r\n\r\n" in received:
                request, _, received = received.partition(b"\r\n\r\n")
                client.sendall(_answer(request.decode(), redirect))
                if request.startswith(b"PLAY"):
                    for number in range(40):
                        for unit in UNITS:
                            marker = 0x80 if unit[0] & 31 in (1, 5) else 0
                            packet = (
                                struct.pack(">BBHII", 0x80, 96 | marker, number * 8 % 65536, number * 18_000, 7) + unit
                            )
                            client.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)


@contextmanager
def _servers() -> Iterator[int]:
    """On 127.0.0.1 a server that redirects, on 127.0.0.2 at the same port one that sends footage; the port."""
    first = socket.create_server(("127.0.0.1", 0))
    port = first.getsockname()[1]
    second = socket.create_server(("127.0.0.2", port))
    serving = multiprocessing.get_context("fork").Process(target=_serve_both, args=(first, second, port), daemon=True)
    serving.start()  # a process of its own: connections of this one are what is checked
    first.close()
    second.close()
    try:
        yield port
    finally:
        serving.kill()
        serving.join()


def _serve_both(first: socket.socket, second: socket.socket, port: int) -> None:
    threading.Thread(target=_serve, args=(first, f"rtsp://127.0.0.2:{port}/other"), daemon=True).start()
    _serve(second, None)


def _open(url: str) -> LiveSource:
    return LiveSource(url, UrlPolicy.operator(), transport="tcp", connect=30.0, stall=30.0)


def test_a_source_that_redirects_to_another_address_is_denied() -> None:
    with _servers() as port:
        direct = _open(f"rtsp://127.0.0.2:{port}/other")  # where the redirect leads there is footage
        assert next(direct.packets()).size > 0
        direct.close()
        with pytest.raises(SourceDenied, match=r"redirects to 127\.0\.0\.2.*nothing of it was read") as denied:
            _open(f"rtsp://user:hunter2@127.0.0.1:{port}/camera")
    assert "hunter2" not in str(denied.value)


def _text(text: str, *, mark: bytes = b"\x02") -> bytes:
    """A string of AMF; the name of a property without its mark."""
    return mark + struct.pack(">H", len(text)) + text.encode()


def _rejection(redirect: str) -> bytes:
    """An answer of RTMP to `connect` that names another server, in chunks of 128 bytes."""
    code, ends = _text("code", mark=b""), b"\0\0\x09"
    extra = b"\x03" + code + struct.pack(">Bd", 0, 302.0) + _text("redirect", mark=b"") + _text(redirect) + ends
    why = _text("description", mark=b"") + _text("redirected")  # without one, FFmpeg takes no notice
    information = code + _text("NetConnection.Connect.Rejected") + why + _text("ex", mark=b"") + extra + ends
    body = _text("_error") + struct.pack(">Bd", 0, 1.0) + b"\x05\x03" + information
    head = b"\x03\0\0\0" + len(body).to_bytes(3, "big") + b"\x14\0\0\0\0"
    return head + b"\xc3".join(body[at : at + 128] for at in range(0, len(body), 128))


def test_ffmpeg_follows_no_redirect_of_an_rtmp_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as other:
        first.settimeout(30)
        other.settimeout(0.5)
        asked: list[bytes] = []

        def answer() -> None:
            with suppress(OSError), first.accept()[0] as client:
                client.settimeout(30)
                received = b""
                while len(received) < 1537:
                    received += client.recv(65536)
                client.sendall(b"\x03" + b"\0" * 1536 + received[1:1537])
                while b"connect" not in received[1537 + 1536 :]:
                    received += client.recv(65536)
                asked.append(received[1537 + 1536 :])
                client.sendall(_rejection(f"rtmp://127.0.0.1:{other.getsockname()[1]}/live"))
                client.recv(1)

        server = threading.Thread(target=answer, daemon=True)
        server.start()
        with pytest.raises(SourceNotFound, match="cannot be opened"):
            _open(f"rtmp://127.0.0.1:{first.getsockname()[1]}/live/camera")
        server.join(300)
        assert b"tcUrl" in asked[0]
        with pytest.raises(TimeoutError):
            other.accept()
