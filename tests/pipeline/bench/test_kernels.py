"""The benchmark of DFM's kernel."""

from __future__ import annotations

import pytest

from index.errors import UsageError
from pipeline.bench.kernels.dfm import bench_dfm


def test_without_a_gpu_plain_torch_is_measured_and_nothing_is_said_of_the_kernel() -> None:
    bench = bench_dfm("micro", [1, 40], device="cpu")
    assert [row.frames for row in bench.rows] == [1, 40]
    assert not bench.kernel
    for row in bench.rows:
        # Patches and tokens in float16 and float32; the keyframe is read once.
        assert row.bytes == 2 * (row.frames + 1) * bench.patches * bench.dimension + 4 * row.frames * bench.dimension
        assert row.plain_seconds > 0
        assert row.kernel_seconds is row.ratio is row.kernel_error is None
        assert row.plain_error < 5e-3


@pytest.mark.gpu
def test_on_a_gpu_both_are_measured() -> None:
    bench = bench_dfm("micro", [40], device="cuda")
    assert bench.kernel
    (row,) = bench.rows
    assert row.kernel_seconds is not None
    assert row.ratio == pytest.approx(row.plain_seconds / row.kernel_seconds)
    assert row.kernel_error is not None
    assert row.kernel_error < 5e-3


def test_no_frames_and_no_sizes_are_errors() -> None:
    with pytest.raises(UsageError, match="number of frames"):
        bench_dfm("micro", [])
    with pytest.raises(UsageError, match="number of frames"):
        bench_dfm("micro", [0])
