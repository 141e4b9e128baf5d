"""Demo, `make demo`: render footage whose truth is known, ingest it, ask about it, and write a report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from index.errors import UsageError
from index.records import from_micros, parse_rfc3339, rfc3339
from index.search.moments import Hit, merge_moments
from index.store import Store
from ingest.file_ingest import ingest_sources
from model.encoders.encoder import load_encoders
from model.profiles.profile import load_profile
from pipeline.console import print_note, progress
from pipeline.demo.render import render
from pipeline.pictures.answer_report import Reported, StageTime, write_report
from pipeline.questions.asker import Asker

__all__ = ["DemoAnswer", "DemoResult", "DemoStage", "demo", "pick_questions", "show"]

_MARKER = ".sightline-demo"
_GAP_SECONDS = 5.0
_MOMENTS = 2


class DemoAnswer(BaseModel):
    """One question of the demo with its answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream_id: str
    """The stream that the question is about."""
    kind: str
    """Kind of the question."""
    question: str
    """Its text."""
    answer: str
    """The answer."""
    truth: str
    """The true answer."""
    right: bool
    """Whether the answer is right."""
    true_evidence: list[tuple[str, str]]
    """True evidence, (start, end) as RFC 3339 UTC."""
    moments: list[tuple[str, str]]
    """Best moments that the answer rests on, (start, end) as RFC 3339 UTC."""
    found: bool
    """Whether a keyframe shows the evidence."""


class DemoStage(BaseModel):
    """One stage of the demo."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    """Its name."""
    seconds: float
    """Its duration."""
    detail: str
    """A few words about it."""


class DemoResult(BaseModel):
    """Result of the demo."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    answers: list[DemoAnswer]
    """All questions with their answers."""
    stages: list[DemoStage]
    """All stages."""
    report: str
    """Path of the report."""

    @property
    def right(self) -> int:
        """Number of right answers."""
        return sum(answer.right for answer in self.answers)


def pick_questions(truth: dict[str, Any], each: int = 2) -> list[dict[str, Any]]:
    """Pick `each` questions of every kind, the streams in turn. The choice depends on the truth file only, not on
    answers."""
    kinds = list(dict.fromkeys(q["kind"] for q in truth["questions"]))
    streams = sorted({q["stream_id"] for q in truth["questions"]})
    picked: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds):
        for i in range(each):
            stream = streams[(number + i) % len(streams)]
            left = [q for q in truth["questions"] if q["kind"] == kind and q not in picked]
            here = [q for q in left if q["stream_id"] == stream]
            picked += (here or left)[:1]
    return picked


