"""What a failed question replies with. Imports torch only where it is loaded already."""

from __future__ import annotations

import sys
import traceback

import structlog

from index.errors import ModelError, OutOfMemory, SightlineError, mask_url
from pipeline.service.admission import RequestCancelled

__all__ = ["failure_of"]

_log = structlog.get_logger("sightline.service")
# Messages of a CPU allocator and of CUDA libraries that raise RuntimeError when memory is exhausted.
_OUT_OF_MEMORY_MESSAGES = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed")


def failure_of(error: Exception) -> Exception:
    """The error for the client; any that is not meant for users becomes a ModelError, and the log has its details.

    Running out of memory fails one request only; the memory of this request is given back to the GPU's driver.
    """
    if isinstance(error, SightlineError | RequestCancelled):
        return error
    if _is_out_of_memory(error):
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()  # so that the memory is not fragmented
        _log.warning("out of memory", error=_first_line(error))
        return OutOfMemory(
            "the question needs more memory than is available; ask about a shorter time, or with fewer keyframes"
        )
    _log.error("a request failed", details=mask_url("".join(traceback.format_exception(error))))
    return ModelError("the service failed to process the request; see its log")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OUT_OF_MEMORY_MESSAGES)


def _first_line(error: BaseException) -> str:
    return mask_url((str(error).splitlines() or [""])[0])[:500]
