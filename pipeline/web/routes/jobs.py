"""Routes of jobs: `POST /search/verify`, `GET /jobs/{id}`, `GET /jobs/{id}/events`, `DELETE /jobs/{id}`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Path
from starlette.responses import Response

from index.records import parse_rfc3339
from pipeline.access.roles import Action
from pipeline.desk import verifying
from pipeline.desk.jobs import Job
from pipeline.desk.verifying import Span
from pipeline.web.events import EventStream, documented_events, event
from pipeline.web.routes.guarded import CallerOf, DeskOf, GuardedRouter
from pipeline.web.schemas.questions import JobBegun, JobView, VerifyBody

__all__ = ["routes"]

routes = GuardedRouter(tag="jobs")
_Id = Annotated[str, Path(min_length=1, max_length=64, description="Id of the job.")]
_LOOK_SECONDS = 0.1


@routes.post("/search/verify", action=Action.ASK, status_code=202)
def verify(desk: DeskOf, caller: CallerOf, body: VerifyBody) -> JobBegun:
    """Let the language model look at moments; the job's result has its verdicts as they come."""
    spans = [Span(each.stream_id, parse_rfc3339(each.start), parse_rfc3339(each.end)) for each in body.moments]
    job = verifying.verify(desk, caller, body.text, spans)
    desk.audit(caller, "verify", streams=job.streams, detail={"verify": body.text, "moments": len(spans)})
    return JobBegun(job=job.id)


@routes.get("/jobs/{job_id}", action=Action.VIEW)
def get_job(desk: DeskOf, caller: CallerOf, job_id: _Id) -> JobView:
    """The state of one of the caller's jobs."""
    return JobView.of(desk.jobs.find(caller, job_id))


@routes.get(
    "/jobs/{job_id}/events", action=Action.VIEW, responses=documented_events(job=JobView), response_class=Response
)
def follow_job(desk: DeskOf, caller: CallerOf, job_id: _Id) -> Response:
    """The state of one of the caller's jobs, as an event `job` for each change until it has ended."""
    return EventStream(_changes(desk.jobs.find(caller, job_id)))


@routes.delete("/jobs/{job_id}", action=Action.VIEW, status_code=204)
def cancel_job(desk: DeskOf, caller: CallerOf, job_id: _Id) -> None:
    """Cancel one of the caller's jobs."""
    job = desk.jobs.find(caller, job_id)
    job.cancel()
    desk.audit(caller, "job.cancel", streams=job.streams, detail={"job": job.id, "kind": job.kind})


async def _changes(job: Job) -> AsyncIterator[bytes]:
    seen = -1
    while True:
        version, ended = job.version, job.ended
        if version != seen:
            seen = version
            yield event("job", JobView.of(job))
        if ended:
            return
        await asyncio.sleep(_LOOK_SECONDS)
