"""Bodies of questions and of verifications, and the state of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints

from pipeline.desk.jobs import Job, JobState
from pipeline.desk.search import Verification
from pipeline.web.problems import ProblemDocument, problem_of
from pipeline.web.schemas.fields import Body, MicrosText, Reply, StreamPattern, StreamText, Text, TimeText

__all__ = [
    "AskBody",
    "ExportResult",
    "JobBegun",
    "JobView",
    "Picture",
    "SpanBody",
    "VerifiedMoment",
    "VerifyBody",
    "VerifyResult",
]

Option = Annotated[str, StringConstraints(min_length=1, max_length=1_000, pattern=r"\S")]


class AskBody(Body):
    """A question."""

    question: Annotated[str, StringConstraints(min_length=1, max_length=8_000, pattern=r"\S")]
    """The question."""
    options: Annotated[list[Option], Field(max_length=64)] | None = None
    """Answers to choose from; an open question without them."""
    streams: Annotated[list[StreamPattern], Field(max_length=256)] | None = None
    """Names and patterns of streams; all that the caller may ask about without it."""
    start: MicrosText | None = None
    """First time, RFC 3339."""
    end: MicrosText | None = None
    """Last time, exclusive, RFC 3339."""
    k: int | None = Field(default=None, ge=1, le=10_000)
    """Largest number of keyframes; the profile's without it."""
    max_frames: int | None = Field(default=None, ge=1, le=1_000_000)
    """Largest number of frames to read; the profile's without it."""


class SpanBody(Body):
    """A moment."""

    stream_id: StreamText
    """The stream."""
    start: MicrosText
    """Time of the first frame, RFC 3339."""
    end: MicrosText
    """Time of the last frame, RFC 3339."""


class VerifyBody(Body):
    """Moments that the language model looks at."""

    text: Text
    """What was searched for."""
    moments: list[SpanBody] = Field(min_length=1, max_length=100)
    """The moments."""


class JobBegun(Reply):
    """A job that was begun."""

    job: str
    """Its id, for `GET /jobs/{id}`."""


class VerifiedMoment(Reply):
    """A moment that the language model looked at."""

    stream_id: str
    """The stream."""
    start: TimeText
    """Time of the first frame."""
    end: TimeText
    """Time of the last frame."""
    verification: Verification
    """What the language model says."""


class VerifyResult(Reply):
    """What a job of the kind `verify` has found so far."""

    items: list[VerifiedMoment]
    """The moments, in the order of the request."""


class ExportResult(Reply):
    """The file that a job of another kind made."""

    id: str
    """Id of the export."""
    download: str
    """Address of the file."""
    name: str
    """Its name for the user."""
    sha256: str
    """Digest of its bytes, hexadecimal."""
    bytes: int
    """Its size."""


class JobView(Reply):
    """The state of a job."""

    job: str
    """Its id."""
    kind: str
    """What it does."""
    state: JobState
    """Where it is."""
    progress: float
    """0 to 1."""
    result: VerifyResult | ExportResult | None
    """What it has found so far; null before the first result."""
    error: ProblemDocument | None
    """Why it failed; null unless it did."""

    @classmethod
    def of(cls, job: Job) -> Self:
        """The view of a job."""
        return cls(
            job=job.id,
            kind=job.kind,
            state=job.state,
            progress=round(job.progress, 4),
            result=None if job.result is None else _result(job.result),
            error=None if job.error is None else problem_of(job.error),
        )


def _result(found: Mapping[str, Any]) -> VerifyResult | ExportResult:
    return (VerifyResult if "items" in found else ExportResult).model_validate(found)


class Picture(Reply):
    """An uploaded picture."""

    id: str
    """Its id, for `picture` of a search; it is kept for 30 minutes, for this caller."""
    width: int
    """Width in pixels, after scaling."""
    height: int
    """Height in pixels, after scaling."""
