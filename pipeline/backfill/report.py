"""What became of a backfill: one result a file, the whole as a model, and as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from pydantic import BaseModel, Field

__all__ = ["BackfillReport", "FileResult", "summary", "table"]


class FileResult(BaseModel):
    """One file. `frames` are those the store holds of it now, `seconds` its footage, `bytes` its size.

    state: `stored`, `skipped` (it was stored before) or `lost` (nothing of it could be read). `kind` is the error's class
    and `problem` its sentence; a file that was cut off is `stored` with a problem. `source` is its digest, where known.
    """

    uri: str
    stream_id: str
    state: str
    source: str = ""
    frames: int = 0
    seconds: float = 0.0
    bytes: int = 0
    pieces: int = 1
    kind: str | None = None
    problem: str | None = None


class BackfillReport(BaseModel):
    """All files. `errors` counts problems by kind; `counters` are Beam's metrics, where retried work counts again."""

    runner: str
    store: str
    files: int = 0
    stored: int = 0
    skipped: int = 0
    lost: int = 0
    frames: int = 0
    hours: float = 0.0
    bytes: int = 0
    errors: dict[str, int] = Field(default_factory=dict)
    counters: dict[str, int] = Field(default_factory=dict)
    shards: int = 0
    wall_seconds: float = 0.0
    frames_per_second: float = 0.0
    realtime_factor: float = 0.0
    dead_letters: str | None = None

    @property
    def lost_ratio(self) -> float:
        return self.lost / self.files if self.files else 0.0


def summary(results: Iterable[FileResult], *, runner: str, store: str, before: Container[str]) -> BackfillReport:
    """The report of all results; frames, hours and bytes are of files that this run stored.

    `before` are the sources that were stored when the job began: what an engine tries again, it finds stored by itself.
    """
    report, errors = BackfillReport(runner=runner, store=store), Counter[str]()
    for found in results:
        again = found.state == "skipped" and found.source not in before
        result = found.model_copy(update={"state": "stored"}) if again else found
        report.files += 1
        setattr(report, result.state, getattr(report, result.state) + 1)
        if result.kind:
            errors[result.kind] += 1
        if result.state == "stored":
            report.frames += result.frames
            report.hours += result.seconds / 3600
            report.bytes += result.bytes
    report.errors = dict(sorted(errors.items()))
    return report


def table(report: BackfillReport) -> str:
    """The summary as aligned lines."""
    rows = [
        ("files", f"{report.files} ({report.stored} stored, {report.skipped} stored before, {report.lost} lost)"),
        ("footage", f"{report.hours:.2f} hours, {report.bytes / 1e9:.2f} GB"),
        (
            "frames",
            f"{report.frames} ({report.frames_per_second:.0f} a second, {report.realtime_factor:.0f}× real time)",
        ),
        ("problems", ", ".join(f"{count} {kind}" for kind, count in report.errors.items()) or "none"),
        ("runner", f"{report.runner}, {report.wall_seconds:.0f} s"),
    ]
    if report.dead_letters:
        rows.append(("dead letters", report.dead_letters))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
