"""Load test of the model service, `sightline bench service`: many clients at once for some minutes.

The service is a separate process, started as a user starts it, with a token. Every client sends its next question as
soon as it has an answer, waits when the service refuses (429), and compares each answer with the answer that the same
question got without load: no answer may be lost or belong to another question.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, SecretStr

from index.errors import ServiceUnavailable, UsageError
from pipeline.demo.render import camera_name, questions
from pipeline.questions.asker import Asker
from pipeline.service.client import ServiceClient, references
from pipeline.service.schemas import AnswerBody

__all__ = ["LoadReport", "bench_service"]

_SEED = 11
_CAMERAS = 2
_START_SECONDS = 900.0
_STOP_SECONDS = 120.0
_DEADLINE_SECONDS = 600.0
_SAMPLES = 60


class Quantiles(BaseModel):
    """Quantiles of a duration in seconds."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    p50: float
    """Median."""
    p95: float
    """95 % quantile."""
    p99: float
    """99 % quantile."""
    most: float
    """Maximum."""


class LoadSample(BaseModel):
    """State of the service at one time."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    at_seconds: float
    """Seconds since the clients began."""
    rss_bytes: int
    """Resident memory of the service's process."""
    queue_depth: int
    """Questions in its queue."""


class LoadReport(BaseModel):
    """Result of the load test."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    profile: str
    """Name of the profile."""
    machine: str
    """The machine, in words."""
    clients: int
    """Clients at once."""
    seconds: float
    """How long they asked."""
    questions: int
    """Different questions."""
    frames: int
    """Frames of the largest question."""
    requests: int
    """Questions sent."""
    answered: int
    """Questions answered."""
    lost: dict[str, int]
    """Questions without an answer, by what came instead."""
    wrong: int
    """Answers that differ from those without load."""
    refused: int
    """Refusals (429), each of which was asked again."""
    answers_per_second: float
    """Answers a second."""
    latency: Quantiles
    """From the first attempt to the whole answer; waits after a refusal are included."""
    first_token: Quantiles
    """From the first attempt to the first token."""
    rss_bytes: dict[str, int]
    """Resident memory of the service's process: `start` after every question was asked once, `middle`, `end` after the
    last answer, and `most`."""
    rss_growth: float
    """`end` by `start`, less 1."""
    deepest_queue: int
    """Largest number of questions in the queue."""
    samples: list[LoadSample]
    """States of the service over time."""
    exit_code: int
    """Exit code of the service's process after SIGTERM."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A request's body, and the answer it got without load."""

    body: bytes
    text: str
    probabilities: tuple[float, ...]


@dataclass(slots=True)
class _Tally:
    """What all clients measured so far."""

    latency: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    refused: int = 0
    wrong: int = 0
    samples: list[LoadSample] = field(default_factory=list)


def bench_service(
    profile: str = "micro", *, clients: int = 50, seconds: float = 180.0, minutes: float = 2.0
) -> LoadReport:
    """Render and ingest footage, start a service, and ask it for some time.

    Args:
        profile: name of the profile, or the path of its TOML file.
        clients: clients at once.
        seconds: how long they ask.
        minutes: length of the footage.

    Raises:
        ServiceUnavailable: the service does not start.
        UsageError: the footage is too short for any question.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as folder:
        store = _store(Path(folder), profile, minutes)
        token = SecretStr(secrets.token_urlsafe(32))
        with _service(store, profile, token, waiting=clients) as (process, url):
            tasks, frames = _tasks(store, url, token, minutes)
            tally = _Tally()
            spent = asyncio.run(_load(url, token, tasks, clients, seconds, tally))
            process.send_signal(signal.SIGTERM)
            code = process.wait(_STOP_SECONDS)
    rss = [sample.rss_bytes for sample in tally.samples]
    middle = min(tally.samples, key=lambda sample: abs(sample.at_seconds - seconds / 2)).rss_bytes
    return LoadReport(
        profile=profile,
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        clients=clients,
        seconds=seconds,
        questions=len(tasks),
        frames=frames,
        requests=tally.requests,
        answered=len(tally.latency),
        lost=dict(tally.lost),
        wrong=tally.wrong,
        refused=tally.refused,
        answers_per_second=len(tally.latency) / spent,
        latency=_quantiles(tally.latency),
        first_token=_quantiles(tally.first_token),
        rss_bytes={"start": rss[0], "middle": middle, "end": rss[-1], "most": max(rss)},
        rss_growth=rss[-1] / rss[0] - 1,
        deepest_queue=max(sample.queue_depth for sample in tally.samples),
        samples=tally.samples,
        exit_code=code,
    )


def _store(folder: Path, profile: str, minutes: float) -> str:
    """Render and ingest footage in processes of their own, and return the URL of the store."""
    store = str(folder / "store")
    command = [sys.executable, "-m", "pipeline.cli"]
    footage = str(folder / "footage")
    numbers = ["--seed", str(_SEED), "--minutes", str(minutes), "--cameras", str(_CAMERAS)]
    subprocess.run([*command, "render", *numbers, "--out", footage], check=True, stdout=sys.stderr)
    ingest = [*command, "ingest", footage, "--store", store, "--profile", profile]
    subprocess.run(ingest, check=True, stdout=sys.stderr)
    return store


