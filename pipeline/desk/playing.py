"""Playing of the desk: the video of a stream from a time on, for a caller who may see the stream."""

from __future__ import annotations

from index.records import rfc3339
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk
from pipeline.media.playback import Playable

__all__ = ["play"]


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
        # A browser asks for a video in many parts.
        desk.audit_once(caller, Action.VIEW, stream=stream.stream_id, what=at, detail={"play": rfc3339(at)})
    except BaseException:
        playable.close()
        raise
    return playable
