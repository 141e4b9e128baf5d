"""A store with many small offset commits."""

from __future__ import annotations

from index.commits.offset import OffsetAdvance, OffsetCommitter
from index.store import Store
from tests.support.records import APP, piece

BACK = "footage/1"


MARK = f"{APP}@topic-id"


def feed(store: Store, first: int, last: int) -> None:
    """Batches `first` to `last` of two partitions, a file for each stream in each of them."""
    committer = OffsetCommitter(store.tables)
    for n in range(first, last):
        pieces = [piece(n), piece(n, stream="back", app=BACK)]
        before = n or None
        committer.commit(pieces, {APP: OffsetAdvance(before, n + 1, MARK), BACK: OffsetAdvance(before, n + 1)})
