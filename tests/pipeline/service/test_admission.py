"""The queue before the model: order, bounds, deadlines, cancellation, and what a job leaves behind."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from index.errors import DeadlineExceeded, ServiceBusy, ServiceUnavailable
from pipeline.service.admission import Admission, JobEnd, QueuedRequest, RequestCancelled

WAIT = 300.0


class Blocks:
    """A job that begins, waits until it is let go, and goes on."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, job: QueuedRequest) -> Iterator[str]:
        self.began.set()
        assert self.go.wait(WAIT)
        yield "done"


def later(seconds: float = WAIT) -> float:
    return time.monotonic() + seconds


def ends(items: queue.Queue[Any]) -> tuple[list[Any], Exception | None]:
    """What a job emitted, and its end."""
    got = []
    while not isinstance(item := items.get(timeout=WAIT), JobEnd):
        got.append(item)
    return got, item.error


@pytest.fixture
def admission() -> Iterator[Admission]:
    made = Admission(waiting=2)
    yield made
    made.stop(0.0)


def test_jobs_run_one_by_one_in_the_order_they_came(admission: Admission) -> None:
    order: list[int] = []
    first = Blocks()
    items: queue.Queue[Any] = queue.Queue()
    admission.submit(first, deadline=later(), emit=items.put)
    assert first.began.wait(WAIT)

    def note(number: int) -> Any:
        def work(job: QueuedRequest) -> Iterator[int]:
            order.append(number)
            yield number

        return work

    others = [queue.Queue[Any](), queue.Queue[Any]()]
    for number, each in enumerate(others):
        admission.submit(note(number), deadline=later(), emit=each.put)
    assert (admission.depth, admission.running, order) == (2, 1, [])
    first.go.set()
    assert ends(items) == (["done"], None)
    assert [ends(each) for each in others] == [([0], None), ([1], None)]
    assert order == [0, 1]


def test_a_full_queue_refuses_and_says_when_to_come_back(admission: Admission) -> None:
    first = Blocks()
    items: queue.Queue[Any] = queue.Queue()
    admission.submit(first, deadline=later(), emit=items.put)
    assert first.began.wait(WAIT)
    for _ in range(2):
        admission.submit(lambda job: iter(()), deadline=later(), emit=lambda _: None)
    with pytest.raises(ServiceBusy, match=r"full \(2 requests wait\)") as busy:
        admission.submit(lambda job: iter(()), deadline=later(), emit=lambda _: None)
    assert 1 <= busy.value.retry_after <= 60
    first.go.set()
    assert ends(items)[1] is None


def test_a_waiting_job_that_is_cancelled_makes_room_at_once_and_never_runs(admission: Admission) -> None:
    first = Blocks()
    admission.submit(first, deadline=later(), emit=lambda _: None)
    assert first.began.wait(WAIT)
    ran = threading.Event()
    items: queue.Queue[Any] = queue.Queue()

    def never(job: QueuedRequest) -> Iterator[str]:
        ran.set()
        yield "no"

    job = admission.submit(never, deadline=later(), emit=items.put)
    admission.cancel(job)
    assert admission.depth == 0
    got, error = ends(items)
    assert got == []
    assert isinstance(error, RequestCancelled)
    last: queue.Queue[Any] = queue.Queue()
    admission.submit(lambda job: iter(("after",)), deadline=later(), emit=last.put)
    first.go.set()
    assert ends(last) == (["after"], None)
    assert not ran.is_set()


def test_a_running_job_ends_at_its_next_check_and_frees_what_it_held(admission: Admission) -> None:
    class Memory:
        pass

    alive: list[weakref.ref[Memory]] = []
    between = threading.Event()

    def work(job: QueuedRequest) -> Iterator[str]:
        held = Memory()
        alive.append(weakref.ref(held))
        yield "one"
        assert between.wait(WAIT)
        yield "two"
        yield "never"
        del held

    items: queue.Queue[Any] = queue.Queue()
    job = admission.submit(work, deadline=later(), emit=items.put)
    assert items.get(timeout=WAIT) == "one"
    assert alive[0]() is not None
    admission.cancel(job)
    between.set()
    got, error = ends(items)
    assert got == []
    assert isinstance(error, RequestCancelled)
    assert alive[0]() is None


def test_a_job_that_raises_keeps_nothing_alive_and_the_next_one_runs(admission: Admission) -> None:
    class Memory:
        pass

    alive: list[weakref.ref[Memory]] = []

    def fail(held: Memory) -> None:
        alive.append(weakref.ref(held))
        try:
            raise MemoryError("inner")
        except MemoryError as error:
            raise RuntimeError("outer") from error

    def work(job: QueuedRequest) -> Iterator[str]:
        held = Memory()
        fail(held)
        yield "never"

    items: queue.Queue[Any] = queue.Queue()
    admission.submit(work, deadline=later(), emit=items.put)
    got, error = ends(items)
    assert isinstance(error, RuntimeError)
    assert (got, error.__traceback__, error.__cause__) == ([], None, None)
    assert alive[0]() is None
    admission.submit(lambda job: iter(("next",)), deadline=later(), emit=items.put)
    assert ends(items) == (["next"], None)


def test_a_job_whose_time_is_up_before_it_starts_never_runs(admission: Admission) -> None:
    first = Blocks()
    admission.submit(first, deadline=later(), emit=lambda _: None)
    assert first.began.wait(WAIT)
    items: queue.Queue[Any] = queue.Queue()
    ran = threading.Event()

    def never(job: QueuedRequest) -> Iterator[str]:
        ran.set()
        yield "no"

    admission.submit(never, deadline=time.monotonic(), emit=items.put)
    first.go.set()
    assert isinstance(ends(items)[1], DeadlineExceeded)
    assert not ran.is_set()


def test_draining_finishes_what_was_admitted_and_refuses_the_rest(admission: Admission) -> None:
    first = Blocks()
    items: queue.Queue[Any] = queue.Queue()
    admission.submit(first, deadline=later(), emit=items.put)
    second: queue.Queue[Any] = queue.Queue()
    admission.submit(lambda job: iter(("second",)), deadline=later(), emit=second.put)
    assert first.began.wait(WAIT)
    admission.drain()
    assert not admission.accepting
    with pytest.raises(ServiceUnavailable, match="stopping"):
        admission.submit(lambda job: iter(()), deadline=later(), emit=lambda _: None)
    first.go.set()
    assert admission.stop(WAIT) is True
    assert ends(items) == (["done"], None)
    assert ends(second) == (["second"], None)


def test_a_stop_waits_only_so_long(admission: Admission) -> None:
    first = Blocks()
    items, second = queue.Queue[Any](), queue.Queue[Any]()
    admission.submit(first, deadline=later(), emit=items.put)
    admission.submit(lambda job: iter(("no",)), deadline=later(), emit=second.put)
    assert first.began.wait(WAIT)
    assert admission.stop(0.0) is False
    assert isinstance(ends(second)[1], ServiceUnavailable)
    first.go.set()
    assert isinstance(ends(items)[1], ServiceUnavailable)


def test_a_queue_without_room_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Admission(waiting=0)
