"""Patches from where they are kept to where they are merged: the next chunk is read while the last is worked on.

    thread: store ─▶ one of two host buffers (pinned for CUDA)          caller: the other one ─▶ device ─▶ DFM

Two buffers serve a whole window. Memory that is written for the first time costs the kernel more than the copy into it,
so a fresh array for each chunk would take several times as long at full size.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.errors import UsageError

__all__ = ["ReadAhead", "chunk_rows"]

# Of one chunk. On CUDA a larger one costs fewer launches, and fewer looks into the store.
_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}


def chunk_rows(device: torch.device, patches: int, width: int) -> int:
    """Frames of one chunk of float16[n, patches, width] for `device`."""
    return max(1, _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"]) // (2 * patches * width))


class ReadAhead:
    """A reader of `model.visual.dfm.walk` over `total` rows: called with ascending slices of `chunk` rows. A context manager.

    What a call returns is good until the next call.

    Args:
        read: fills float16[n, M, d] for a slice of rows. Runs in a thread, never twice at once; what it raises is
            raised by the call for those rows.
        shape: (M, d).
        device: where the chunks are wanted.
    """

    def __init__(
        self,
        read: Callable[[slice, NDArray[np.float16]], object],
        *,
        total: int,
        chunk: int,
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        self._read, self._total, self._chunk, self._device = read, total, chunk, device
        rows = min(chunk, total)
        self._buffers = [
            torch.empty((rows, *shape), dtype=torch.float16, pin_memory=device.type == "cuda") for _ in range(2)
        ]
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming: tuple[slice, Future[Tensor]] | None = None
        self._ask(0)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A read that is under way writes into the buffers and uses the store: it ends first.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, rows: slice) -> Tensor:
        """float16[n, M, d] on the device. Raises UsageError for rows that are not those that come next."""
        if self._coming is None or self._coming[0] != rows:
            raise UsageError(f"rows {rows.start} to {rows.stop} do not come next; a window is read once, in order")
        block = self._coming[1].result()
        if self._device.type == "cuda":
            # The buffer may be written to again once the copy is over.
            block = block.to(self._device, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
        self._ask(rows.stop)
        return block

    def _ask(self, first: int) -> None:
        """Begin to read the chunk at `first`, if there is one, into the buffer that nobody uses any more."""
        if first >= self._total:
            self._coming = None
            return
        rows = slice(first, min(first + self._chunk, self._total))
        self._coming = rows, self._pool.submit(self._fill, rows, first // self._chunk % 2)

    def _fill(self, rows: slice, which: int) -> Tensor:
        block = self._buffers[which][: rows.stop - rows.start]
        self._read(rows, block.numpy())
        return block
