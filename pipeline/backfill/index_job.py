"""Building the large index with Beam: each shard is written by whichever worker gets it.

    plans of shards ─▶ reshuffle ─▶ read vectors, encode, write one shard ─▶ counters

The process that starts the job removes what is unusable and trains the codebook before, and merges small shards after.
A shard has the same name and content whoever writes it, so a bundle that is repeated changes nothing, and a build that
was stopped leaves whole shards, which the next one keeps, on whatever runner. Workers need the store and, for one on a
disk, a file system that all of them share; they load no models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import apache_beam as beam

from index.search.ann.builder import SHARD_ROWS, Built, ShardPlan
from index.store import Store
from pipeline.backfill.runner import check_runner, count, run_pipeline

__all__ = ["build_index"]


class _WriteShard(beam.DoFn):  # type: ignore[misc]
    """`ShardPlan` → the name of the shard."""

    def __init__(self, store: str) -> None:
        self._store = store

    def setup(self) -> None:
        """Open the store, once per worker."""
        self._index = Store.open(self._store).vectors.large

    def process(self, plan: ShardPlan) -> Iterator[str]:
        """Write one shard."""
        name = self._index.write_planned(plan)
        count("index_shards")
        count("index_frames", plan.rows)
        yield name


def build_index(
    store: Store, *, runner: str = "DirectRunner", options: Sequence[str] = (), shard_rows: int = SHARD_ROWS
) -> Built:
    """Bring the large index of a store up to date, with the work of a cluster.

    Args:
        store: the store.
        runner: one of `pipeline.backfill.runner.RUNNERS`.
        options: Beam's options, as on its command line.
        shard_rows: most frames of a shard, which is the unit of work.

    Raises:
        UsageError: the runner is unknown.
        BackfillFailed: the engine failed; shards that were written stay.
        StoreBusy: another build is running.
        StoreError: the store cannot be read.
        OSError: the index cannot be written.
    """
    check_runner(runner)

    def elsewhere(plans: Sequence[ShardPlan]) -> None:
        """Run the job."""

        def assemble(pipeline: beam.Pipeline) -> None:
            """Add the steps."""
            _ = (
                pipeline
                | "Shards" >> beam.Create(list(plans))
                | "Spread shards" >> beam.Reshuffle()
                | "Write shards" >> beam.ParDo(_WriteShard(store.url))
            )

        run_pipeline(assemble, runner, options, again="run the same build again")

    return store.vectors.large.build(shard_rows=shard_rows, elsewhere=elsewhere)
