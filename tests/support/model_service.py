"""A model service on a loopback address, an answerer that follows a script, and footage in memory."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from index.errors import UnknownFrame, UnknownStream
from model.answerer import Answerer, AnswerRequest
from model.answers import Answer, AnswerPiece
from pipeline.service.answers.finished import FrameReferences
from pipeline.service.app import ModelService
from pipeline.service.server import server_config
from tests.support.tiny_checkpoints import CLIP_WIDTH, PATCHES, WIDTH

BEGAN = 1_709_280_000_000_000
QUESTION = "what colour was the truck at the gate ?"
LENGTHS = {"front": 12, "back": 7}

WAIT = 300.0
TOKEN = "a-token-of-twenty-or-so"
Serve = Callable[..., httpx.Client]


def captured(stream: str) -> list[int]:
    """Capture times of a stream of `Footage`, UTC microseconds."""
    return [BEGAN + i * 1_000_000 for i in range(LENGTHS[stream])]


class Footage:
    """Random patches of two streams, as a `FrameSource`.

    `choose` selects all frames, every fourth as a keyframe, and appends its arguments to `asked`.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.frames = {
            (stream, at): rng.standard_normal((PATCHES, WIDTH)).astype(np.float16)
            for stream in LENGTHS
            for at in captured(stream)
        }
        self.asked: list[dict[str, Any]] = []

    def patches(self, rows: FrameReferences, part: slice, out: NDArray[np.float16]) -> None:
        names = [rows.stream_ids[i] for i in rows.stream_index[part].tolist()]
        for row, name, at in zip(out, names, rows.captured_at[part].tolist(), strict=True):
            if (name, at) not in self.frames:
                raise UnknownFrame(f"{name}: the store has no frame at {at}")
            row[:] = self.frames[name, at]

    def features(self, rows: FrameReferences, part: slice) -> NDArray[np.float32]:
        return np.ones((len(rows.captured_at[part]), CLIP_WIDTH), np.float32)

    def choose(
        self, question: str, *, streams: Sequence[str] | None, max_frames: Callable[[int], int], **where: Any
    ) -> FrameReferences:
        self.asked.append({"question": question, "streams": streams, **where})
        names = sorted(streams or LENGTHS)
        for name in names:
            if name not in LENGTHS:
                raise UnknownStream(f"{name}: the store has no such stream")
        times = [captured(name) for name in names]
        keyframe = np.concatenate([np.arange(len(each)) % 4 == 0 for each in times])
        assert sum(map(len, times)) <= max_frames(int(keyframe.sum()))
        index = np.concatenate([np.full(len(each), i, np.int32) for i, each in enumerate(times)])
        return FrameReferences(names, index, np.concatenate([np.asarray(each, np.int64) for each in times]), keyframe)


Script = Callable[[AnswerRequest], Iterator[str]]


class Scripted(Answerer):
    """An answerer whose answers come from `script`, a generator of texts; without a script the model answers."""

    script: Script | None = None

    @classmethod
    def of(cls, real: Answerer, script: Script | None = None) -> Scripted:
        made = cls(real.profile, real.encoders, real.connector, real.language)
        made.script = script
        return made

    def answer(self, request: AnswerRequest) -> Iterator[AnswerPiece]:
        if self.script is None:
            yield from super().answer(request)
            return
        answer = ""
        for text in self.script(request):
            answer += text
            yield AnswerPiece(text)
        yield AnswerPiece("", Answer(answer, None, (), 0, 1, {"decode": 0.001}, len(answer.split())))


@contextmanager
def served(service: ModelService) -> Iterator[str]:
    """Serve on a real socket and yield the URL; on exit the server's thread has ended."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(server_config(service))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        listening.close()
        service.admission.stop(0.0)


@contextmanager
def client(url: str, token: str | None = None) -> Iterator[httpx.Client]:
    """An HTTP client of a served service."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=600, trust_env=False) as opened:
        yield opened


def body(*, streams: Sequence[str] = ("front",), **more: Any) -> dict[str, Any]:
    """A request about whole streams, every fourth frame a keyframe."""
    frames = [
        {"stream_id": name, "captured_at": captured(name), "keyframes": list(range(0, LENGTHS[name], 4))}
        for name in streams
    ]
    return {"question": QUESTION, "frames": frames, **more}


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Name and data of each server-sent event."""
    name = "message"
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield name, data if data == "[DONE]" else json.loads(data)
            name = "message"


def metric(opened: httpx.Client, name: str) -> float:
    """The value of one metric without labels."""
    for line in opened.get("/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


def until(true: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait until `true()` holds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Holds:
    """A script that sets `began`, waits for `go`, and answers."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.runs = 0

    def __call__(self, request: AnswerRequest) -> Iterator[str]:
        self.runs += 1
        self.began.set()
        assert self.go.wait(WAIT)
        yield "held"


class Memory:
    """An object whose deletion a test can observe through a weak reference."""
