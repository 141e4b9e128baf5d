"""Every error a person can meet, in one tree.

    SightlineError
    ├── UsageError              a parameter that cannot be right (exit code 2)
    ├── SourceError             footage that cannot be read
    │   ├── SourceNotFound      no such file, folder, object, or no permission
    │   ├── SourceDenied        the URL policy forbids it
    │   ├── SourceUnsupported   a protocol that this build of FFmpeg lacks
    │   ├── SourceStalled       a camera that was connected and sends nothing
    │   ├── NotVideo            empty, text, or no video stream inside
    │   ├── NoFrames            a video stream without one decodable frame
    │   └── DecodeFailed        the decoder crashed, stalled, or broke a limit
    ├── StoreError              the store cannot be used
    │   ├── StoreNotFound
    │   ├── StoreVersion        written by a newer Sightline
    │   ├── IdentityMismatch    vectors of another encoder
    │   ├── UnknownStream
    │   ├── UnknownFrame        a frame that was asked for by its time is not there
    │   ├── UnknownQuestion     the store holds no such standing question
    │   ├── EmptyWindow         no frames in the time asked for
    │   ├── StoreFull           no space left
    │   ├── StoreBusy           another compaction is under way
    │   ├── CommitFenced        another worker committed the same partition meanwhile
    │   └── StoreCorrupt
    ├── BackfillFailed          a batch job broke off, or lost too many files
    ├── KafkaProblem            Kafka cannot be used as asked
    │   ├── BrokerUnavailable   nobody answers, or TLS or SASL refuse
    │   ├── TopicMissing
    │   ├── TopicRecreated      the topic is not the one the store has read from
    │   ├── OffsetsExpired      messages were deleted before they were stored
    │   └── MessageTooLarge
    ├── SandboxUnavailable      the machine cannot confine the decoder, and --require-sandbox was given
    ├── MessageInvalid          a message that can never be stored
    ├── ExtraMissing            an optional dependency is not installed
    ├── TrainingDataInvalid     a conversation, or a file of them, that cannot be learned from
    └── ModelError
        ├── ProfileInvalid
        ├── WeightsNotFound     no network, no cache, no folder
        ├── WeightsInvalid      a checkpoint whose tensors do not fit
        ├── EngineMissing       an optional engine is not installed (also an ExtraMissing)
        ├── BudgetExceeded      more tokens than the language model can hold
        ├── OutOfMemory         one question needed more memory than there was
        ├── TrainingFailed      a loss or gradient is not a number
        └── ServiceError        the model service, on either side
            ├── ServiceUnavailable  not reached, stopping, or broken
            ├── ServiceBusy         as many questions wait as may
            ├── ServiceDenied       no token, or another one
            └── DeadlineExceeded    no answer in the time that was given

A message is one line: what happened, to which stream or file, and what to do about it. Credentials never
appear: pass anything that may be a URL through `mask_url` first.
"""

from __future__ import annotations

import re

__all__ = [
    "BackfillFailed",
    "BrokerUnavailable",
    "BudgetExceeded",
    "CommitFenced",
    "DeadlineExceeded",
    "DecodeFailed",
    "EmptyWindow",
    "EngineMissing",
    "ExtraMissing",
    "IdentityMismatch",
    "KafkaProblem",
    "MessageInvalid",
    "MessageTooLarge",
    "ModelError",
    "NoFrames",
    "NotVideo",
    "OffsetsExpired",
    "OutOfMemory",
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
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreNotFound",
    "StoreVersion",
    "TopicMissing",
    "TopicRecreated",
    "TrainingDataInvalid",
    "TrainingFailed",
    "UnknownFrame",
    "UnknownQuestion",
    "UnknownStream",
    "UsageError",
    "WeightsInvalid",
    "WeightsNotFound",
    "mask_url",
]


