"""The benchmark of keyframe selection: frames in memory, in a mapped file and in a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench.dks import bench_dks
from pipeline.bench.scale.synthetic import StorePlan, make_synthetic_store


def test_a_mapped_file_gives_the_keyframes_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_BLOCK", 64), ("_MAPPED", 2**16), ("_MADE", 5_000), ("_REPEATS", 1)):
        monkeypatch.setattr(f"pipeline.bench.dks.{name}", value)
    array = bench_dks([3_000], 32, 8).rows[0]
    monkeypatch.setattr("pipeline.bench.dks._IN_MEMORY", 0)
    file = bench_dks([3_000], 32, 8).rows[0]
    assert (array.streamed, file.streamed) == (False, True)
    assert file.keyframes == array.keyframes == 8
    assert file.bytes_read == array.bytes_read == 3_000 * 32 * 4
    assert file.cpu_seconds is not None
    assert file.memory_bytes


def test_a_store_is_read_once_for_each_redundancy(tmp_path: Path) -> None:
    make_synthetic_store(tmp_path / "store", StorePlan(streams=3, days=2, frames=50, every=600, segments=5))
    rows = bench_dks(store=tmp_path / "store", k=4, tau=1.0).rows
    assert [row.redundancy for row in rows] == ["fixed", "adaptive", "background"]
    for row in rows:
        assert (row.frames, row.keyframes) == (300, 4)
        assert row.bytes_read == 300 * row.dimension * 4