@contextmanager
def _service(
    store: str, profile: str, token: SecretStr, *, waiting: int
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a model service as a process and yield it with its URL once it listens. It is killed at the end if it still
    runs."""
    options = ["--port", "0", "--waiting", str(waiting), "--deadline", str(_DEADLINE_SECONDS)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "model-service", "--store", store, "--profile", profile, *options],
        env={**os.environ, "SIGHTLINE_SERVICE_TOKEN": token.get_secret_value()},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = _first_line(process.stdout)
        if not line.startswith("listening on "):
            raise ServiceUnavailable(f"the model service did not start within {_START_SECONDS:g} s; its error is above")
        yield process, line.removeprefix("listening on ").strip()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_STOP_SECONDS)


def _first_line(stream: IO[str]) -> str:
    """Return the first line, or an empty string if the stream ends or the time is up before it comes."""
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(_START_SECONDS)
    return lines[0] if lines else ""


def _tasks(store: str, url: str, token: SecretStr, minutes: float) -> tuple[list[_Task], int]:
    """Ask questions about every camera once, every other one with options. Returns them, and the frames of the
    largest."""
    tasks, frames = [], 0
    with ServiceClient(url, token, deadline_seconds=_DEADLINE_SECONDS) as client:
        asker = Asker(store, service=client)
        for camera in range(_CAMERAS):
            for number, question in enumerate(questions(_SEED, camera, minutes)):
                options = question.options if number % 2 else ()
                selection = asker.select(question.text, streams=[camera_name(camera)])
                window = selection.window
                keyframes = np.isin(np.arange(len(window)), selection.keyframes)
                body = AnswerBody(
                    question=question.text,
                    options=list(options),
                    frames=references(window, keyframes),
                    deadline_seconds=_DEADLINE_SECONDS,
                )
                *_, last = client.answer(question.text, options, window, keyframes)
                assert last.answer is not None
                content = body.model_dump_json(exclude_none=True).encode()
                tasks.append(_Task(content, last.answer.text, last.answer.probabilities))
                frames = max(frames, len(window))
    if not tasks:
        raise UsageError(
            f"--minutes {minutes:g}: the footage is too short for a question; give more minutes, such as 1.5"
        )
    return tasks, frames


async def _load(
    url: str, token: SecretStr, tasks: Sequence[_Task], clients: int, seconds: float, tally: _Tally
) -> float:
    """Run all clients until each has its last answer, and return the seconds that took."""
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
    limits = httpx.Limits(max_connections=clients + 2, max_keepalive_connections=clients + 2)
    timeout = httpx.Timeout(_DEADLINE_SECONDS + 30, pool=None)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=timeout, trust_env=False
    ) as http:
        await _sample(http, 0.0, tally)
        began = time.monotonic()
        turn = itertools.count()

        async def client() -> None:
            """Ask one question after another until the time is over."""
            while time.monotonic() < began + seconds:
                await _ask(http, tasks[next(turn) % len(tasks)], tally)

        async def sampler() -> None:
            """Sample the metrics of the service until cancelled."""
            while True:
                await asyncio.sleep(max(0.5, seconds / _SAMPLES))
                await _sample(http, time.monotonic() - began, tally)

        watching = asyncio.create_task(sampler())
        try:
            await asyncio.gather(*(client() for _ in range(clients)))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        spent = time.monotonic() - began
        await _sample(http, spent, tally)
    return spent


async def _ask(http: httpx.AsyncClient, task: _Task, tally: _Tally) -> None:
    """Send one question and count its answer, or the error in its place."""
    tally.requests += 1
    began = time.monotonic()
    headers = {"Content-Type": "application/json"}
    try:
        while True:
            async with http.stream("POST", "/v1/answer", content=task.body, headers=headers) as response:
                if response.status_code == 429:
                    await response.aread()
                    tally.refused += 1
                    wait = int(response.headers.get("retry-after", "1"))
                elif response.status_code != 200:
                    tally.lost[json.loads(await response.aread())["error"]["code"]] += 1
                    return
                else:
                    await _read(response, task, tally, began)
                    return
            await asyncio.sleep(wait)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        tally.lost[type(error).__name__] += 1


async def _read(response: httpx.Response, task: _Task, tally: _Tally, began: float) -> None:
    name, first, done = "", None, None
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            first = first or time.monotonic() - began
            data: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if name == "error":
                tally.lost[data["error"]["code"]] += 1
                return
            done = data if name == "answer" else done
    if done is None or first is None:
        tally.lost["cut off"] += 1
        return
    tally.latency.append(time.monotonic() - began)
    tally.first_token.append(first)
    near = all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(done["probabilities"], task.probabilities, strict=True))
    tally.wrong += done["text"] != task.text or not near


async def _sample(http: httpx.AsyncClient, at: float, tally: _Tally) -> None:
    text = (await http.get("/metrics")).text
    values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    tally.samples.append(
        LoadSample(
            at_seconds=round(at, 1),
            rss_bytes=int(values["process_resident_memory_bytes"]),
            queue_depth=int(values["sightline_queue_depth"]),
        )
    )


def _quantiles(values: Sequence[float]) -> Quantiles:
    p50, p95, p99, most = np.quantile(values, [0.5, 0.95, 0.99, 1.0]).tolist() if values else [math.nan] * 4
    return Quantiles(p50=p50, p95=p95, p99=p99, most=most)
