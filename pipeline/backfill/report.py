"""Report of a backfill: one result for each file, their summary, and the summary as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from pydantic import BaseModel, ConfigDict, Field

from ingest.footage_report import FootageReport

__all__ = ["BackfillReport", "FileResult", "summary", "table"]


class FileResult(BaseModel):
    """Result of one file."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    uri: str
    """Path or URL, without credentials."""
    stream_id: str
    """The stream the file belongs to."""
    state: str
    """`stored`, `skipped` (it was stored before) or `lost` (nothing of it could be read)."""
    source: str = ""
    """Digest of the file; empty where it is not known."""
    frames: int = 0
    """Frames of the file that the store holds now."""
    seconds: float = 0.0
    """Seconds of footage of the file that the store holds now."""
    repeated: int = 0
    """Frames decoded and not stored, because the stream has a frame of their second already."""
    dropped_seconds: float = 0.0
    """Seconds of footage that the container announces and that could not be read."""
    bytes: int = 0
    """Size of the file."""
    pieces: int = 1
    """Number of pieces of work."""
    kind: str | None = None
    """Class name of the error, if there was one."""
    problem: str | None = None
    """Message of the error. A file that ends early is `stored` with a problem."""


class BackfillReport(BaseModel):
    """Summary of all files of a run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    runner: str
    """Name of the engine."""
    store: str
    """URL of the store."""
    files: int = 0
    """Files that have a result."""
    stored: int = 0
    """Files that this run stored."""
    skipped: int = 0
    """Files that were stored before."""
    lost: int = 0
    """Files of which nothing could be read."""
    frames: int = 0
    """Frames that this run stored."""
    footage: FootageReport = Field(default_factory=FootageReport)
    """What was stored, what repeated (also of files that were stored before) and what was dropped, each with its
    seconds."""
    hours: float = 0.0
    """Hours of footage that this run stored."""
    bytes: int = 0
    """Bytes of the files that this run stored."""
    errors: dict[str, int] = Field(default_factory=dict)
    """Number of files with a problem, by class name of the error."""
    counters: dict[str, int] = Field(default_factory=dict)
    """Beam's counters; retried work counts again."""
    shards: int = 0
    """FAISS shards that were written at the end."""
    wall_seconds: float = 0.0
    """Seconds from start to end."""
    frames_per_second: float = 0.0
    """Frames stored a second."""
    realtime_factor: float = 0.0
    """Seconds of footage stored a second."""
    dead_letters: str | None = None
    """Path or URL of the file that lists the files with a problem, if there are any."""

    @property
    def lost_ratio(self) -> float:
        """Share of the files of which nothing could be read, in [0, 1]."""
        return self.lost / self.files if self.files else 0.0


def summary(results: Iterable[FileResult], *, runner: str, store: str, before: Container[str]) -> BackfillReport:
    """Summarize all results. Frames, hours and bytes count the files that this run stored.

    Args:
        results: one result for each file.
        runner: name of the engine.
        store: URL of the store.
        before: digests of the sources that were stored when the job began. A source that is `skipped` without being
            among them was stored by an earlier attempt of this run, so it counts as stored.
    """
    report, errors = BackfillReport(runner=runner, store=store), Counter[str]()
    for found in results:
        again = found.state == "skipped" and found.source not in before
        result = found.model_copy(update={"state": "stored"}) if again else found
        report.files += 1
        setattr(report, result.state, getattr(report, result.state) + 1)
        if result.kind:
            errors[result.kind] += 1
        report.footage.add("repeated", frames=result.frames if result.state == "skipped" else result.repeated)
        dropped = result.state == "lost" or result.dropped_seconds > 0
        report.footage.add("dropped", files=int(dropped), seconds=result.dropped_seconds)
        if result.state == "stored":
            report.footage.add("stored", frames=result.frames)
            report.frames += result.frames
            report.hours += result.seconds / 3600
            report.bytes += result.bytes
    report.errors = dict(sorted(errors.items()))
    return report


def table(report: BackfillReport) -> str:
    """Return the summary as aligned lines."""
    rows = [
        ("files", f"{report.files} ({report.stored} stored, {report.skipped} stored before, {report.lost} lost)"),
        ("footage", f"{report.hours:.2f} hours, {report.bytes / 1e9:.2f} GB"),
        (
            "frames",
            f"{report.frames} ({report.frames_per_second:.0f} a second, {report.realtime_factor:.0f}× real time)",
        ),
        ("seconds", str(report.footage)),
        ("problems", ", ".join(f"{count} {kind}" for kind, count in report.errors.items()) or "none"),
        ("runner", f"{report.runner}, {report.wall_seconds:.0f} s"),
    ]
    if report.dead_letters:
        rows.append(("dead letters", report.dead_letters))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
