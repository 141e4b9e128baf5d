"""Jobs: order, bounds, owners, progress, errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from index.errors import EmptyWindow, ServiceBusy, ServiceUnavailable, UnknownItem
from pipeline.access.caller import Caller, Grant
from pipeline.access.roles import Role
from pipeline.desk.jobs import Job, Jobs

ANN = Caller("ann", (Grant("*", Role.ADMIN),))
EVE = Caller("eve", (Grant("*", Role.ADMIN),))


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs(threads=1)
    yield made
    made.close()


def ended(job: Job) -> Job:
    deadline = threading.Event()
    for _ in range(20_000):
        if job.ended:
            return job
        deadline.wait(0.01)
    pytest.fail("the job did not end")


def test_a_job_reports_progress_and_result(jobs: Jobs) -> None:
    def work(job: Job) -> Mapping[str, Any]:
        job.advance(0.5, {"so far": 1})
        return {"all": 2}

    job = ended(jobs.begin("sum", ANN, work))
    assert (job.state, job.progress, job.result, job.error) == ("done", 1.0, {"all": 2}, None)
    assert job.version >= 3


def test_a_job_exists_for_its_owner_alone(jobs: Jobs) -> None:
    job = jobs.begin("sum", ANN, lambda _: {}, streams=("gate",))
    assert jobs.find(ANN, job.id) is job
    for caller in (EVE, Caller("ann", (Grant("yard", Role.ADMIN),))):
        with pytest.raises(UnknownItem):
            jobs.find(caller, job.id)
    with pytest.raises(UnknownItem):
        jobs.find(ANN, "other")


def test_errors_and_cancellation(jobs: Jobs) -> None:
    def fails(_: Job) -> Mapping[str, Any]:
        raise EmptyWindow("no frames")

    failed = ended(jobs.begin("sum", ANN, fails))
    assert failed.state == "failed"
    assert isinstance(failed.error, EmptyWindow)
    go = threading.Event()

    def waits(job: Job) -> Mapping[str, Any]:
        go.wait(200)
        job.advance(0.5)
        return {}

    job = jobs.begin("wait", ANN, waits)
    job.cancel()
    go.set()
    assert ended(job).state == "cancelled"


def test_the_queue_is_bounded_for_each_caller(jobs: Jobs) -> None:
    go = threading.Event()

    def waits(_: Job) -> Mapping[str, Any]:
        go.wait(200)
        return {}

    begun = [jobs.begin("wait", ANN, waits) for _ in range(8)]
    with pytest.raises(ServiceBusy, match="8 of yours"):
        jobs.begin("wait", ANN, waits)
    begun.append(jobs.begin("wait", EVE, waits))
    go.set()
    assert {ended(job).state for job in begun} == {"done"}
    jobs.close()
    with pytest.raises(ServiceUnavailable):
        jobs.begin("wait", ANN, waits)
