"""The benchmarks by name."""

from __future__ import annotations

from index.errors import UsageError
from pipeline.evaluation.benchmarks.actions import Actions
from pipeline.evaluation.benchmarks.benchmark import Benchmark
from pipeline.evaluation.benchmarks.charades import CharadesSta
from pipeline.evaluation.benchmarks.egoschema import EgoSchema
from pipeline.evaluation.benchmarks.longvideobench import LongVideoBench
from pipeline.evaluation.benchmarks.lvbench import LvBench
from pipeline.evaluation.benchmarks.mlvu import Mlvu
from pipeline.evaluation.benchmarks.mvbench import MvBench
from pipeline.evaluation.benchmarks.qvhighlights import QvHighlights
from pipeline.evaluation.benchmarks.videomme import VideoMme

__all__ = ["BENCHMARKS", "benchmark"]

BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        VideoMme(),
        LvBench(),
        EgoSchema(),
        LongVideoBench(),
        Mlvu(),
        MvBench(),
        CharadesSta(),
        QvHighlights(),
        Actions(),
    )
}
"""Every benchmark."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name. Raises UsageError if there is none."""
    if name not in BENCHMARKS:
        raise UsageError(f"{name}: is not a benchmark; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
