"""A store against a plain model: random sequences of everything that changes it, with kills and full disks in between.

After every step, what the model holds is in the store, and what is in the store besides belongs to an operation that was
stopped. At the end every stopped operation is repeated; then the store equals the model and `verify` finds nothing.

Kills are counted where they happen, between two operations that change the store: a kill that was planned behind the last
one of them does not count.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from index.columns import digest, segment_key
from index.commits import bulk
from index.commits.deletion import deletion_in_progress
from index.commits.held import merged
from index.commits.offset import OffsetAdvance, OffsetCommitter, OffsetSegment
from index.errors import FootageHeld, StoreBusy, StoreFull, UnknownStream
from index.patches.codec import PatchEncoding
from index.records import FrameRecords, Segment
from index.schemas import GENERATION_KEY
from index.store import Store
from tests.support.faults import Killed, fault
from tests.support.records import BEGAN, PAIR, SECOND, make_records, make_segment

__all__ = ["STREAMS", "SequencesResult", "StoreMachine", "chunk_of", "fuzz_sequences"]

FRAMES = 4
"""Frames of a chunk."""

CHUNKS = 3
"""Chunks of a file."""

FILES = {"file-0": ("front", 0), "file-1": ("front", 6), "file-2": ("前门", 0)}
"""Stream and first second of each file that is ingested; the first two overlap."""

JOB = {"bulk-0": ("front", 10), "bulk-1": ("前门", 2)}
"""The same of each file that is backfilled."""

STREAMS = ("front", "前门")
APP = "footage/0"

FAULTS = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["kill", "kill", "full"]), st.integers(0, 3)),
    st.tuples(st.just("kill"), st.integers(4, 24)),
)


def chunk_of(source: str, stream: str, first: int, number: int) -> tuple[Segment, FrameRecords]:
    """Four seconds of a stream; a frame depends on stream and second only."""
    seconds = range(first + FRAMES * number, first + FRAMES * (number + 1))
    one = [make_records(stream, BEGAN + second * SECOND, 1, seed=second) for second in seconds]
    records = FrameRecords(
        stream_id=stream,
        clock_source="given",
        captured_at=np.concatenate([r.captured_at for r in one]),
        pts_seconds=np.array(seconds, np.float64),
        frame_vectors=np.concatenate([r.frame_vectors for r in one]),
        patch_pooled=np.concatenate([r.patch_pooled for r in one]),
        patches=np.concatenate([r.patches for r in one]),
        pictures=[f"{stream} {second}".encode() for second in seconds],
    )
    return make_segment(records, number, source), records


def message(offset: int) -> OffsetSegment:
    """The message at an offset: four seconds of one of the streams, which overlap some files."""
    segment, records = chunk_of(APP, STREAMS[offset % 2], 14, offset // 2)
    return OffsetSegment(APP, segment.model_copy(update={"chunk": offset}), records)


@dataclass
class Model:
    """What the store should hold."""

    frames: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in STREAMS})
    segments: dict[str, Segment] = field(default_factory=dict)
    offset: int = 0
    holds: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Stream, start and end of each hold, by id."""

    def held(self, stream: str, before: int | None) -> list[tuple[int, int]]:
        """The held stretches of a stream before a time."""
        return merged([(start, end) for name, start, end in self.holds.values() if name == stream], before)

    def add(self, segment: Segment, frames: FrameRecords) -> None:
        """A segment was stored."""
        key = segment_key(segment)
        if key not in self.segments:
            self.segments[key] = segment
            self.frames[segment.stream_id].update(frames.captured_at.tolist())

    def forget(self, stream: str, before: int | None) -> None:
        """Footage was deleted, except what is held."""
        kept = self.held(stream, before)

        def stays(time: int) -> bool:
            return (before is not None and time >= before) or any(start <= time < end for start, end in kept)

        self.frames[stream] = {t for t in self.frames[stream] if stays(t)}
        self.segments = {
            key: segment
            for key, segment in self.segments.items()
            if segment.stream_id != stream
            or (before is not None and segment.end > before)
            or any(segment.start < end and segment.end > start for start, end in kept)
        }


