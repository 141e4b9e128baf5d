"""The Beam pipeline behind `sightline backfill`, which indexes an archive on any engine that runs Beam.

    entries ─▶ probe ─▶ by stream: plan pieces ─▶ reshuffle ─▶ decode + embed ─┬─▶ whole files: Parquet, commit by group
                                                                               └─▶ pieces: staged, then stored in order
    results of every file ─▶ JSON Lines, from which the report is made

Every frame is stored exactly once: the chunks of a commit are the store's transactions, so a repeated bundle and a
repeated run change nothing. `pipeline.backfill.work` does the work; this module knows Beam and no footage.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import apache_beam as beam
import torch
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from index.errors import BackfillFailed, UsageError
from index.store import Store
from ingest.decoding.limits import DecodeLimits
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.backfill.elements import ChunkRange, ProbedFile, StagedRange, WorkerSettings
from pipeline.backfill.manifest import Entry
from pipeline.backfill.report import BackfillReport, FileResult, summary
from pipeline.backfill.runner import check_runner, count, run_pipeline
from pipeline.backfill.staging import get, put, remove
from pipeline.backfill.work import Indexer, commit_group, plan, probe
from pipeline.sandbox_check import check_sandbox

if TYPE_CHECKING:
    from model.encoders.encoder import Encoders

__all__ = ["backfill"]

_ENTRIES_A_SHARD = 500
_RESULT_SHARDS = 16


class _Models:
    """Encoders and store of one worker process. A class, because Beam holds a weak reference to it."""

    def __init__(self, settings: WorkerSettings) -> None:
        check_sandbox(required=settings.limits.require_sandbox)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.encoders: Encoders = load_encoders(load_profile(settings.profile), settings.device)
        self.store = Store.open(settings.store, encoders=self.encoders.pair)


class _Probe(beam.DoFn):  # type: ignore[misc]
    """(row, entry) → `ProbedFile`, or the result of a file that needs no work."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    def setup(self) -> None:
        """Report the sandbox and open the store, once per worker."""
        check_sandbox(required=self._settings.limits.require_sandbox)
        self._store = Store.open(self._settings.store)

    def process(self, element: tuple[int, Entry]) -> Iterator[ProbedFile | FileResult]:
        """Probe one file."""
        found = probe(self._settings, self._store, *element)
        count("files_probed")
        if isinstance(found, FileResult):
            _count_result(found)
        yield found


class _Plan(beam.DoFn):  # type: ignore[misc]
    """(stream, its files) → pieces."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings

    def process(self, element: tuple[str, Iterable[ProbedFile]]) -> Iterator[ChunkRange]:
        """Cut the files of one stream."""
        for piece in plan(self._settings, element[1]):
            count("pieces")
            yield piece


class _WithModels(beam.DoFn):  # type: ignore[misc]
    """A step that needs the models, which are loaded once per worker process and shared by its threads."""

    def __init__(self, settings: WorkerSettings, shared: Shared) -> None:
        self._settings, self._shared = settings, shared

    def setup(self) -> None:
        """Load the models, or share those of another thread."""
        self._models: _Models = self._shared.acquire(lambda: _Models(self._settings))


class _Index(_WithModels):
    """Pieces → results of whole files, and staged pieces of others. Batches are filled across a bundle's pieces."""

    def start_bundle(self) -> None:
        """Begin with empty batches."""
        self._indexer = Indexer(self._settings, self._models.store, self._models.encoders)

    def process(self, piece: ChunkRange) -> Iterator[FileResult | StagedRange]:
        """Decode one piece, and yield what is finished."""
        for done in self._indexer.add(piece):
            yield _counted(done)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Embed the remaining frames, and yield the rest."""
        for done in self._indexer.flush():
            yield WindowedValue(_counted(done), MIN_TIMESTAMP, [GlobalWindow()])


class _Commit(_WithModels):
    """(group, its staged pieces) → results."""

    def process(self, element: tuple[str, Iterable[StagedRange]]) -> Iterator[FileResult]:
        """Commit one group."""
        for result in commit_group(self._settings, self._models.store, self._models.encoders, element[1]):
            _count_result(result)
            yield result


class _Write(beam.DoFn):  # type: ignore[misc]
    """(shard, results) → one JSON Lines file. Repeated work writes the same file."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[int, Iterable[FileResult]]) -> None:
        """Write one file of results."""
        lines = sorted(result.model_dump_json() for result in element[1])
        put(f"{self._folder}/results-{element[0]}.jsonl", "\n".join(lines).encode())


