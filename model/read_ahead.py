"""Read-ahead of patches: the next chunk is read while the current one is merged.

    thread: store ─▶ one of two host buffers (pinned for CUDA)          caller: the other one ─▶ device ─▶ DFM

Two buffers serve a whole window. The first write to fresh memory costs the kernel more than the copy itself, so a new
array for each chunk would take several times as long at full size. Does not know stores or what patches mean.
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

# Size of one chunk. On CUDA a larger chunk means fewer kernel launches and fewer reads of the store.
_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}


def chunk_rows(device: torch.device, patches: int, width: int) -> int:
    """Number of frames in one chunk of float16[n, patches, width] for `device`."""
    return max(1, _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cpu"]) // (2 * patches * width))


class ReadAhead:
    """A context manager that reads patches of `total` rows in ascending slices of `chunk` rows.

    An instance is the `read` argument of `model.visual.dfm.iterate_runs`. The tensor that a call returns is valid until
    the next call.

    Args:
        read: fills float16[n, M, d] for a slice of rows. Runs in one other thread; the call for those rows raises its
            errors.
        total: number of rows.
        chunk: most rows of one read.
        shape: (M, d).
        device: device of the returned chunks.
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
        self._next: tuple[slice, Future[Tensor]] | None = None
        self._submit(0)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A running read writes into the buffers and uses the store, so it must end first.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, rows: slice) -> Tensor:
        """Patches of `rows`, float16[n, M, d] on the device.

        Raises:
            UsageError: `rows` is not the slice that comes next.
        """
        if self._next is None or self._next[0] != rows:
            raise UsageError(f"rows {rows.start} to {rows.stop} do not come next; a window is read once, in order")
        block = self._next[1].result()
        if self._device.type == "cuda":
            # The buffer may be written again after the copy has ended.
            block = block.to(self._device, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
        self._submit(rows.stop)
        return block

    def _submit(self, first: int) -> None:
        """Start to read the chunk at row `first`, if there is one, into the buffer that is free."""
        if first >= self._total:
            self._next = None
            return
        rows = slice(first, min(first + self._chunk, self._total))
        self._next = rows, self._pool.submit(self._fill, rows, first // self._chunk % 2)

    def _fill(self, rows: slice, which: int) -> Tensor:
        block = self._buffers[which][: rows.stop - rows.start]
        self._read(rows, block.numpy())
        return block