class StoreMachine(RuleBasedStateMachine):
    """Operations on one store, each with a fault at a random boundary, and the model beside it."""

    counts: ClassVar[Counter[str]] = Counter()
    """Sequences that ended, and kills and full disks that happened, by the operation that they stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sightline-sequences-"))
        self.model = Model()
        self.stopped: dict[str, set[tuple[str, int]]] = {}
        """Frames that a stopped operation may have left, or may not have deleted yet, by operation."""

        self.sent = 0
        """Messages that a worker has tried to store."""

    @initialize(kind=st.sampled_from(["fp16", "differential"]))
    def create(self, kind: Any) -> None:
        self.store = Store.create(self.folder / "store", PAIR, PatchEncoding(kind=kind))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.recover()
            self.counts["sequences"] += 1
        shutil.rmtree(self.folder)

    def recover(self) -> None:
        """Repeat every stopped operation; then store and model are equal."""
        self.store.compact()
        for name in list(self.stopped):
            if name in FILES:
                self.ingest(name, CHUNKS, None)
            elif name in JOB:
                self.backfill([name], None)
        if self.sent > self.model.offset:
            self.consume(self.sent - self.model.offset, None)
        self.stopped.clear()
        assert self.store.verify() == []
        self.agrees()

    # ---- operations --------------------------------------------------------------------------------------------------

    def run(self, name: str, plan: tuple[str, int] | None, act: Callable[[], object]) -> bool:
        """Run the operation `name` with a fault; whether it came to its end. The store is opened again after a kill."""
        if plan is None:
            act()
            return True
        try:
            with fault(*plan):
                act()
        except Killed:
            self.counts[f"kills of {name}"] += 1
            self.store = Store.open(self.store.url)
            return False
        except (StoreFull, OSError) as error:
            if not isinstance(error, StoreFull) and name != "seal":  # shards are a cache, and seal raises as it is
                raise
            self.counts[f"full disks of {name}"] += 1
            return False
        return True

    def stored(self, segment: Segment) -> bool:
        """Whether `segments` has a segment."""
        return segment_key(segment) in {segment_key(each) for each in self.store.segments()}

    def chunks(self, source: str, count: int) -> Iterator[tuple[Segment, FrameRecords]]:
        stream, first = {**FILES, **JOB}[source]
        return (chunk_of(source, stream, first, number) for number in range(count))

    @rule(source=st.sampled_from(sorted(FILES)), count=st.integers(1, CHUNKS), plan=FAULTS)
    def ingest(self, source: str, count: int, plan: tuple[str, int] | None) -> None:
        left: set[tuple[str, int]] = set()

        def act() -> None:
            for segment, records in self.chunks(source, count):
                left.update((segment.stream_id, t) for t in records.captured_at.tolist())
                self.store.append(segment, records)
                self.model.add(segment, records)

        if self.run("ingest", plan, act):
            others = self.stopped.pop(source, set()) - left  # of a longer ingest that was stopped
            if others:
                self.stopped[source] = others
            return
        for segment, records in self.chunks(source, count):
            if self.stored(segment):
                self.model.add(segment, records)
        self.stopped.setdefault(source, set()).update(left)

    @rule(sources=st.lists(st.sampled_from(sorted(JOB)), min_size=1, unique=True), plan=FAULTS)
    def backfill(self, sources: list[str], plan: tuple[str, int] | None) -> None:
        given = [each for source in sources for each in self.chunks(source, CHUNKS)]

        def act() -> None:
            written = [bulk.write(self.store.tables, *each) for each in given]
            bulk.commit(self.store.tables, [chunk for chunk in written if chunk is not None])

        whole = self.run("backfill", plan, act)
        for segment, records in given:
            if whole or self.stored(segment):
                self.model.add(segment, records)
        for source in sources:
            if whole:
                self.stopped.pop(source, None)
            else:
                times = {(s.stream_id, t) for s, r in self.chunks(source, CHUNKS) for t in r.captured_at.tolist()}
                self.stopped.setdefault(source, set()).update(times)

    @rule(count=st.integers(1, 3), plan=FAULTS)
    def consume(self, count: int, plan: tuple[str, int] | None) -> None:
        first = self.model.offset
        batch = [message(first + n) for n in range(count)]
        advance = OffsetAdvance(first or None, first + count)
        whole = self.run("consume", plan, lambda: OffsetCommitter(self.store.tables).commit(batch, {APP: advance}))
        self.sent = max(self.sent, first + count)
        if whole or OffsetCommitter(self.store.tables).offsets([APP])[APP] == first + count:
            self.model.offset = first + count
            for each in batch:
                assert each.frames is not None
                self.model.add(each.segment, each.frames)
        if self.model.offset >= self.sent:
            self.stopped.pop("consume", None)
        else:
            some = [message(n) for n in range(self.model.offset, self.sent)]
            left = {
                (m.segment.stream_id, t) for m in some if m.frames is not None for t in m.frames.captured_at.tolist()
            }
            self.stopped["consume"] = left

    @rule(
        stream=st.sampled_from(STREAMS),
        second=st.one_of(st.none(), st.integers(0, 24)),
        keep_held=st.booleans(),
        plan=FAULTS,
    )
    def forget(self, stream: str, second: int | None, keep_held: bool, plan: tuple[str, int] | None) -> None:
        before = None if second is None else BEGAN + second * SECOND
        began = deletion_in_progress(self.store.tables, stream)
        held = {(stream, t) for t in self.model.frames[stream]}
        refused = []

        def act() -> None:
            try:
                self.store.forget(stream, before, keep_held=keep_held)
            except UnknownStream:
                pass
            except FootageHeld:
                refused.append(stream)

        generation = self.generation(stream)
        whole = self.run("forget", plan, act)
        if refused:
            assert self.model.held(stream, before), "a deletion is refused although nothing is held"
            assert not keep_held
            assert self.generation(stream) == generation
            self.counts["refused deletions"] += 1
            return
        if whole:
            self.stopped.pop(f"forget {stream}", None)
            self.model.forget(stream, before)
            return
        if self.generation(stream) != generation:
            self.model.forget(stream, before)
        if began or self.generation(stream) != generation:
            self.stopped.setdefault(f"forget {stream}", set()).update(held)

    @rule(stream=st.sampled_from(STREAMS), first=st.integers(0, 24), length=st.integers(1, 8), plan=FAULTS)
    def hold(self, stream: str, first: int, length: int, plan: tuple[str, int] | None) -> None:
        start, end = BEGAN + first * SECOND, BEGAN + (first + length) * SECOND
        pending = deletion_in_progress(self.store.tables, stream)

        def act() -> None:
            try:
                self.store.hold(stream, start, end, reason="case 7", placed_by="ada")
                self.counts["holds"] += 1
            except UnknownStream:
                assert not any(segment.stream_id == stream for segment in self.model.segments.values())
            except StoreBusy:
                assert pending is not None, "a hold is refused although no deletion is in progress"
                assert pending.has_rows
                self.counts["refused holds"] += 1

        self.run("hold", plan, act)
        self.model.holds = {each.id: (each.stream_id, each.start, each.end) for each in self.store.holds()}

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), plan=FAULTS)
    def release(self, data: st.DataObject, plan: tuple[str, int] | None) -> None:
        ids = sorted(self.model.holds, key=lambda each: self.model.holds[each])  # by content: ids are random
        chosen = ids[data.draw(st.integers(0, len(ids) - 1))]
        if self.run("release", plan, lambda: self.store.release(chosen, reason="closed")):
            del self.model.holds[chosen]

    def generation(self, stream: str) -> int:
        """The number of deletions of a stream that were begun."""
        return int(self.store.tables.segments.configuration().get(f"{GENERATION_KEY}.{digest(stream)}", "0"))

    @rule(plan=FAULTS)
    def compact(self, plan: tuple[str, int] | None) -> None:
        if self.run("compact", plan, lambda: self.store.compact()):
            for stream in STREAMS:
                self.stopped.pop(f"forget {stream}", None)

    @rule(plan=FAULTS, again=st.booleans())
    def seal(self, plan: tuple[str, int] | None, again: bool) -> None:
        self.run("seal", plan, self.store.reindex if again else lambda: self.store.seal(today="1970-01-01"))

    @rule()
    def open_again(self) -> None:
        self.store = Store.open(self.store.url)

    @precondition(lambda self: self.stopped)
    @rule()
    def repeat_everything(self) -> None:
        self.recover()

    # ---- checks ------------------------------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        rows = self.store.tables.frames.read(["stream_id", "captured_at", "picture"])
        times = rows["captured_at"].cast("int64").to_pylist()
        found = list(zip(rows["stream_id"].to_pylist(), times, strict=True))
        expected = {(stream, t) for stream, some in self.model.frames.items() for t in some}
        maybe: set[tuple[str, int]] = set().union(*self.stopped.values())
        assert {each.id for each in self.store.holds()} == set(self.model.holds)
        assert len(found) == len(set(found)), "a frame is stored twice"
        assert expected - maybe <= set(found), "a frame is lost"
        assert set(found) <= expected | maybe, "a frame that was deleted, or never stored, is there"
        pictures = [f"{stream} {(t - BEGAN) // SECOND}".encode() for stream, t in found]
        assert rows["picture"].to_pylist() == pictures
        if not self.stopped:
            assert {segment_key(s) for s in self.store.segments()} == set(self.model.segments)
            assert pc.sum(self.store.tables.segments.read(["frames"])["frames"]).as_py() in (len(found), None)


@dataclass(slots=True)
class SequencesResult:
    """What became of all sequences."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Sequences that ended with a store equal to the model, and faults by the operation that they stopped."""
    kills: int = 0
    """Kills that happened."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """What broke a promise; the first ends the run."""
    seconds: float = 0.0
    """Seconds that all took."""


def fuzz_sequences(*, seed: int, cases: int) -> SequencesResult:
    """Run `cases` sequences of up to eight operations; see `SequencesResult` for what is counted."""
    counts: Counter[str] = Counter()
    machine = with_seed(seed)(type("SeededMachine", (StoreMachine,), {"counts": counts}))
    result, began = SequencesResult(counts), time.monotonic()
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=cases,
                stateful_step_count=8,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],  # shrinking takes long; the blob repeats the failure
                print_blob=True,
            ),
        )
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        result.failures.append((counts["sequences"], f"{type(error).__name__}: {error} {notes}"))
    result.kills = sum(count for name, count in counts.items() if name.startswith("kills"))
    result.seconds = time.monotonic() - began
    return result
