"""The errors that users see, in one tree.

Libraries' errors are translated into these where they occur. The command line prints the message and exits with
`exit_code`; anything else that is raised is a defect.

    SightlineError
    ├── UsageError              an invalid parameter (exit code 2)
    │   └── StreamConflict      two sources claim the same seconds of one stream
    ├── SourceError             footage cannot be read
    │   ├── SourceNotFound      no such file, folder, object, or no permission
    │   ├── SourceDenied        the URL policy forbids it
    │   ├── SourceUnsupported   a protocol that FFmpeg lacks here, or a codec that the required GPU lacks
    │   ├── SourceStalled       a connected camera sends nothing
    │   ├── StartImplausible    footage that begins in the future
    │   ├── NotVideo            empty, text, or no video stream inside
    │   ├── PictureInvalid      a picture is damaged, too large, or of an unknown format
    │   ├── NoFrames            a video stream without a decodable frame
    │   └── DecodeFailed        the decoder crashed, stalled or exceeded a limit
    ├── StoreError              the store cannot be used
    │   ├── StoreNotFound       there is no store at this place
    │   ├── StoreVersion        a newer Sightline wrote it
    │   ├── IdentityMismatch    its vectors are of another encoder
    │   ├── UnknownStream       the store has no such stream
    │   ├── UnknownFrame        the store has no frame of that stream and time
    │   ├── UnknownQuestion     the store has no such standing question
    │   ├── EmptyWindow         there are no frames in the requested time
    │   ├── StoreFull           no space left
    │   ├── StoreDenied         read-only, or permissions or credentials do not suffice
    │   ├── StoreUnavailable    the object store does not answer
    │   ├── StoreBusy           another compaction is active
    │   ├── FootageHeld         an evidence lock protects the footage
    │   ├── CommitFenced        another worker has committed the same partition
    │   └── StoreCorrupt        a table, shard or object cannot be read
    ├── BackfillFailed          a batch job stopped, or too many of its files failed
    ├── KafkaProblem            Kafka cannot be used as requested
    │   ├── BrokerUnavailable   no broker answers, or TLS or SASL fails
    │   ├── TopicMissing        the topic does not exist and may not be created
    │   ├── TopicRecreated      the topic is not the one that was read before
    │   ├── OffsetsExpired      messages expired before they were stored
    │   └── MessageTooLarge     a message exceeds the size limit
    ├── SandboxUnavailable      the machine cannot confine the decoder, and --require-sandbox was given
    ├── GpuUnavailable          no GPU decodes video, and `decoder = "gpu-only"` was set
    ├── AccessError             the desk refuses a caller
    │   ├── LoginRequired       no valid session or token, or a wrong name or password
    │   ├── Forbidden           the caller's role does not include the action
    │   └── TooManyAttempts     too many requests or failed log-ins in a short time
    ├── UnknownItem             the desk has no such question, job or picture
    ├── EvidenceInvalid         a bundle that is incomplete, changed, or signed with another key
    ├── AuditBroken             the hash chain of the audit trail is broken
    ├── MessageInvalid          an invalid message
    ├── ExtraMissing            an optional dependency is not installed
    ├── TrainingDataInvalid     an invalid conversation, or file of conversations
    └── ModelError
        ├── ProfileInvalid      a model profile is invalid
        ├── WeightsNotFound     weights are in no folder and no cache, and cannot be downloaded
        ├── WeightsInvalid      the tensors of a checkpoint do not fit the model
        ├── EngineMissing       an optional engine is not installed (also an ExtraMissing)
        ├── BudgetExceeded      more tokens than the context of the language model
        ├── OutOfMemory         one question needs more memory than there is
        ├── TrainingFailed      a loss or gradient is not finite
        └── ServiceError        the model service, in the client or in the server
            ├── ServiceUnavailable  unreachable, stopping, or its model failed
            ├── ServiceBusy         the queue is full
            ├── ServiceDenied       the token is missing or wrong
            └── DeadlineExceeded    no answer before the deadline

A message is one line: what happened, to which stream or file, and what to do about it. It never contains credentials:
pass everything that may be a URL through `mask_url` first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "AccessError",
    "AuditBroken",
    "BackfillFailed",
    "BrokerUnavailable",
    "BudgetExceeded",
    "CommitFenced",
    "DeadlineExceeded",
    "DecodeFailed",
    "EmptyWindow",
    "EngineMissing",
    "EvidenceInvalid",
    "ExtraMissing",
    "FootageHeld",
    "Forbidden",
    "GpuUnavailable",
    "IdentityMismatch",
    "KafkaProblem",
    "LoginRequired",
    "MessageInvalid",
    "MessageTooLarge",
    "ModelError",
    "NoFrames",
    "NotVideo",
    "OffsetsExpired",
    "OutOfMemory",
    "PictureInvalid",
    "ProfileInvalid",
    "SandboxUnavailable",
    "ServiceBusy",
    "ServiceDenied",
    "ServiceError",
    "ServiceUnavailable",
    "SightlineError",
    "SourceDenied",
    "SourceError",
    "SourceNotFound",
    "SourceStalled",
    "SourceUnsupported",
    "StartImplausible",
    "StoreBusy",
    "StoreCorrupt",
    "StoreDenied",
    "StoreError",
    "StoreFull",
    "StoreNotFound",
    "StoreUnavailable",
    "StoreVersion",
    "StreamConflict",
    "TooManyAttempts",
    "TopicMissing",
    "TopicRecreated",
    "TrainingDataInvalid",
    "TrainingFailed",
    "UnknownFrame",
    "UnknownItem",
    "UnknownQuestion",
    "UnknownStream",
    "UsageError",
    "WeightsInvalid",
    "WeightsNotFound",
    "mask_url",
    "shown_text",
    "validation_message",
]


class SightlineError(Exception):
    """Base of all errors that are meant for users."""

    exit_code = 1
    """What the command line returns."""


class UsageError(SightlineError):
    """A parameter is invalid, whatever the footage."""

    exit_code = 2


class StreamConflict(UsageError):
    """Two sources claim the same seconds of one stream with different content."""


class SourceError(SightlineError):
    """Footage cannot be read."""


class SourceNotFound(SourceError):
    """The file, folder or object does not exist, or may not be read."""


class SourceDenied(SourceError):
    """The URL policy forbids the source."""


class SourceUnsupported(SourceError):
    """This build of FFmpeg cannot read the protocol, or the GPU that was required cannot decode the codec."""


class SourceStalled(SourceError):
    """A camera accepted the connection and sends nothing."""


class StartImplausible(SourceError):
    """The footage begins in the future, by its name or container."""


class NotVideo(SourceError):
    """The file has no video: it is empty, text, or of another format."""


class PictureInvalid(SourceError):
    """A picture is damaged, too large, or of a format that is not read."""


class NoFrames(SourceError):
    """The video stream has no decodable frame."""


class DecodeFailed(SourceError):
    """The isolated decoder crashed, stalled or exceeded one of its limits."""


class StoreError(SightlineError):
    """The store cannot be used as requested."""


class StoreNotFound(StoreError):
    """There is no store at this place."""


class StoreVersion(StoreError):
    """A newer Sightline wrote the store."""


class IdentityMismatch(StoreError):
    """The vectors in the store are of another encoder."""


class UnknownStream(StoreError):
    """The store has no such stream."""


class UnknownFrame(StoreError):
    """The store has no frame of that stream and time."""


class UnknownQuestion(StoreError):
    """The store has no such standing question."""


class EmptyWindow(StoreError):
    """There are no frames in the requested time."""


class StoreFull(StoreError):
    """No space is left; readers see nothing half-written."""


class StoreDenied(StoreError):
    """The store is read-only, or permissions or credentials do not suffice."""


class StoreUnavailable(StoreError):
    """The object store does not answer."""


class StoreBusy(StoreError):
    """Another compaction of this store is active."""


class CommitFenced(StoreError):
    """Another worker has committed the same partition; nothing of this commit was stored."""


class StoreCorrupt(StoreError):
    """A table, shard or object cannot be read."""


class BackfillFailed(SightlineError):
    """A batch job stopped, or too many of its files failed."""


class KafkaProblem(SightlineError):
    """Kafka cannot be used as requested."""


class BrokerUnavailable(KafkaProblem):
    """No broker answers, or it refuses the connection."""


class TopicMissing(KafkaProblem):
    """The topic does not exist and may not be created."""


class TopicRecreated(KafkaProblem):
    """The topic is not the one that was read before: it was deleted and created again, or truncated."""


class OffsetsExpired(KafkaProblem):
    """The topic's retention deleted messages before they were stored."""


