"""Running a Beam pipeline on any engine: its name, its options, its counters, and one typed error. Knows no work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from index.errors import BackfillFailed, UsageError

__all__ = ["RUNNERS", "check_runner", "count", "run_pipeline"]

RUNNERS = ("DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner", "PortableRunner")
"""The names that `--runner` takes."""
# Beam's own DirectRunner first tries to fetch a runner written in Go from the network.
_RUNNER = {"DirectRunner": "apache_beam.runners.portability.fn_api_runner.FnApiRunner"}
_NAMESPACE = "sightline"


def check_runner(runner: str) -> None:
    """Raise UsageError if there is no runner of that name."""
    if runner not in RUNNERS:
        raise UsageError(f"--runner {runner} is unknown; use one of {', '.join(RUNNERS)}")


def count(name: str, value: int = 1) -> None:
    """Add to a counter, in a step of a pipeline."""
    Metrics.counter(_NAMESPACE, name).inc(value)


def run_pipeline(
    assemble: Callable[[beam.Pipeline], None], runner: str, options: Sequence[str], *, again: str
) -> dict[str, int]:
    """Assemble a pipeline, run it, wait for its end, and return its counters.

    Args:
        assemble: adds the steps.
        runner: one of `RUNNERS`.
        options: Beam's options, as on its command line.
        again: what continues the work after a failure, for the message.

    Raises:
        BackfillFailed: the engine failed.
    """
    # Without this, Beam runs pip to list the installed packages, and warns where there is no pip.
    quiet = "--experiments=disable_logging_submission_environment"
    flags = [f"--runner={_RUNNER.get(runner, runner)}", quiet, *options]
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        assemble(pipeline)
        result = pipeline.run()
        state = result.wait_until_finish()
    except Exception as error:  # every runner raises exceptions of its own
        raise BackfillFailed(
            f"the job failed ({type(error).__name__}: {_last_line(error)}); {again} to continue"
        ) from error
    if state not in ("DONE", None):
        raise BackfillFailed(f"the job ended as {state}; {again} to continue")
    return _counters(result)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else ""


def _counters(result: Any) -> dict[str, int]:
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(_NAMESPACE))["counters"]
    counters: dict[str, int] = {}
    for metric in found:
        value = metric.attempted if metric.committed is None else metric.committed
        counters[metric.key.metric.name] = counters.get(metric.key.metric.name, 0) + int(value or 0)
    return dict(sorted(counters.items()))
