"""Several writers of one store in an object store: nothing is lost or doubled, and what they cost one another."""

from __future__ import annotations

import pytest

from pipeline.bench.scale.contention import bench_writers


@pytest.mark.system
def test_writers_that_commit_at_once_all_succeed_and_their_requests_are_counted() -> None:
    report = bench_writers([3], commits=4, pause=0.0, frames=5, dimension=8)
    alone, three = report.rows
    assert (alone.writers, alone.commits, alone.frames) == (1, 4, 20)
    assert (three.writers, three.commits, three.frames) == (3, 12, 60)  # each second of each stream, once
    assert alone.requests_per_commit > 6  # at least a file and a log entry in each of three tables
    # 18 of a commit, the opening, and every two seconds a look at each table; an own entry is never read again later
    assert alone.requests_per_commit <= 30
    assert sum(alone.requests.values()) == pytest.approx(alone.requests_per_commit, abs=0.1)
    assert alone.requests["PUT file"] == three.requests["PUT file"] == 3  # a refused attempt writes no file again
    assert alone.requests["PUT entry"] == 3
    assert three.refused == pytest.approx(1 - 3 / three.requests["PUT entry"], abs=1e-2)
    assert alone.refused == 0
    assert alone.cpu_seconds_per_commit > 0
    assert three.requests_per_commit > alone.requests_per_commit  # each reads the commits of the others
    lost = 1 - alone.requests_per_commit / three.requests_per_commit
    assert three.requests_lost == pytest.approx(lost, abs=2e-3)
    assert alone.requests_lost == alone.time_lost == 0