class MessageTooLarge(KafkaProblem):
    """A message exceeds the size limit."""


class SandboxUnavailable(SightlineError):
    """This machine lacks a layer of the decoder's confinement that was required."""


class GpuUnavailable(SightlineError):
    """This machine has no GPU that decodes video, which was required."""


class MessageInvalid(SightlineError):
    """A message is invalid; trying again cannot help."""


class TrainingDataInvalid(SightlineError):
    """A conversation, or a file of conversations, is invalid; the message names file, line and sample."""


class ExtraMissing(SightlineError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class ModelError(SightlineError):
    """A model cannot be loaded or run."""


class ProfileInvalid(ModelError):
    """A model profile is invalid."""


class WeightsNotFound(ModelError):
    """Weights are neither in a local folder nor in the cache, and cannot be downloaded."""


class WeightsInvalid(ModelError):
    """The tensors of a checkpoint do not fit the model; the message names the tensor."""


class EngineMissing(ModelError, ExtraMissing):
    """A profile names an engine that is an extra and not installed."""


class BudgetExceeded(ModelError):
    """The question needs more tokens than the context of the language model."""


class OutOfMemory(ModelError):
    """One question needs more memory than there is; other questions are not affected."""


class TrainingFailed(ModelError):
    """A training run cannot continue: a loss or gradient is not finite."""


class ServiceError(ModelError):
    """The model service could not fulfil a request."""


class ServiceUnavailable(ServiceError):
    """The service is unreachable or stopping, or its model failed."""


class ServiceBusy(ServiceError):
    """The queue of the service is full.

    Args:
        message: see the module's docstring.
        retry_after: seconds after which another attempt may succeed.
    """

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceDenied(ServiceError):
    """The token of the service is missing or wrong."""


class DeadlineExceeded(ServiceError):
    """There was no answer before the deadline of the request."""


class AccessError(SightlineError):
    """The desk refuses a caller."""


class LoginRequired(AccessError):
    """There is no valid session or token, or the name or password is wrong."""


class Forbidden(AccessError):
    """The caller's role does not include the action."""


class TooManyAttempts(AccessError):
    """Too many requests or failed log-ins in a short time; another may succeed after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnknownItem(SightlineError):
    """The desk has no such question, job or picture, or it belongs to another user."""


class EvidenceInvalid(SightlineError):
    """A bundle of evidence is incomplete, was changed, or is signed with another key."""


class AuditBroken(SightlineError):
    """The hash chain of the audit trail is broken."""


class FootageHeld(StoreError):
    """An evidence lock protects the footage from deletion."""


_STORES = frozenset({"abfs", "abfss", "az", "file", "gcs", "gs", "kafka", "live", "memory", "s3", "s3a"})
_SCHEME_END = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}\Z")
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]{2,60}\]|[\w.-]{0,255})(?::[0-9]{1,5})?")
_BLANK = re.compile(r"\s|\Z")
_PLAIN_NAME = re.compile(r"[\w.,:~!$*+()'\[\]{}%-]*")
_ENCODED_DELIMITER = re.compile(r"%(?:25){0,4}(?:3[bdf]|40|2[36])", re.IGNORECASE)
_LONG_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_.-])([A-Za-z0-9_.-]++)(\s?=\s?|%3[Dd])([^\s&;,)]+)")
_SECRET = r"(?:token|secret|password|passwd|pwd|signature|credential|(?:api|access|account)_?key|\bsig)"
_SECRET_KEY, _SECRET_INSIDE = re.compile(rf"{_SECRET}\Z", re.I), re.compile(rf"{_SECRET}(?:=|%3d)", re.I)
_CLOSERS = "\"'`>)]},.;:"
_MASK = "***"
_SHOWN = 500  # characters of a text from outside that a message shows


def mask_url(text: str) -> str:
    """Show only the harmless parts of all URLs in `text`; takes time linear in its length.

    A URL is shown as scheme, host, port and path. User information, query and fragment become `***`, as does a part of
    the path that is not a plain name: the forms of vendors (`/user=admin_password=…`, `;pwd=…`) and long random texts,
    such as stream keys. Objects of a store and files may have any name. A host or port that does not parse becomes
    `***`. Outside of URLs the value of `password=…` and the like becomes `***`.
    """
    shown, done = list[str](), 0
    while (mark := text.find("://", done)) >= 0:
        start = end = mark + 3
        if (scheme := _SCHEME_END.search(text, max(done, mark - 32), mark)) is not None:
            end = _end_of_url(text, start)
            address = text[start:end].rstrip(_CLOSERS)
            shown += [_mask_values(text[done : scheme.start()]), scheme[0], "://"]
            shown += [_mask_address(address, scheme[0].lower() in _STORES), text[start + len(address) : end]]
        else:
            shown.append(_mask_values(text[done:start]))
        done = end
    return "".join([*shown, _mask_values(text[done:])])


def _end_of_url(text: str, start: int) -> int:
    """The end of the URL whose address begins at `start`: the next blank, or a later one if a password has blanks."""
    end = next(_BLANK.finditer(text, start)).start()
    authority = _AUTHORITY.findall(text[start:end])[0]
    if "@" not in text[start:end] and not _HOST.fullmatch(authority.rstrip(_CLOSERS)):
        line = text[end : end + 256].partition("\n")[0].partition("://")[0]
        if "@" in line:
            return next(_BLANK.finditer(text, end + line.rindex("@"))).start()
    return end


def _mask_address(address: str, is_store: bool) -> str:
    """What follows `scheme://`, masked."""
    authority, user = _AUTHORITY.findall(address)[0], ""
    # A password may contain `/`, `?` and `#`, so that what looks like a host and a port may be a user and a password.
    if "@" in authority or (":" in authority and not authority.startswith("[") and "@" in address):
        user = f"{_MASK}@"
        address = address[1 + (authority if "@" in authority else address).rindex("@") :]
        authority = _AUTHORITY.findall(address)[0]
    path, *hidden = re.split(r"[?#]", address[len(authority) :], maxsplit=1)
    names = (_mask_values(name) if is_store else _mask_name(name) for name in path.split("/"))
    host = authority if _HOST.fullmatch(authority) else _MASK
    return f"{user}{host}{'/'.join(names)}{f'?{_MASK}' if hidden and hidden[0] else ''}"


def _mask_name(name: str) -> str:
    """One part of the path of a URL, masked unless it is a plain name; what follows a `;` is masked."""
    name, *parameters = name.split(";", maxsplit=1)
    if not _PLAIN_NAME.fullmatch(name) or _ENCODED_DELIMITER.search(name):
        return _MASK
    masked = _LONG_RUN.sub(lambda run: run[0] if run[0].isalpha() or run[0].isdigit() else _MASK, name)
    return f"{masked};{_MASK}" if parameters else masked


def _mask_values(text: str) -> str:
    """Text outside of URLs with the values of `password=…` and the like masked."""

    def masked(found: re.Match[str]) -> str:
        secret = _SECRET_KEY.search(found[1]) or _SECRET_INSIDE.search(found[3])
        return f"{found[1]}{found[2]}{_MASK}" if secret else found[0]

    return _ASSIGNMENT.sub(masked, text)


def shown_text(text: str) -> str:
    """`text` from outside as it may appear in a message: URLs masked, at most 500 characters, and valid in UTF-8."""
    masked = mask_url(text)
    short = masked if len(masked) <= _SHOWN else f"{masked[:_SHOWN]}…"
    return "".join(letter if letter.isprintable() or letter.isspace() else f"\\u{ord(letter):04x}" for letter in short)


def validation_message(error: ValidationError) -> str:
    """The first problem that pydantic found, as `FIELD.FIELD: MESSAGE`; contains neither the value nor credentials."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    unknown = first["type"] == "extra_forbidden"
    message = "this key is not known" if unknown else first["msg"].removeprefix("Value error, ")
    return shown_text(f"{place[:_SHOWN]}: {message}" if place else message)
