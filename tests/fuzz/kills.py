"""Processes that are killed at a commit boundary: running the same again gives the store that no kill would have given.

Each case starts one writer in a process of its own, which stops before the n-th operation that changes the store and
prints its name. That process is alive there, and gets SIGKILL; only then does a kill count. A case kills once or twice,
then runs the writer to its end and compares every row with a store that was written without a kill.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from index.commits import bulk
from index.commits.offset import OffsetCommitter
from index.errors import UnknownStream
from index.store import Store
from ingest.file_ingest import ingest_sources
from ingest.messages import segment_message
from tests.fuzz.messages import Letters, errors_only, feed, polled, settled, worker
from tests.fuzz.sequences import STREAMS, chunk_of
from tests.support.faults import HALTED, fault
from tests.support.footage import make_video
from tests.support.kafka_worker import counting
from tests.support.poison import batch
from tests.support.processes import ROOT
from tests.support.records import BEGAN, PAIR, SECOND
from tests.support.stores import assert_same

__all__ = ["WRITERS", "KillsResult", "fuzz_kills"]

RECORDS = 12
"""Records that the consumer reads."""

DEEPEST = 14
"""Most operations before a kill."""


def _append(store: Path, _: Path) -> None:
    opened = Store.open(store)
    for stream in STREAMS:
        for number in range(2):
            opened.append(*chunk_of("file-0", stream, 0, number))


def _ingest(store: Path, folder: Path) -> None:
    report = ingest_sources(
        [folder / "front.mp4"], store=Store.open(store), encoders=counting(), start=BEGAN, segment_seconds=2
    )
    assert report.files[0].problem is None, report.files[0].problem


def _consume(store: Path, _: Path) -> None:
    """The worker of `consume`, fed with the records of one partition from the offset in the store on."""
    first = OffsetCommitter(Store.open(store).tables).offsets(["test.segments/0"])["test.segments/0"]
    sent = [segment_message("gate", BEGAN + n * SECOND, 1.0, b"footage" * (n + 1)).to_bytes() for n in range(RECORDS)]
    sent[5] = b"{"  # a dead letter between them
    if first == RECORDS:
        return
    records = polled(batch([(b"gate", value, ()) for value in sent[first or 0 :]], first=first or 0), first or 0)
    with worker(store, Letters(), first or None, commit_segments=3) as (indexer, owned):
        feed(indexer, owned, records)
        settled(indexer)


def _backfill(store: Path, _: Path) -> None:
    tables = Store.open(store).tables
    written = [bulk.write(tables, *chunk_of("bulk-0", stream, 10, number)) for stream in STREAMS for number in range(3)]
    bulk.commit(tables, [chunk for chunk in written if chunk is not None])


def _forget(store: Path, _: Path) -> None:
    with suppress(UnknownStream):
        Store.open(store).forget(STREAMS[0], BEGAN + 4 * SECOND)


def _compact(store: Path, _: Path) -> None:
    opened = Store.open(store)
    opened.compact()


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "append": _append,
    "ingest": _ingest,
    "consume": _consume,
    "backfill": _backfill,
    "forget": _forget,
    "compact": _compact,
}
"""What is killed: each writes to the store at a path, with the files of a folder."""


@dataclass(slots=True)
class KillsResult:
    """What became of all kills."""

    kills: int = 0
    """Processes that were alive at a commit boundary and ended by SIGKILL there."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Kills by writer and by the operation that came next; writers that ended before their operation came."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number and reason of each case that broke a promise."""
    seconds: float = 0.0
    """Seconds that all took."""


def fuzz_kills(folder: Path, *, seed: int, cases: int) -> KillsResult:
    """Kill `cases` processes; see `KillsResult` for what is counted."""
    with errors_only():
        return _kills(folder, seed, cases)


def _kills(folder: Path, seed: int, cases: int) -> KillsResult:
    result, rng, began = KillsResult(), random.Random(seed), time.monotonic()
    make_video(folder / "front.mp4", seconds=9, rate=5, gop=5)
    clean, base = dict[str, Path](), dict[str, Path]()
    for name, write in WRITERS.items():
        base[name], clean[name] = folder / f"{name} base", folder / f"{name} clean"
        Store.create(base[name], PAIR)
        if name in ("forget", "compact"):
            _append(base[name], folder)
        shutil.copytree(base[name], clean[name])
        write(clean[name], folder)
    number = 0
    while result.kills < cases and not result.failures:
        name = sorted(WRITERS)[number % len(WRITERS)]
        store = folder / f"case {number}"
        shutil.copytree(base[name], store)
        try:
            first = number < len(WRITERS)  # one kill of each writer, before one of the operations that all have
            for _ in range(1 if first else rng.choice([1, 1, 2])):
                _killed(name, store, folder, rng.randrange(3 if first else DEEPEST), result)
            WRITERS[name](store, folder)
            assert_same(Store.open(store), Store.open(clean[name]))
        except Exception as error:
            result.failures.append((number, f"{name}: {type(error).__name__}: {error}"))
        shutil.rmtree(store)
        number += 1
    result.seconds = time.monotonic() - began
    return result


def _killed(name: str, store: Path, folder: Path, after: int, result: KillsResult) -> None:
    """Start a writer, and kill it before the operation behind the first `after`."""
    command = [sys.executable, "-m", "tests.fuzz.kills", name, str(store), str(folder), str(after)]
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert child.stdout is not None
        try:
            line = child.stdout.readline().strip()
            if not line.startswith(HALTED):
                code = child.wait(300)
                errors.seek(0)
                assert (line, code) == ("done", 0), f"{line!r}, exit code {code}: {errors.read().decode()[-500:]}"
                result.outcomes[f"{name}: ended before the kill"] += 1
                return
            assert child.poll() is None, f"{name} ended by itself: {child.returncode}"
        finally:
            child.kill()
            code = child.wait(300)
            child.stdout.close()
    assert code == -signal.SIGKILL, f"exit code {code}"
    result.kills += 1
    result.outcomes[f"{name}: before {line.removeprefix(HALTED).strip()}"] += 1


def main() -> int:
    """The process that is killed: `python -m tests.fuzz.kills WRITER STORE FOLDER AFTER`."""
    name, store, folder, after = sys.argv[1:]
    with errors_only(), fault("halt", int(after)):
        WRITERS[name](Path(store), Path(folder))
    print("done", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