def _fresh(out: Path) -> tuple[Path, Path]:
    """Return empty folders for footage and store. Only folders that an earlier demo made are emptied."""
    footage, store = out / "footage", out / "store"
    if (footage.exists() or store.exists()) and not (out / _MARKER).exists():
        raise UsageError(f"{out}: has footage or a store that is not from a demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    for folder in (footage, store):
        shutil.rmtree(folder, ignore_errors=True)
    return footage, store


class _Stages:
    """Durations of the stages, one after the other."""

    def __init__(self) -> None:
        self.done: list[DemoStage] = []
        self._since = perf_counter()

    def end(self, name: str, detail: str) -> None:
        """End a stage; the next one begins."""
        now = perf_counter()
        self.done.append(DemoStage(name=name, seconds=now - self._since, detail=detail))
        self._since = now


def demo(
    out: Path, *, seed: int = 7, minutes: float = 20.0, cameras: int = 2, profile: str | Path = "micro"
) -> DemoResult:
    """Render, ingest, ask and report, each from scratch.

    Args:
        out: folder of footage, store and report.
        seed: seed of the rendered world.
        minutes: length of each camera's footage.
        cameras: number of cameras.
        profile: name of the profile, or the path of its TOML file.

    Raises:
        SightlineError: a step fails.
    """

    footage, where = _fresh(out)
    stages = _Stages()
    with progress() as bar:
        task = bar.add_task("1 of 3  rendering", total=cameras, detail=f"{cameras} × {minutes:g} min")
        truth_path = render(seed, minutes, cameras, footage, lambda n, _: bar.update(task, completed=n))
        truth = json.loads(truth_path.read_text())
        size = sum(path.stat().st_size for path in footage.glob("*.mp4")) / 1e6
        stages.end("render", f"{cameras} × {minutes:g} minutes of H.264, {size:.0f} MB")

        encoders = load_encoders(load_profile(profile))
        store = Store.create(where, encoders.pair)
        stages.end("load", "CLIP and SigLIP")

        task = bar.add_task("2 of 3  ingesting", total=cameras * minutes * 60, detail="")
        whole = {f"{footage}/{path.name}": 0.0 for path in footage.glob("*.mp4")}

        def tell(p: Any) -> None:
            whole[p.file] = p.seconds
            bar.update(task, completed=sum(whole.values()), detail=Path(p.file).stem)

        report = ingest_sources([footage], store=store, encoders=encoders, on_progress=tell)
        factor, rate = report.realtime_factor, report.frames_per_second
        stages.end("ingest", f"{report.frames} frames, {rate:.0f} a second, {factor:.0f}× real time")

        questions = pick_questions(truth)
        task = bar.add_task("3 of 3  asking", total=len(questions), detail="")
        asker = Asker(store, profile)
        items: list[Reported] = []
        for question in questions:
            items.append(_ask(asker, question))
            bar.update(task, completed=len(items))
        stages.end("ask", f"{len(items)} questions, loading the language model included")

    answers = [_answer(item) for item in items]
    path = write_report(
        out / "report.html",
        items,
        title="Sightline demo",
        subtitle=f"Two views of a rendered world, seed {seed}: its truth is known, and the model has never seen it.",
        stages=[StageTime(s.name, s.seconds) for s in stages.done],
        facts=[
            ("cameras", str(cameras)),
            ("footage", f"{cameras * minutes:g} minutes"),
            ("frames seen", f"{report.frames:,}"),
            ("ingest", f"{factor:.0f}× real time"),
            ("moment found", f"{sum(a.found for a in answers)} of {len(answers)}"),
        ],
    )
    stages.end("report", str(path))
    return DemoResult(answers=answers, stages=stages.done, report=str(path))


def _ask(asker: Any, question: dict[str, Any]) -> Reported:
    """Ask one question of the truth file about its camera."""

    selection = asker.select(question["question"], streams=[question["stream_id"]])
    asked = asker.answer(question["question"], selection, options=question["options"])
    # The notice says what footage the profile knows, and the demo's is that footage.
    asked = asked.model_copy(update={"notices": [text for text in asked.notices if text != asker.answerer.notice]})
    kept = selection.window.take(np.sort(selection.keyframes))
    keys = [(frame.stream_id, frame.captured_at) for frame in asked.keyframes]
    pictures = dict(zip(keys, asker.store.pictures(kept), strict=True))
    evidence = [(parse_rfc3339(e["start"]), parse_rfc3339(e["end"])) for e in question["evidence"]]
    return Reported(asked, selection, pictures, question["stream_id"], question["kind"], question["answer"], evidence)


def _answer(item: Reported) -> DemoAnswer:

    hits = [Hit(f.stream_id, parse_rfc3339(f.captured_at), f.score) for f in item.asked.keyframes]
    best = merge_moments(hits, _GAP_SECONDS)[:_MOMENTS]
    return DemoAnswer(
        stream_id=item.stream_id or "",
        kind=item.kind,
        question=item.asked.question,
        answer=item.asked.answer,
        truth=item.truth or "",
        right=bool(item.right),
        true_evidence=[(rfc3339(a), rfc3339(b)) for a, b in item.evidence],
        moments=[(rfc3339(m.start), rfc3339(m.end)) for m in best],
        found=any(item.proves(hit.captured_at) for hit in hits),
    )


def _clock(text: str) -> str:
    return f"{from_micros(parse_rfc3339(text)):%H:%M:%S}"


def _spans(spans: Sequence[tuple[str, str]]) -> str:
    return ", ".join(_clock(a) if a == b else f"{_clock(a)} to {_clock(b)}" for a, b in spans)


def show(result: DemoResult) -> None:
    """Print answers beside the truth, and what each stage took."""

    console = Console(width=100)
    console.print("Answers beside the truth (times in UTC)", style="bold")
    for a in result.answers:
        right = Text("right", "green") if a.right else Text("wrong", "red")
        console.print(right, Text(f" {a.stream_id}  {a.question}", "bold"))
        console.print(Text(f"       answer {a.answer}, truth {a.truth}"))
        console.print(
            Text(f"       evidence {_spans(a.true_evidence)}; best moments {_spans(a.moments)}"), soft_wrap=True
        )
    console.print()
    took = Table(title="What each stage took", title_justify="left")
    took.add_column("stage")
    took.add_column("seconds", justify="right")
    took.add_column("what")
    for stage in result.stages:
        took.add_row(stage.name, f"{stage.seconds:.1f}", Text(stage.detail))
    took.add_row("all", f"{sum(stage.seconds for stage in result.stages):.1f}", "", style="bold")
    console.print(took)
    found = sum(a.found for a in result.answers)
    console.print(
        f"{result.right} of {len(result.answers)} answers are right; keyframes show the evidence of {found}. "
        f"Report: {result.report}",
        highlight=False,
        soft_wrap=True,
    )
    if result.right < len(result.answers):
        print_note("micro is a model of a few million parameters; the report shows what it saw")
