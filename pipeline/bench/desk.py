"""Benchmark of the desk over HTTP: `python -m pipeline.bench.desk --store FOLDER`, JSON on standard output.

Makes a store of a million frames with random vectors and no patches, if there is none, serves it in a process of its
own, and measures what a browser waits for: the first page, a list of results, and thumbnails. A search is measured with
texts that were not searched before; the store is in memory then, as it is a few seconds after the start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from PIL import Image

from index.columns import day_of, segment_key, segment_row, to_list_array
from index.records import Segment, rfc3339
from index.schemas import FRAMES, SEGMENTS
from index.store import Store
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile

__all__ = ["main", "make_store"]

_BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z
_SECOND = 1_000_000
_DAY = 86_400
_PART = 21_600  # frames of a segment
_WORDS = ("red", "blue", "green", "white", "black", "dog", "bird", "car", "person", "umbrella")


def _picture() -> bytes:
    """A JPEG of the size that ingest stores."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (9, 16, 3)).repeat(30, 0).repeat(30, 1).astype(np.uint8)
    with tempfile.TemporaryFile() as file:
        Image.fromarray(ground).save(file, "JPEG", quality=85)
        file.seek(0)
        return file.read()


def make_store(folder: Path, frames: int) -> Store:
    """A store of `frames` frames in streams of a day each; the vectors are random, and there are no patches."""
    encoders = load_encoders(load_profile("micro"), "cpu")
    store = Store.create(folder, encoders.pair)
    rng, dimension, picture = np.random.default_rng(1), encoders.pair.frame.dimension, _picture()
    for number in range(-(-frames // _DAY)):
        stream = f"camera-{number + 1}"
        for chunk, first in enumerate(range(0, min(_DAY, frames - number * _DAY), _PART)):
            count = min(_PART, frames - number * _DAY - first, _DAY - first)
            times = _BEGAN + (first + np.arange(count, dtype=np.int64)) * _SECOND
            vectors = rng.standard_normal((count, dimension), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            segment = Segment(
                stream_id=stream,
                source=stream,
                chunk=chunk,
                uri="random",
                start=int(times[0]),
                end=int(times[-1]) + _SECOND,
                frames=count,
                decode_mode="all",
                clock_source="given",
            )
            key = segment_key(segment)
            columns: dict[str, Any] = {
                "stream_id": [stream] * count,
                "date": [day_of(int(times[0]))] * count,
                "captured_at": pa.array(times, pa.timestamp("us", "UTC")),
                "segment": [key] * count,
                "pts_seconds": first + np.arange(count, dtype=np.float64),
                "clock_source": ["given"] * count,
                "frame_vector": to_list_array(vectors),
                "patch_pooled": to_list_array(np.zeros((count, 1), np.float32)),
                "picture": [picture] * count,
            }
            store.tables.frames.append_if_new(pa.table(columns).cast(FRAMES), stream, chunk)
            row = pa.Table.from_pylist([segment_row(key, segment)], schema=SEGMENTS)
            store.tables.segments.append_if_new(row, stream, chunk)
    return store


def _timed(call: Callable[[], httpx.Response]) -> float:
    began = time.perf_counter()
    reply = call()
    took = time.perf_counter() - began
    reply.raise_for_status()
    return took


def _summary(seconds: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(1_000 * float(np.median(seconds)), 1),
        "p95_ms": round(1_000 * float(np.quantile(seconds, 0.95)), 1),
        "count": len(seconds),
    }


def _measure(http: httpx.Client, searches: int, thumbnails: int) -> dict[str, Any]:
    def first_page() -> httpx.Response:
        for path in ("/", "/api/v1/session"):
            http.get(path).raise_for_status()
        return http.get("/api/v1/streams")

    pages = [_timed(first_page) for _ in range(10)]
    rng = np.random.default_rng(2)
    http.post("/api/v1/search", json={"text": "ready"}).raise_for_status()
    deadline = time.monotonic() + 300
    while http.post("/api/v1/search", json={"text": "dog"}).json()["searched"]["seconds"] > 1:
        if time.monotonic() > deadline:
            break
    texts = [f"a {first} {second}" for first in _WORDS for second in _WORDS][:searches]
    lists = [_timed(partial(http.post, "/api/v1/search", json={"text": text})) for text in texts]
    found = http.post("/api/v1/search", json={"text": texts[0]}).json()
    following = [
        _timed(lambda: http.post("/api/v1/search", json={"text": texts[0], "cursor": found["next"]})) for _ in range(10)
    ]
    streams = [each["stream_id"] for each in http.get("/api/v1/streams").json()["items"]]
    shots = []
    for _ in range(thumbnails):
        at = rfc3339(_BEGAN + int(rng.integers(0, 3_600)) * _SECOND)
        where = {"stream": streams[int(rng.integers(len(streams)))], "at": at, "width": 320}
        shots.append(_timed(partial(http.get, "/api/v1/thumbnail", params=where)))
    return {
        "first_page": _summary(pages),
        "search_list": _summary(lists),
        "next_page": _summary(following),
        "thumbnail": _summary(shots),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Benchmark of the desk over HTTP.")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store, which is made if it is missing")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--searches", type=int, default=30)
    parser.add_argument("--thumbnails", type=int, default=300)
    chosen = parser.parse_args()
    if not chosen.store.exists():
        make_store(chosen.store, chosen.frames)
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "pipeline.cli", "serve", "--store", str(chosen.store), "--state", state]
        process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().partition("http://")[2].partition(";")[0].strip()
            with httpx.Client(base_url=f"http://{url}", timeout=300, trust_env=False) as http:
                measured = _measure(http, chosen.searches, chosen.thumbnails)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    report = {
        "what": "the desk over HTTP on loopback, one client",
        "command": f"python -m pipeline.bench.desk --frames {chosen.frames}",
        "frames": sum(each.frames for each in Store.open(chosen.store).streams()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
        **measured,
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
