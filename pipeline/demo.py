"""`make demo`: the main job from nothing to a report, on footage whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

from index.records import from_micros, parse_rfc3339
from pipeline.console import progress, say

__all__ = ["demo", "pick_questions"]


def pick_questions(truth: dict[str, Any], each: int = 2) -> list[dict[str, Any]]:
    """`each` questions of every kind, the streams in turn; fixed by the truth file."""
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


def demo(out: Path, *, seed: int = 7, minutes: float = 20.0, cameras: int = 2, profile: str = "micro") -> None:
    """Render, ingest, ask, report; what is in `out` already is used again.

    Raises:
        SightlineError: any step that fails; nothing is glossed over.
    """
    from rich.console import Console
    from rich.table import Table

    from index.store import Store
    from ingest.worker import ingest_sources
    from pipeline.asking import Asker
    from pipeline.render import render
    from pipeline.report import Reported, StageTime, write_report

    stages: list[StageTime] = []
    began = perf_counter()

    def done(name: str, detail: str) -> None:
        nonlocal began
        stages.append(StageTime(name, perf_counter() - began, detail))
        began = perf_counter()

    footage = out / f"footage-{seed}-{minutes:g}m-{cameras}c"
    say(f"1. Rendering {cameras} cameras, {minutes:g} minutes each")
    if not (footage / "truth.json").exists():
        with progress() as bar:
            task = bar.add_task("rendering", total=cameras, detail="H.264")
            render(seed, minutes, cameras, footage, lambda n, _: bar.update(task, completed=n))
    truth = json.loads((footage / "truth.json").read_text())
    done("render", f"{cameras} × {minutes:g} min of 320 × 240 H.264 at 10 frames a second")

    from model.encoders import load_encoders
    from model.profiles import load_profile

    encoders = load_encoders(load_profile(profile))
    store = Store.open_or_create(out / f"store-{footage.name}", encoders.pair)
    done("load encoders", "torch, CLIP and SigLIP")
    say("2. Ingesting, one frame a second")
    with progress() as bar:
        task = bar.add_task("ingesting", total=None, detail="")
        report = ingest_sources(
            [footage],
            store=store,
            encoders=encoders,
            on_progress=lambda p: bar.update(task, description=Path(p.file).name, completed=p.seconds, total=p.duration),
        )
    done("ingest", f"{report.frames} frames, {report.frames_per_second:.0f} a second, {report.realtime_factor:.0f}× real time")

    say("3. Asking")
    asker = Asker(store, profile)
    table = Table(title="Answers beside the truth", show_lines=False)
    for column in ("camera", "question", "answer", "truth", "evidence (UTC)"):
        table.add_column(column, overflow="fold")
    items: list[Reported] = []
    right = 0
    for q in pick_questions(truth):
        asked = asker.ask(q["question"], options=q["options"], streams=[q["stream_id"]])
        selection = asker.select(q["question"], streams=[q["stream_id"]])
        evidence = [(parse_rfc3339(e["start"]), parse_rfc3339(e["end"])) for e in q["evidence"]]
        kept = selection.window.take(sorted(selection.keyframes.tolist()))
        pictures = dict(
            zip([(f.stream_id, f.captured_at) for f in asked.keyframes], store.pictures(kept), strict=True)
        )
        items.append(Reported(asked, selection, pictures, q["stream_id"], q["kind"], q["answer"], evidence))
        right += asked.answer == q["answer"]
        style = "green" if asked.answer == q["answer"] else "red"
        times = ", ".join(f"{from_micros(a):%H:%M:%S}–{from_micros(b):%H:%M:%S}" for a, b in evidence)
        table.add_row(q["stream_id"], q["question"], f"[{style}]{asked.answer}[/]", q["answer"], times)
    seconds = perf_counter() - began
    done("ask", f"{len(items)} questions, {seconds / max(1, len(items)):.2f} s each, loading included")
    path = out / "report.html"
    write_report(
        path,
        items,
        title="Sightline demo",
        subtitle=f"Seed {seed}: {right} of {len(items)} answers right. Footage made by sightline render.",
        stages=stages,
    )
    done("report", str(path))
    console = Console(width=118)
    console.print(table)
    times_table = Table(title="What each stage took")
    times_table.add_column("stage")
    times_table.add_column("seconds", justify="right")
    times_table.add_column("what")
    for stage in stages:
        times_table.add_row(stage.name, f"{stage.seconds:.1f}", stage.detail)
    console.print(times_table)
    say(f"{right} of {len(items)} answers right. Report: {path}")
