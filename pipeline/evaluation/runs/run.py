"""A run of a benchmark: every question of a split, asked once for each rotation, resumable at any moment.

    rows ─ choose ─▶ items ─▶ for each: video in the store? ─ ask ─▶ one line of answers.jsonl

Errors of a question (no video, no frames, too long) are its result. Errors of the store, the model or the service end
the run, and the same command goes on after the last line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import UsageError, mask_url
from ingest.decoding.limits import DecodeLimits
from model.encoders.encoder import Encoders
from model.selection import check_selection
from pipeline.evaluation.benchmarks.benchmark import Benchmark, Item
from pipeline.evaluation.benchmarks.rows import digest_of
from pipeline.evaluation.benchmarks.subtitles import Cue, read_subtitles
from pipeline.evaluation.runs.asking import Questioner, Reading
from pipeline.evaluation.runs.footage import Footage
from pipeline.evaluation.runs.record import AnswerLine, RunFolder, RunHead
from pipeline.questions.asker import Asker

__all__ = ["RunPlan", "choose", "run_benchmark"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What to run."""

    benchmark: Benchmark
    """The adapter."""
    data: Path
    """Folder of the user."""
    out: Path
    """Folder of the run."""
    split: str
    """Name of the split."""
    reading: Reading
    """How questions are read and answered."""
    limit: int | None = None
    """Largest number of rows, drawn with the seed; all if None."""
    subset: str | None = None
    """`FIELD=VALUE`: only rows of this group."""
    rotations: int = 1
    """Cyclic orders of the options."""
    seed: int = 0
    """Seed of drawn rows and options."""
    limits: DecodeLimits | None = None
    """Limits of the decoder."""

    def check(self) -> None:
        """Check what can be checked before anything is loaded. Raises UsageError."""
        bench, reading = self.benchmark, self.reading
        if not self.data.is_dir():
            raise UsageError(f"--data {self.data}: is not a folder")
        if self.split not in bench.splits:
            raise UsageError(f"--split {self.split}: {bench.title} has {', '.join(bench.splits)}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, got {self.limit}")
        if not 1 <= self.rotations <= 6:
            raise UsageError(f"--rotations must be from 1 to 6, got {self.rotations}")
        if self.rotations > 1 and bench.task != "choice":
            raise UsageError(f"--rotations: {bench.title} has no options")
        if reading.subtitles != "none" and not bench.subtitled:
            raise UsageError(f"--subtitles: {bench.title} has none")
        if reading.reference and (reading.baseline != "none" or reading.selector or bench.task == "highlights"):
            raise UsageError(
                "--reference sets the selection and asks the language model; leave --selector and --baseline out"
            )
        if reading.baseline != "none" and bench.task == "highlights":
            raise UsageError(f"--baseline: {bench.title} asks no language model; its random rows are in the report")
        check_selection("a question", reading.k, reading.tau, reading.selector, None)


def choose(items: list[Item], *, subset: str | None, limit: int | None, seed: int) -> list[Item]:
    """The rows of a subset, at most `limit` of them, in their order. A larger limit keeps the rows of a smaller one.

    Raises:
        UsageError: the subset names no field, or has no rows.
    """
    if subset is not None:
        field, found, value = subset.partition("=")
        values = sorted({each for item in items for each in item.groups.get(field, ())})
        if not found or value not in values:
            fields = sorted({name for item in items for name in item.groups})
            known = f"{field} has {', '.join(values[:40])}" if values else f"the fields are {', '.join(fields)}"
            raise UsageError(f"--subset {subset}: must be FIELD=VALUE; {known}")
        items = [item for item in items if value in item.groups.get(field, ())]
    if limit is None or limit >= len(items):
        return items
    drawn = np.random.default_rng(seed).permutation(len(items))[:limit]
    return [items[number] for number in sorted(drawn.tolist())]