def _count_result(result: FileResult) -> None:
    count(f"files_{result.state}")
    count("frames", result.frames if result.state == "stored" else 0)
    count("footage_seconds", round(result.seconds) if result.state == "stored" else 0)
    count("bytes", result.bytes if result.state == "stored" else 0)
    if result.kind:
        count(f"errors_{result.kind}")


def _counted(done: FileResult | StagedRange) -> FileResult | StagedRange:
    if isinstance(done, FileResult):
        _count_result(done)
    else:
        count("pieces_staged")
    return done


def _is_result(value: object) -> bool:
    return isinstance(value, FileResult)


def _is_not_result(value: object) -> bool:
    return not isinstance(value, FileResult)


def _read_entries(url: str) -> list[tuple[int, Entry]]:
    data = get(url)
    if data is None:
        raise UsageError(f"{url}: not visible from this worker; set --staging to a folder that all workers share")
    return [(number, Entry.model_validate(row)) for number, row in json.loads(data)]


def _stream_of(file: ProbedFile) -> tuple[str, ProbedFile]:
    return file.footage.stream_id, file


def _group_of(staged: StagedRange) -> tuple[str, StagedRange]:
    return staged.piece.group, staged


def _shard_of(result: FileResult) -> tuple[int, FileResult]:
    return hashlib.sha256(result.uri.encode()).digest()[0] % _RESULT_SHARDS, result


def build(pipeline: beam.Pipeline, settings: WorkerSettings, shards: Sequence[str], folder: str) -> None:
    """Assemble the pipeline: it reads entries from the files `shards` and writes results to `folder`."""
    shared = Shared()
    probed = (
        pipeline
        | "Shards" >> beam.Create(list(shards))
        | "Read entries" >> beam.FlatMap(_read_entries)
        | "Spread files" >> beam.Reshuffle()
        | "Probe" >> beam.ParDo(_Probe(settings))
    )
    indexed = (
        probed
        | "To do" >> beam.Filter(_is_not_result)
        | "By stream" >> beam.Map(_stream_of)
        | "Streams" >> beam.GroupByKey()
        | "Plan" >> beam.ParDo(_Plan(settings))
        | "Spread pieces" >> beam.Reshuffle()
        | "Index" >> beam.ParDo(_Index(settings, shared))
    )
    committed = (
        indexed
        | "Staged" >> beam.Filter(_is_not_result)
        | "By group" >> beam.Map(_group_of)
        | "Groups" >> beam.GroupByKey()
        | "Commit" >> beam.ParDo(_Commit(settings, shared))
    )
    finished = [
        probed | "Not to do" >> beam.Filter(_is_result),
        indexed | "Whole" >> beam.Filter(_is_result),
        committed,
    ]
    _ = (
        finished
        | "Results" >> beam.Flatten()
        | "By shard" >> beam.Map(_shard_of)
        | "Result shards" >> beam.GroupByKey()
        | "Write results" >> beam.ParDo(_Write(folder))
    )


