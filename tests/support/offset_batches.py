"""A store with many small offset commits."""

from __future__ import annotations

from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.store import Store
from tests.support.records import APP, offset_segment

BACK = "footage/1"
"""The application id of the stream "back"."""

MARK = f"{APP}@topic-id"
"""The second application id that advances with APP."""


def feed(store: Store, first: int, last: int) -> None:
    """Commit batches `first` to `last` − 1 of two partitions; each adds one file for each of the two streams."""
    committer = OffsetCommitter(store.tables)
    for n in range(first, last):
        batch = [offset_segment(n), offset_segment(n, stream="back", app=BACK)]
        before = n or None
        committer.commit(batch, {APP: OffsetAdvance(before, n + 1, MARK), BACK: OffsetAdvance(before, n + 1)})
