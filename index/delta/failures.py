"""Failures of a table's libraries: translated into the errors of `index.errors`, or tried again after a conflict."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from index.errors import StoreCorrupt, StoreFull, StoreNotFound

__all__ = ["retry_conflicts", "translate_errors"]

_NO_SPACE = (
    "no space left",
    "os error 28",
    "file too large",
    "os error 27",
    "quota",
    "storage full",
    "filesystem full",
)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate errors of deltalake, Arrow and the operating system into those of `index.errors`.

    Args:
        uri: the table, for the message.

    Raises:
        StoreNotFound: there is no table at `uri`.
        StoreFull: no space is left.
        StoreCorrupt: any other failure to read or write.
        CommitFailedError: of deltalake, unchanged: a concurrent commit came first; see `retry_conflicts`.
    """
    try:
        yield
    except CommitFailedError:
        raise
    except TableNotFoundError as error:
        raise StoreNotFound(f"{uri}: no table there; ingest some footage first, or check --store") from error
    except (OSError, DeltaError, pa.ArrowException) as error:
        text = str(error).lower()
        gone = "not found" in text or "no such file" in text
        if "invalid table version" in text or (gone and "_delta_log/" in text):  # the log was cleaned in between
            raise CommitFailedError(str(error)) from error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            phrase in text for phrase in _NO_SPACE
        ):
            raise StoreFull(
                f"{uri}: no space left; free some and run the same command again, nothing is half stored"
            ) from error
        raise StoreCorrupt(
            f"{uri}: cannot be read or written ({str(error).splitlines()[0]}); run `sightline verify`"
        ) from error


retry_conflicts = retry(
    retry=retry_if_exception_type(CommitFailedError),
    stop=stop_after_attempt(12),
    wait=wait_random_exponential(0.05, max=2),
    reraise=True,
)
"""Decorator: call the function again, at most 12 times with random pauses, when a concurrent commit came first."""