def run_benchmark(
    plan: RunPlan,
    asker: Asker,
    encoders: Callable[[], Encoders],
    on_progress: Callable[[int, int, AnswerLine | None], None] = lambda done, total, line: None,
) -> RunFolder:
    """Run a benchmark, or go on with it.

    Args:
        plan: what to run.
        asker: store and models.
        encoders: gives the encoders that videos are ingested with, when the first one is missing.
        on_progress: called with the questions done, those in all, and the newest answer.

    Returns:
        The folder of the run, complete.

    Raises:
        UsageError: the plan is invalid, or the folder holds another run.
        StoreError, ModelError: store, model or service fail. What is answered stays; the same call goes on.
    """
    plan.check()
    split = plan.benchmark.read(plan.data, plan.split, plan.seed)
    items = choose(split.items, subset=plan.subset, limit=plan.limit, seed=plan.seed)
    folder = RunFolder(plan.out)
    folder.begin(_head(plan, asker, len(split.items), len(items), digest_of(split.files)), items)
    questioner = Questioner(plan.benchmark, asker, plan.reading)
    footage = Footage(plan.benchmark, plan.data, asker.store, encoders, plan.limits)
    orders = [(item, rotation) for item in items for rotation in _rotations(plan, item)]
    done = folder.done() & {(item.id, rotation) for item, rotation in orders}
    count = len(done)
    on_progress(count, len(orders), None)
    cues = _Cues(plan)
    for item, rotation in orders:
        if (item.id, rotation) in done:
            continue
        answer = _ask(questioner, footage, item, rotation, cues)
        folder.append(answer)
        count += 1
        on_progress(count, len(orders), answer)
    return folder


def _rotations(plan: RunPlan, item: Item) -> Iterator[int]:
    yield from range(max(1, min(plan.rotations, len(item.options))))


class _Cues:
    """Subtitles, of which those of the newest video are kept."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self._newest: tuple[tuple[Path, float], list[Cue]] | None = None

    def of(self, item: Item) -> list[Cue]:
        """The subtitles of an item's video; none if they are not wanted."""
        place = None
        if self.plan.reading.subtitles != "none":
            place = self.plan.benchmark.subtitle_path(self.plan.data, item)
        if place is None:
            return []
        if self._newest is None or self._newest[0] != place:
            self._newest = place, read_subtitles(*place)
        return self._newest[1]


def _ask(questioner: Questioner, footage: Footage, item: Item, rotation: int, cues: _Cues) -> AnswerLine:
    if item.problem is not None:
        return AnswerLine(id=item.id, rotation=rotation, state="broken", problem=item.problem)
    video = footage.find(item)
    if video.stream is None:
        state = "missing" if video.missing else "undecodable"
        return AnswerLine(id=item.id, rotation=rotation, state=state, problem=video.problem)
    return questioner.ask(item, video, rotation, cues.of(item))


def _head(plan: RunPlan, asker: Asker, rows: int, questions: int, annotations: str) -> RunHead:
    reading, profile, bench = plan.reading, asker.profile, plan.benchmark
    likelihood = reading.mode == "likelihood" and bench.task == "choice"
    released = reading.reference and bench.task == "choice"
    decoding = {"highlights": "no language model"}.get(bench.task, "likelihood of options" if likelihood else "greedy")
    return RunHead(
        benchmark=bench.name,
        split=plan.split,
        annotations=annotations,
        rows=rows,
        questions=questions,
        subset=plan.subset,
        limit=plan.limit,
        prompt_id="vilamp-released-1" if released else "profile" if likelihood else bench.prompt_id,
        parser_id="none" if likelihood else bench.parser_id,
        mode=reading.mode,
        baseline=reading.baseline,
        reference=reading.reference,
        rotations=plan.rotations,
        frame_rule=reading.frame_rule,
        subtitle_rule=reading.subtitles,
        decoding=decoding,
        seed=plan.seed,
        k=profile.k if reading.k is None else reading.k,
        tau=profile.tau if reading.tau is None else reading.tau,
        selector=reading.selector or profile.selector,
        profile=profile.name,
        profile_digest=_profile_digest(profile.model_dump(mode="json")),
        encoders=asker.encoders.pair.model_dump(mode="json"),
        service=asker.service is not None,
        version=_version(),
        store=mask_url(asker.store.url),
    )


def _profile_digest(settings: dict[str, Any]) -> str:
    """Digest of a profile's settings. Of a folder only its name counts, so that moved weights stay the same."""

    def plain(value: Any, key: str = "") -> Any:
        """A value without the places of folders."""
        if isinstance(value, dict):
            return {name: plain(each, name) for name, each in sorted(value.items())}
        if isinstance(value, list):
            return [plain(each) for each in value]
        return Path(value).name if key == "folder" and isinstance(value, str) else value

    return hashlib.sha256(json.dumps(plain(settings)).encode()).hexdigest()


def _version() -> str:
    try:
        return version("sightline")
    except PackageNotFoundError:
        return "unknown"
