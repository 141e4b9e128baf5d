"""Writers of one store in an object store, each a process with caches of its own: what they cost one another.

An S3 server (moto, of the extra `dev`) runs in a process of its own and counts requests. Each writer stands for a
`consume` worker with a partition and a camera of its own: it commits segments with their offsets, with a pause between
two commits, and does not decode or encode. A commit writes a file and an entry of the log to each of three tables. An
attempt to write an entry whose number another writer took first is refused; the writer reads that entry and tries the
next number, and does not write its file again. What is lost to such attempts is `refused`; reading the others' entries
is not lost to retries, and is counted in `requests_lost`.

The server is one Python process, slower than a real object store, and shares the cores with the writers, so seconds on
the clock are upper bounds and `time_lost` contains waiting for a core; CPU seconds are those of the writers alone. Does
not measure decoding, encoders, or Kafka.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pydantic import BaseModel, ConfigDict
from werkzeug.serving import WSGIRequestHandler, make_server

from index.child_processes import process_pool
from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.records import FrameRecords
from index.store import Store
from pipeline.bench.scale.synthetic import covering_segment, synthetic_encoders

__all__ = ["WritersBench", "WritersRow", "bench_writers"]

_BUCKET = "bench"
_BEGAN = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z
_SECOND = 1_000_000


class WritersRow(BaseModel):
    """So many writers at the same time."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    writers: int
    """Processes that commit."""
    commits: int
    """Commits of all of them, each to three tables."""
    frames: int
    """Frames that the store has afterwards."""
    seconds: float
    """From the first commit to the end of the last one."""
    commits_per_second: float
    """`commits` by `seconds`."""
    commit_seconds_median: float
    """Median duration of a commit."""
    commit_seconds_max: float
    """Longest commit."""
    requests_per_commit: float
    """Requests to the object store by commits."""
    requests: dict[str, float]
    """The same by method and kind of object: entry (of a log), list, checkpoint, file, other."""
    requests_lost: float
    """Share of these requests that one writer alone would not have made."""
    refused: float
    """Share of the attempts to write an entry that were refused, because another writer's came first."""
    cpu_seconds_per_commit: float
    """CPU seconds of the writers by commits."""
    time_lost: float
    """Share of the writers' time, pauses included, by which their commits are longer than those of one writer."""