def backfill(
    entries: Sequence[Entry],
    *,
    store: str,
    profile: str,
    device: str | None = None,
    runner: str = "DirectRunner",
    options: Sequence[str] = (),
    segment_seconds: int = 300,
    piece_seconds: int = 3600,
    staging: str | None = None,
    limits: DecodeLimits | None = None,
    threads: int | None = None,
    max_lost: float = 0.05,
    dead_letters: str | None = None,
) -> BackfillReport:
    """Index every entry. A second call with the same entries changes nothing.

    Args:
        entries: the files, at most once each.
        store: URL of the store, which is created if it does not exist.
        profile: name of the profile, or the path of its TOML file.
        device: `cpu`, `cuda`, or None to choose.
        runner: one of `pipeline.backfill.runner.RUNNERS`.
        options: Beam's options, as on its command line.
        segment_seconds: footage of one chunk, as in `ingest_sources`.
        piece_seconds: longer files are cut into pieces of this length, which are decoded in parallel.
        staging: URL of a folder that all workers see; `<store>/staging` by default.
        limits: limits of the decoder's process; the defaults if None.
        threads: CPU threads of the models in each worker process; the library's choice if None.
        max_lost: largest share of files that may yield nothing before the job fails, in [0, 1].
        dead_letters: a JSON Lines file for the files with a problem; `<store>/dead-letters.jsonl` by default.

    Raises:
        UsageError: a parameter is out of range.
        BackfillFailed: the engine failed, or too many files were lost; what was stored stays.
        StoreError, ModelError: the store or the models cannot be opened.
    """
    check_runner(runner)
    if not 0 <= max_lost <= 1:
        raise UsageError(f"--max-lost must lie between 0 and 1, got {max_lost:g}")
    if segment_seconds < 1 or piece_seconds < segment_seconds:
        raise UsageError(
            f"a piece of {piece_seconds} s must hold at least one segment of {segment_seconds} s, of 1 s or more"
        )
    store = _absolute(store)
    staging = _absolute(staging or f"{store}/staging")
    pieces = piece_seconds // segment_seconds
    settings = WorkerSettings(
        store, staging, profile, device, segment_seconds, pieces, limits or DecodeLimits(), threads
    )
    _make_store(settings)
    before = {segment.source for segment in Store.open(store).segments() if segment.final}
    began, folder = perf_counter(), f"{staging}/run-{uuid.uuid4().hex}"
    try:
        counters = _run(settings, entries, folder, runner, options)
        report = summary(_results(folder), runner=runner, store=store, before=before)
        problems = [r for r in _results(folder) if r.problem]
    finally:
        remove(folder)
    report.shards = Store.open(store).seal()
    report.counters = counters
    report.wall_seconds = perf_counter() - began
    report.frames_per_second = report.frames / report.wall_seconds
    report.realtime_factor = report.hours * 3600 / report.wall_seconds
    if problems:
        report.dead_letters = dead_letters or f"{store}/dead-letters.jsonl"
        put(report.dead_letters, "".join(r.model_dump_json() + "\n" for r in problems).encode())
    if report.files != len(entries):
        raise BackfillFailed(f"{report.files} of {len(entries)} files have a result; run the same backfill again")
    if report.lost_ratio > max_lost:
        raise BackfillFailed(
            f"{report.lost} of {report.files} files gave nothing, more than --max-lost {max_lost:g}; the reasons are "
            f"in {report.dead_letters}, everything else is stored"
        )
    return report


def _absolute(url: str) -> str:
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())


def _make_store(settings: WorkerSettings) -> None:

    Store.open_or_create(settings.store, load_encoders(load_profile(settings.profile), settings.device).pair)


def _run(
    settings: WorkerSettings, entries: Sequence[Entry], folder: str, runner: str, options: Sequence[str]
) -> dict[str, int]:
    rows = list(enumerate(entries))
    shards = []
    for first in range(0, len(rows), _ENTRIES_A_SHARD):
        shards.append(f"{folder}/entries-{first}.json")
        some = [(number, entry.model_dump(mode="json")) for number, entry in rows[first : first + _ENTRIES_A_SHARD]]
        put(shards[-1], json.dumps(some).encode())
    return run_pipeline(
        lambda pipeline: build(pipeline, settings, shards, folder), runner, options, again="run the same backfill again"
    )


def _results(folder: str) -> Iterator[FileResult]:
    for shard in range(_RESULT_SHARDS):
        for line in (get(f"{folder}/results-{shard}.jsonl") or b"").splitlines():
            yield FileResult.model_validate_json(line)
