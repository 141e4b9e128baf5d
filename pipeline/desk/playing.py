"""Playing of the desk: the video of a stream from a time on, for a caller who may see the stream."""

from __future__ import annotations

import time

from index.records import rfc3339
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk
from pipeline.media.playback import Playable

__all__ = ["play"]

_ONE_RECORD_SECONDS = 600.0
"""A browser asks for a video in many parts; within this time they are one record of the audit trail."""


def play(desk: Desk, caller: Caller, stream_id: str, at: int, *, transcode: bool = False) -> Playable:
    """The video of a stream from a time on, UTC microseconds; close it after use.

    Args:
        desk: the desk.
        caller: the caller.
        stream_id: the stream.
        at: the time.
        transcode: encode it anew, whatever the footage is.

    Raises:
        UnknownStream: there is no such stream that the caller may see.
        EmptyWindow: there is no footage of that time.
        SourceError: it cannot be read.
        ServiceBusy: too many videos are being prepared.
    """
    stream = desk.stream(caller, stream_id)
    playable = desk.player.open(stream.stream_id, at, transcode=transcode)
    try:
        key = (caller.name, caller.via, caller.origin, stream.stream_id, at)
        before = desk.played.find(key)
        if before is None or time.monotonic() - before > _ONE_RECORD_SECONDS:
            desk.audit(caller, Action.VIEW, streams=[stream.stream_id], detail={"play": rfc3339(at)})
            desk.played.put(key, time.monotonic())
    except BaseException:
        playable.close()
        raise
    return playable