class SightlineError(Exception):
    """Base of every error meant for a person. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(SightlineError):
    """A parameter that cannot be right whatever the footage."""

    exit_code = 2


class SourceError(SightlineError):
    """Footage that cannot be read."""


class SourceNotFound(SourceError):
    """No such file, folder or object, or no permission to read it."""


class SourceDenied(SourceError):
    """The URL policy forbids this source."""


class SourceUnsupported(SourceError):
    """A protocol that this build of FFmpeg cannot read."""


class SourceStalled(SourceError):
    """A camera accepted the connection and sends nothing."""


class NotVideo(SourceError):
    """The file holds no video: empty, text, or another format."""


class NoFrames(SourceError):
    """A video stream without one decodable frame."""


class DecodeFailed(SourceError):
    """The isolated decoder crashed, stalled, or went over one of its limits."""


class StoreError(SightlineError):
    """The store cannot be used as asked."""


class StoreNotFound(StoreError):
    """There is no store at this place."""


class StoreVersion(StoreError):
    """The store was written by a newer Sightline."""


class IdentityMismatch(StoreError):
    """The vectors in the store come from another encoder."""


class UnknownStream(StoreError):
    """The store holds no such stream."""


class UnknownFrame(StoreError):
    """The store holds no frame of that stream and time."""


class UnknownQuestion(StoreError):
    """The store holds no such standing question."""


class EmptyWindow(StoreError):
    """No frames in the time that was asked for."""


class StoreFull(StoreError):
    """No space left; nothing half-written became visible."""


class StoreBusy(StoreError):
    """Another compaction of this store is under way."""


class CommitFenced(StoreError):
    """Another worker has committed this partition meanwhile; nothing of ours was."""


class StoreCorrupt(StoreError):
    """A table or shard does not read back."""


class BackfillFailed(SightlineError):
    """A batch job broke off, or too many of its files gave nothing."""


class KafkaProblem(SightlineError):
    """Kafka cannot be used as asked."""


class BrokerUnavailable(KafkaProblem):
    """No broker answers, or it refuses the connection."""


class TopicMissing(KafkaProblem):
    """A topic that is not there and may not be made."""


class TopicRecreated(KafkaProblem):
    """The topic is not the one the store has read from: deleted and made again, or cut back."""


class OffsetsExpired(KafkaProblem):
    """Messages were deleted by the topic's retention before they were stored."""


class MessageTooLarge(KafkaProblem):
    """More bytes than a message may have."""


class SandboxUnavailable(SightlineError):
    """This machine lacks a layer of the decoder's confinement that was required."""


class MessageInvalid(SightlineError):
    """A message that can never be stored, however often it is tried."""


class TrainingDataInvalid(SightlineError):
    """A conversation, or a file of them, that cannot be learned from; the message names file, line and sample."""


class ExtraMissing(SightlineError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class ModelError(SightlineError):
    """A model cannot be loaded or run."""


class ProfileInvalid(ModelError):
    """A model profile that does not validate."""


class WeightsNotFound(ModelError):
    """Weights are neither in a local folder nor in the cache, and there is no network."""


class WeightsInvalid(ModelError):
    """A checkpoint whose tensors do not fit the model; the message names the tensor."""


class EngineMissing(ModelError, ExtraMissing):
    """An engine that a profile names is an extra, and not installed."""


class BudgetExceeded(ModelError):
    """The question needs more tokens than the language model can hold."""


class OutOfMemory(ModelError):
    """One question needed more memory than there was; others are not touched by it."""


class TrainingFailed(ModelError):
    """A training run cannot go on: a loss or gradient is not a number."""


class ServiceError(ModelError):
    """The model service could not do what was asked."""


class ServiceUnavailable(ServiceError):
    """The service cannot be reached, is stopping, or its model is broken."""


class ServiceBusy(ServiceError):
    """As many requests wait as may. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceDenied(ServiceError):
    """The service wants a token, or another one."""


class DeadlineExceeded(ServiceError):
    """No answer in the time that the request was given."""


_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s]*@")
_SECRET_QUERY = re.compile(
    r"(?i)([?&](?:[^=&\s]*(?:token|key|secret|password|passwd|pwd|signature|credential)[^=&\s]*)=)[^&\s#]+"
)


def mask_url(text: str) -> str:
    """Return `text` with user names, passwords and secret query values of any URL in it replaced by `***`."""
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub(r"\g<scheme>***@", text))
