"""Faults at commit boundaries: a kill, or a full disk, before the n-th operation that changes a store."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import deltalake.table
from deltalake import DeltaTable
from fsspec.implementations.local import LocalFileSystem

import index.delta.table
from index.search.faiss_shards import FaissShards

_WRITES: tuple[tuple[Any, str], ...] = (
    (index.delta.table, "write_deltalake"),
    (DeltaTable, "delete"),
    (DeltaTable, "create_checkpoint"),
    (DeltaTable, "create_write_transaction"),
    (deltalake.table.TableAlterer, "set_table_properties"),
    (deltalake.table.TableOptimizer, "compact"),
    (FaissShards, "write"),
)
_REMOVALS: tuple[tuple[Any, str], ...] = (
    (DeltaTable, "vacuum"),
    (DeltaTable, "cleanup_metadata"),
    (FaissShards, "drop"),
    (LocalFileSystem, "rm_file"),
)


HALTED = "halted before"
"""What a process prints that stops at a fault, before the name of the operation."""


class Killed(BaseException):
    """Stands for SIGKILL: no code of the store catches it."""


@contextmanager
def fault(kind: str, after: int) -> Iterator[None]:
    """Within the block, let `after` operations happen and fail at the next one, if there is one.

    Args:
        kind: "kill" raises Killed before any operation; "full" is ENOSPC at every write from then on; "halt" prints
            the operation's name and stops there, for another process to kill this one.
        after: number of operations that succeed.
    """
    left = after

    def wrap(name: str, act: Callable[..., Any], *, write: bool) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left <= 0 and kind == "kill":
                raise Killed
            if left <= 0 and kind == "halt":
                print(f"{HALTED} {name}", flush=True)  # noqa: T201
                time.sleep(3600)
            if left <= 0 and write:
                raise OSError(errno.ENOSPC, "No space left on device")
            left -= 1
            return act(*args, **kwargs)

        return run

    patches = [
        patch.object(owner, name, wrap(name, getattr(owner, name), write=write))
        for group, write in ((_WRITES, True), (_REMOVALS, False))
        for owner, name in group
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()
