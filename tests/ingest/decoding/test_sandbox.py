"""The parent's side of the sandbox: messages of a process that a hostile file has taken over, and typed errors."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from index.errors import DecodeFailed, NoFrames, NotVideo, SourceNotFound
from ingest.decoding.limits import DecodeLimits
from ingest.decoding.protocol import DONE, ERRORS, FAILED, FRAME, FRAME_BODY, HEADER, MAX_BODY_BYTES, OPENED
from ingest.decoding.sandbox import Decoding, read_frames

LIMITS = DecodeLimits(pixels=64 * 48, stall_seconds=60)


class TakenOver:
    """In place of a decoder's process: it sends these bytes and ends."""

    sent = b""
    pid = 0

    def __init__(self, order: Any, *, source: int, memory: int) -> None:
        self._orders, self.stdin = os.pipe()
        self.stdout, out = os.pipe()
        self.stderr, error = os.pipe()
        os.write(out, self.sent)
        os.close(out)
        os.close(error)

    def wait(self) -> int:
        return 3

    def close(self) -> None:
        if self._orders >= 0:
            for descriptor in (self._orders, self.stdin, self.stdout, self.stderr):
                os.close(descriptor)
        self._orders = -1


def message(kind: bytes, body: bytes | dict[str, Any]) -> bytes:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HEADER.pack(kind, len(body)) + body


OPEN = {"mode": "all", "first": 0.0, "duration": 1.0, "created": None}
OPENED_OK = message(OPENED, OPEN)


def decode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes, name: str | None = None) -> list[Any]:
    monkeypatch.setattr("ingest.decoding.sandbox.DecoderProcess", type("Sending", (TakenOver,), {"sent": sent}))
    (tmp_path / "v.mp4").write_bytes(b"footage")
    with Decoding(tmp_path / "v.mp4", name=name, limits=LIMITS) as decoding:
        return list(decoding)


@pytest.mark.parametrize(
    "sent",
    [
        message(b"?", b""),
        message(DONE, b"all"),
        HEADER.pack(OPENED, MAX_BODY_BYTES + 1),
        message(OPENED, b"\xff"),
        message(OPENED, b"["),
        message(OPENED, b"[" * 50_000),
        message(OPENED, b"[]"),
        message(OPENED, {}),
        message(OPENED, {**OPEN, "mode": "quick"}),
        message(OPENED, {**OPEN, "mode": ["all"]}),
        message(OPENED, {**OPEN, "first": "never"}),
        message(OPENED, {**OPEN, "first": float("nan")}),
        message(OPENED, {**OPEN, "duration": "long"}),
        message(OPENED, {**OPEN, "duration": float("inf")}),
        message(OPENED, {**OPEN, "created": "yesterday"}),
        message(OPENED, {**OPEN, "created": 3}),
        OPENED_OK + OPENED_OK,
        OPENED_OK + message(DONE, b"nonref"),
        OPENED_OK + message(DONE, {"mode": "quick", "discontinuities": [], "count": 0}),
        OPENED_OK + message(DONE, {"mode": "all", "discontinuities": [["nan", 0, True]], "count": 1}),
        OPENED_OK + message(DONE, {"mode": "all", "discontinuities": [[1]], "count": 1}),
        OPENED_OK + message(DONE, {"mode": "all", "discontinuities": 3, "count": 1}),
        OPENED_OK + message(DONE, {"mode": "all"}),
        OPENED_OK + message(DONE, b"\xff"),
        OPENED_OK + message(FRAME, b"short"),
        OPENED_OK + message(FRAME, FRAME_BODY.pack(0.0, 0, 64, 49, 0)),
        OPENED_OK + message(FRAME, FRAME_BODY.pack(0.0, 1, 64, 48, 0)),
        OPENED_OK + message(FRAME, FRAME_BODY.pack(0.0, 2**63, 1, 1, 0)),
        OPENED_OK + message(FRAME, FRAME_BODY.pack(0.0, 0, 0, 48, 0)),
        OPENED_OK + message(FRAME, FRAME_BODY.pack(0.0, 0, 2**32 - 1, 2**32 - 1, 0)),
        OPENED_OK + message(FRAME, FRAME_BODY.pack(struct.unpack("<d", b"\xff" * 8)[0], 0, 1, 1, 0)),
        message(FAILED, {"type": "UsageError", "message": "another type"}),
        message(FAILED, {"type": "SourceDenied", "message": "another source error"}),
        message(FAILED, {"type": "mask_url", "message": "no error at all"}),
        message(FAILED, {"type": ["NoFrames"], "message": "unhashable"}),
        message(FAILED, {"type": "NoFrames"}),
        message(FAILED, b"null"),
    ],
)
def test_an_invalid_message_fails_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(DecodeFailed, match="sent an invalid message"):
        decode(monkeypatch, tmp_path, sent)


def test_a_frame_within_bounds_is_a_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frame = message(FRAME, FRAME_BODY.pack(0.5, 0, 64, 48, 1))
    [(pts, pixels)] = decode(
        monkeypatch,
        tmp_path,
        OPENED_OK + frame + message(DONE, {"mode": "nonref", "discontinuities": [[1.5, -3.0, True]], "count": 1}),
    )
    assert (pts, pixels.shape, pixels.flags.writeable) == (0.5, (64, 48, 3), True)  # turned by 90 degrees


@pytest.mark.parametrize("kind", [NotVideo, NoFrames, DecodeFailed])
def test_a_reported_error_keeps_its_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Exception]
) -> None:
    assert ERRORS[kind.__name__] is kind
    sent = message(FAILED, {"type": kind.__name__, "message": "the reason"})
    with pytest.raises(kind, match=r"^rtsp://\*\*\*@camera/v: the reason$"):
        decode(monkeypatch, tmp_path, sent, name="rtsp://user:hunter2@camera/v")


@pytest.mark.parametrize("sent", [b"", b"F", OPENED_OK, OPENED_OK[:-1]])
def test_a_process_that_ends_early_fails_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes) -> None:
    with pytest.raises(DecodeFailed, match=r"stopped with exit code 3 .*other files are not affected"):
        decode(monkeypatch, tmp_path, sent)


def test_a_file_that_is_gone_is_named_as_its_source(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"^front: No such file"):
        Decoding(tmp_path / "absent.mp4", name="front")
    with pytest.raises(NotVideo, match=r"^front: not a regular file"):
        Decoding(tmp_path, name="front")


def test_errors_of_a_remote_source_name_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_bytes(b"no film\n" * 500)
    with pytest.raises(NotVideo) as caught:
        list(read_frames(f"file://{tmp_path}/text.mp4"))
    assert str(caught.value).startswith(f"file://{tmp_path}/text.mp4: not a video file")
