"""Benchmark of the desk over HTTP.

Makes a store of a million frames with random vectors and no patches, if there is none, serves it in a process of its
own, and measures what a browser waits for: the first page, a list of results, and thumbnails. A search is measured with
texts that were not searched before; the store is in memory then, as it is a few seconds after the start. The weight of
the page is that of all its files, as they are sent.
"""

from __future__ import annotations

import io
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
from pipeline.web.app import ASSETS

__all__ = ["bench_desk", "make_store"]

_BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z
_SECOND = 1_000_000
_DAY = 86_400
_PART = 21_600  # frames of a segment
_WORDS = ("red", "blue", "green", "white", "black", "dog", "bird", "car", "person", "umbrella")


def _picture(width: int) -> bytes:
    """A JPEG of coloured spots, as ingest stores it; 16 kB at a width of 480."""
    ground = np.random.default_rng(0).integers(0, 256, (9, 16, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(ground).resize((width, width * 9 // 16), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()


def make_store(folder: Path, frames: int, picture_width: int = 480) -> Store:
    """A store of `frames` frames in streams of a day each; the vectors are random, and there are no patches.

    Patches, which `pipeline.bench.scale.synthetic` makes too, would be most of its bytes, and the desk reads none here.
    """
    encoders = load_encoders(load_profile("micro"), "cpu")
    store = Store.create(folder, encoders.pair)
    rng, dimension, picture = np.random.default_rng(1), encoders.pair.frame.dimension, _picture(picture_width)
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
                "frame_norm": np.ones(count, np.float32),
            }
            store.tables.frames.append_if_new(pa.table(columns).cast(FRAMES), stream, chunk)
            row = pa.Table.from_pylist([segment_row(key, segment)], schema=SEGMENTS)
            store.tables.segments.append_if_new(row, stream, chunk)
    return store


def _cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _timed(pid: int, calls: Sequence[Callable[[], httpx.Response]]) -> dict[str, float]:
    """Send requests one after the other."""
    took, before = list[float](), _cpu_seconds(pid)
    for call in calls:
        began = time.perf_counter()
        reply = call()
        took.append(time.perf_counter() - began)
        reply.raise_for_status()
    return {
        "median_ms": round(1_000 * float(np.median(took)), 1),
        "p95_ms": round(1_000 * float(np.quantile(took, 0.95)), 1),
        "mean_cpu_ms": round(1_000 * (_cpu_seconds(pid) - before) / len(took), 1),
        "count": len(took),
    }


def _measure(http: httpx.Client, pid: int, searches: int, thumbnails: int) -> dict[str, Any]:
    def first_page() -> httpx.Response:
        for path in ("/", "/api/v1/session"):
            http.get(path).raise_for_status()
        return http.get("/api/v1/streams")

    def search(text: str, cursor: str | None = None) -> httpx.Response:
        body = {"text": text} if cursor is None else {"text": text, "cursor": cursor}
        return http.post("/api/v1/search", json=body)

    files = [path.relative_to(ASSETS).as_posix() for path in ASSETS.rglob("*") if path.is_file()]
    weight = sum(len(http.get(f"/assets/{name}").raise_for_status().content) for name in files)
    cold = _timed(pid, [first_page])
    pages = _timed(pid, [first_page] * 10)
    rng = np.random.default_rng(2)
    search("ready").raise_for_status()
    deadline = time.monotonic() + 300
    while http.get("/api/v1/session").json()["model"] != "embedded" and time.monotonic() < deadline:
        time.sleep(1)
    for text in ("dog", "cat", "bird"):  # until the vectors are in memory
        search(text).raise_for_status()
    texts = [f"a {first} {second}" for first in _WORDS for second in _WORDS][:searches]
    lists = _timed(pid, [partial(search, text) for text in texts])
    found = search(texts[0]).json()
    following = _timed(pid, [partial(search, texts[0], found["next"])] * 10)
    streams = http.get("/api/v1/streams").json()["items"]
    shots = []
    for _ in range(thumbnails):
        stream = streams[int(rng.integers(len(streams)))]
        at = rfc3339(_BEGAN + int(rng.integers(0, stream["frames"])) * _SECOND)
        where = {"stream": stream["stream_id"], "at": at, "width": 320}
        shots.append(partial(http.get, "/api/v1/thumbnail", params=where))
    return {
        "page_weight_kb": round(weight / 1_000, 1),
        "first_page_after_start": cold,
        "first_page": pages,
        "search_list": lists,
        "next_page": following,
        "thumbnail": _timed(pid, shots),
    }


def bench_desk(store: Path, *, frames: int, picture_width: int, searches: int, thumbnails: int) -> dict[str, Any]:
    """Measure a desk over a store of random vectors.

    Args:
        store: folder of the store, which is made if it is missing.
        frames: frames of a store that is made.
        picture_width: width of its pictures, in pixels.
        searches: number of searches, at most 100.
        thumbnails: number of thumbnails.

    Returns:
        Times of requests in milliseconds, and the CPU time that the desk spent on each, which other work on the
        machine changes less.
    """
    began, made = time.perf_counter(), not store.exists()
    if made:
        with tempfile.TemporaryDirectory(dir=store.absolute().parent) as folder:  # one that was stopped is no store
            make_store(Path(folder, "store"), frames, picture_width)
            Path(folder, "store").rename(store)
    took = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "pipeline.cli", "serve", "--store", str(store), "--state", state]
        process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = process.stdout.readline().partition("http://")[2].partition(";")[0].strip()
            with httpx.Client(base_url=f"http://{url}", timeout=300, trust_env=False) as http:
                measured = _measure(http, process.pid, searches, thumbnails)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    streams = Store.open(store).streams()
    return {
        "what": "the desk over HTTP on loopback, one client",
        "frames": sum(each.frames for each in streams),
        "streams": len(streams),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
        "store_made_seconds": round(took, 1) if made else None,
        **measured,
    }