class WritersBench(BaseModel):
    """Result of the benchmark."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cores: int
    """Cores of the machine, which the server and all writers share."""
    load: float
    """Load average of the machine at the end (one minute)."""
    pause_seconds: float
    """Pause of a writer between two commits."""
    frames_per_commit: int
    """Frames of a commit."""
    rows: list[WritersRow]
    """One row for each number of writers, ascending."""


def bench_writers(
    numbers: Sequence[int], *, commits: int = 10, pause: float = 2.0, frames: int = 60, dimension: int = 512
) -> WritersBench:
    """Let 1 and then each number of writers commit to a new store.

    Args:
        numbers: numbers of writers; 1 is always measured, for comparison.
        commits: commits of each writer.
        pause: seconds between two commits of a writer; `consume` has `consume.commit_seconds`.
        frames: frames of a commit, one a second.
        dimension: length of the frame vectors.
    """
    rows: list[WritersRow] = []
    with _server() as (endpoint, counts):
        for writers in sorted({1, *numbers}):
            url = f"s3://{_BUCKET}/store-{writers}"
            Store.create(url, synthetic_encoders(dimension))
            counts()
            with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder, process_pool(writers) as pool:
                work = (url, endpoint, folder, writers, commits, pause, frames)
                tasks = [pool.submit(_write, number, *work) for number in range(writers)]
                done = [task.result() for task in tasks]
                requests = counts()
            stored = sum(each.frames for each in Store.open(url).streams())
            rows.append(_row(writers, done, requests, stored, pause, rows[0] if rows else None))
    return WritersBench(
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2),
        pause_seconds=pause,
        frames_per_commit=frames,
        rows=rows,
    )


def _row(
    writers: int,
    done: Sequence[tuple[float, list[float], float, float]],
    requests: Counter[str],
    frames: int,
    pause: float,
    alone: WritersRow | None,
) -> WritersRow:
    took = np.array([seconds for _, each, _, _ in done for seconds in each])
    total = len(took)
    each = requests.total() / total
    seconds = max(end for _, _, end, _ in done) - min(began for began, _, _, _ in done)
    kinds: Counter[str] = Counter()
    for kind, count in requests.items():
        kinds[kind.removesuffix(" refused")] += count
    refused = requests["PUT entry refused"]
    median = float(np.median(took))
    return WritersRow(
        writers=writers,
        commits=total,
        frames=frames,
        seconds=round(seconds, 2),
        commits_per_second=round(total / seconds, 2),
        commit_seconds_median=round(median, 3),
        commit_seconds_max=round(float(took.max()), 3),
        requests_per_commit=round(each, 1),
        requests={kind: round(count / total, 2) for kind, count in sorted(kinds.items())},
        refused=round(refused / max(1, kinds["PUT entry"]), 4),
        cpu_seconds_per_commit=round(sum(used for _, _, _, used in done) / total, 4),
        requests_lost=0.0 if alone is None else round(max(0.0, 1 - alone.requests_per_commit / each), 3),
        time_lost=0.0 if alone is None else round(max(0.0, median - alone.commit_seconds_median) / (median + pause), 3),
    )


def _write(
    number: int, url: str, endpoint: str, folder: str, writers: int, commits: int, pause: float, frames: int
) -> tuple[float, list[float], float, float]:
    """One writer: the time of its first commit, the seconds of each, the time of its end, and the CPU seconds of the
    commits; once all are ready."""
    os.environ.update(_variables(endpoint))
    store = Store.open(url)
    committer, app = OffsetCommitter(store.tables), f"bench/{number}"
    batches = [_batch(store, number, app, at, frames) for at in range(commits)]
    ready = Path(folder)
    (ready / str(number)).touch()
    while len(os.listdir(ready)) < writers:
        time.sleep(0.05)
    time.sleep(pause * number / writers)  # workers do not commit in step
    began, took, used = time.time(), [], time.process_time()
    for at, batch in enumerate(batches):
        if at:
            time.sleep(pause)
        since = time.perf_counter()
        committer.commit([batch], {app: OffsetAdvance(at or None, at + 1)})
        took.append(time.perf_counter() - since)
    return began, took, time.time(), time.process_time() - used


def _batch(store: Store, number: int, app: str, at: int, frames: int) -> OffsetSegment:
    pair, rng = store.encoders, np.random.default_rng(number * 1000 + at)
    start = _BEGAN + at * frames * _SECOND
    vectors = rng.standard_normal((frames, pair.frame.dimension), np.float32)
    records = FrameRecords(
        stream_id=f"camera-{number}",
        clock_source="given",
        captured_at=start + np.arange(frames, dtype=np.int64) * _SECOND,
        pts_seconds=np.arange(frames, dtype=np.float64),
        frame_vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        patch_pooled=np.full((frames, pair.patch.dimension), 0.5, np.float32),
        patches=np.zeros((frames, pair.patches, pair.patch.dimension), np.float16),
        pictures=[b"picture"] * frames,
    )
    segment = covering_segment(records, source=app, chunk=at)
    return OffsetSegment(app, segment, records)


def _variables(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench-of-writers",
    }


class _Quiet(WSGIRequestHandler):
    """Serves a connection and writes no log."""

    def log(self, type: str, message: str, *args: object) -> None:
        """Write nothing."""


def _serve(folder: str) -> None:
    """Serve S3 until `/.stop` is asked for; `/.counts` gives the requests by kind since the last call."""
    counted: Counter[str] = Counter()
    backend = DomainDispatcherApplication(create_backend_app)

    def application(environment: dict[str, Any], reply: Callable[..., Any]) -> Iterable[bytes]:
        """The server, counting."""
        path = environment["PATH_INFO"]
        if path in ("/.counts", "/.stop"):
            body = json.dumps(counted).encode()
            counted.clear()
            if path == "/.stop":
                threading.Thread(target=server.shutdown, daemon=True).start()
            reply("200 OK", [("Content-Length", str(len(body)))])
            return [body]

        def counting(status: str, *arguments: Any) -> Any:
            """Count a reply."""
            kind = f"{environment['REQUEST_METHOD']} {_kind(path, environment.get('QUERY_STRING', ''))}"
            counted[f"{kind} refused" if status[:3] in ("409", "412") else kind] += 1
            return reply(status, *arguments)

        replied: Iterable[bytes] = backend(environment, counting)
        return replied

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    part = Path(folder) / "port.part"
    part.write_text(str(server.server_port), encoding="ascii")
    part.rename(Path(folder) / "port")
    server.serve_forever()


def _kind(path: str, query: str) -> str:
    """What a request to the object store is about."""
    if "list-type" in query:
        return "list"
    if "/_delta_log/" in path:
        return "entry" if path.endswith(".json") else "checkpoint"
    return "file" if path.endswith(".parquet") else "other"


@contextmanager
def _server() -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """An S3 server with an empty bucket in a process of its own: its endpoint, and a function that gives the requests
    by kind since its last call.

    Not in this process: deltalake holds the lock of the interpreter while it waits for some replies.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder, process_pool(1) as pool:
        served = pool.submit(_serve, folder)
        while not (Path(folder) / "port").exists():
            if served.done():
                served.result()
            time.sleep(0.05)
        endpoint = f"http://127.0.0.1:{(Path(folder) / 'port').read_text(encoding='ascii')}"

        def counts() -> Counter[str]:
            """Requests by kind since the last call."""
            return Counter(httpx.get(f"{endpoint}/.counts", trust_env=False, timeout=60).json())

        before = {name: os.environ.get(name) for name in _variables(endpoint)}
        os.environ.update(_variables(endpoint))
        try:
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=_BUCKET)
            yield endpoint, counts
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            httpx.get(f"{endpoint}/.stop", trust_env=False, timeout=60)
