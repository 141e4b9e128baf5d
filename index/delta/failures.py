"""Failures of a table's libraries: translated into the errors of `index.errors`, or tried again after a conflict."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from index.errors import (
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreNotFound,
    StoreUnavailable,
    mask_url,
)

__all__ = ["reason_of", "retry_conflicts", "translate_errors"]

_NO_SPACE = (
    "no space left",
    "os error 28",
    "file too large",
    "os error 27",
    "quota",
    "storage full",
    "filesystem full",
)


_READ_ONLY = ("read-only file system", "os error 30")
_DENIED = ("permission denied", "os error 13", "operation not permitted", "os error 1)")
_NO_BUCKET = ("nosuchbucket", "bucket does not exist", "containernotfound")
_NO_CREDENTIALS = (
    "169.254.169.254",  # where a machine of a cloud asks for them
    "/latest/api/token",
    "credential",
    "accessdenied",
    "403 forbidden",
    "401 unauthorized",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "account must be specified",
)
_PLAIN_HTTP = "url scheme is not allowed"
_NO_ANSWER = (
    "error sending request",
    "connection refused",
    "dns error",
    "timed out",
    "could not connect to the endpoint",
)
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "adlfs", "azure")
"""Packages of the clients of object stores, whose errors have no common base."""


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Translate errors of deltalake, Arrow, the clients of object stores and the operating system into those of
    `index.errors`.

    Args:
        uri: the table, for the message.

    Raises:
        StoreNotFound: there is no table at `uri`, or no such bucket.
        StoreFull: no space is left.
        StoreDenied: the store is read-only, or permissions or credentials do not suffice.
        StoreUnavailable: the object store does not answer.
        StoreCorrupt: any other failure to read or write.
        CommitFailedError: of deltalake, unchanged: a concurrent commit came first; see `retry_conflicts`.
    """
    try:
        yield
    except CommitFailedError:
        raise
    except BaseException as error:
        if not _is_foreign(error):
            raise
        text = str(error).lower()
        gone = "not found" in text or "no such file" in text
        if "invalid table version" in text or (gone and "_delta_log/" in text):  # the log was cleaned in between
            raise CommitFailedError(str(error)) from error
        raise _translate(mask_url(uri), error, text) from error


def _is_foreign(error: BaseException) -> bool:
    """Whether an error comes from a library or the operating system, and not from this project or the user."""
    # Bytes of a damaged file that are no UTF-8, or no moment that a clock can show, fail only when Python reads them.
    damaged = isinstance(error, UnicodeDecodeError | OverflowError)
    known = damaged or isinstance(error, OSError | DeltaError | pa.ArrowException | TableNotFoundError)
    return known or type(error).__name__ == "PanicException" or type(error).__module__.split(".")[0] in _CLIENTS


def _translate(uri: str, error: BaseException, text: str) -> StoreError:
    """The error of `index.errors` for one of a library; `text` is its message in lower case."""
    number = getattr(error, "errno", None)

    def says(phrases: tuple[str, ...]) -> bool:
        return any(phrase in text for phrase in phrases)

    if isinstance(error, TableNotFoundError):
        return StoreNotFound(f"{uri}: no table there; ingest some footage first, or check --store")
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or says(_NO_SPACE):
        return StoreFull(f"{uri}: no space left; free some and run the same command again, nothing is half stored")
    if number == errno.EROFS or says(_READ_ONLY):
        return StoreDenied(f"{uri}: the store is read-only: its file system is mounted so; choose another --store")
    if "://" in uri:
        if says(_NO_BUCKET):
            return StoreNotFound(f"{uri}: the object store has no such bucket; create it, or check --store")
        if _PLAIN_HTTP in text:
            return StoreDenied(
                f"{uri}: the endpoint is http, which is not encrypted; set AWS_ALLOW_HTTP=true if that is intended"
            )
        if isinstance(error, PermissionError) or says(_NO_CREDENTIALS):
            return StoreDenied(
                f"{uri}: the object store refuses access, or there are no credentials; set those of its client, for S3 "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if says(_NO_ANSWER):
            return StoreUnavailable(
                f"{uri}: the object store does not answer; check the network and its address, for S3 AWS_ENDPOINT_URL"
            )
    elif number in (errno.EACCES, errno.EPERM) or says(_DENIED):
        return StoreDenied(
            f"{uri}: the store is read-only for this user, or may not be read (permission denied); check owner and "
            "mode of its folder"
        )
    return StoreCorrupt(f"{uri}: cannot be read or written ({_own_words(error)}); run `sightline verify`")


def reason_of(error: BaseException) -> str:
    """What a failure of a file system means for an object, as a short phrase without the text of a library."""
    number, text = getattr(error, "errno", None), str(error).lower()

    def says(phrases: tuple[str, ...]) -> bool:
        return any(phrase in text for phrase in phrases)

    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or says(_NO_SPACE):
        return "no space left"
    if says(_NO_BUCKET):
        return "the object store has no such bucket"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, ImportError):
        return "the package for this kind of object store is not installed"
    if isinstance(error, ValueError) and "protocol" in text:
        return "not a kind of object store"
    if isinstance(error, PermissionError) or says(_NO_CREDENTIALS):
        return "access is refused, or there are no credentials"
    if number == errno.EROFS or says(_READ_ONLY):
        return "read-only"
    if says(_NO_ANSWER) or isinstance(error, TimeoutError | ConnectionError):
        return "the object store does not answer; check the network, and for S3 AWS_ENDPOINT_URL"
    return _own_words(error)


def _own_words(error: BaseException) -> str:
    """What an error is, by its system's number or its class; only Delta and Arrow describe what is wrong in a table."""
    if isinstance(error, OSError) and error.strerror and not _is_of_client(error):
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return "text that is not UTF-8: a file is damaged"
    if isinstance(error, DeltaError | pa.ArrowException):
        lines = " ".join(text_of_line.strip() for text_of_line in str(error).replace(_ARROW, "").splitlines())
        return mask_url(lines[:300])
    return type(error).__name__


def _is_of_client(error: BaseException) -> bool:
    cause = error.__cause__
    return any(type(each).__module__.split(".")[0] in _CLIENTS for each in (error, cause) if each is not None)


_ARROW = "\x1b[31m↳\x1b[0m"
"""Precedes each line but the first of deltalake's messages."""

retry_conflicts = retry(
    retry=retry_if_exception_type(CommitFailedError),
    stop=stop_after_attempt(12),
    wait=wait_random_exponential(0.05, max=2),
    reraise=True,
)
"""Decorator: call the function again, at most 12 times with random pauses, when a concurrent commit came first."""
