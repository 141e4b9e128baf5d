"""Evidence locks of the desk: placed by those who may hold a stream, released by those who may release it.

A hold is in the store, so that every process obeys it, and has a marker in each place of recordings of the desk.
"""

from __future__ import annotations

from index.commits.held import Hold
from index.errors import SourceNotFound, UnknownItem
from index.records import rfc3339
from ingest.live.holds import place_marker, remove_marker
from ingest.live.recorder import folder_url
from pipeline.access.caller import Caller
from pipeline.access.roles import Action
from pipeline.desk.desk import Desk

__all__ = ["list_holds", "place_hold", "release_hold"]


def list_holds(desk: Desk, caller: Caller) -> list[Hold]:
    """The holds of the streams that the caller may hold, by stream and start."""
    return [hold for hold in desk.store.holds() if caller.may(Action.HOLD, hold.stream_id)]


def place_hold(
    desk: Desk, caller: Caller, stream_id: str, start: int, end: int, *, reason: str
) -> tuple[Hold, list[str]]:
    """Protect footage of a stream from deletion.

    Returns:
        The hold, and sentences about recordings that could not be marked.

    Raises:
        UnknownStream, Forbidden: the caller may not see the stream, or not hold it.
        UsageError: the stretch or the reason is invalid.
        StoreBusy: this footage is being deleted.
        StoreDenied: the store is read-only.
    """
    stream = desk.stream(caller, stream_id, Action.HOLD).stream_id
    placed = desk.store.hold(stream, start, end, reason=reason, placed_by=caller.name)
    desk.audit(caller, Action.HOLD, streams=[stream], detail=_detail(placed))
    notices = []
    for place in desk.settings.recordings:
        try:
            place_marker(folder_url(place), placed)
        except SourceNotFound as error:
            notices.append(f"Recordings are not marked, so `record --keep-days` may delete them: {error}")
    return placed, notices


def release_hold(desk: Desk, caller: Caller, hold_id: str, *, reason: str) -> Hold:
    """End a hold.

    Raises:
        UnknownItem: there is none of this id whose stream the caller may release.
        UsageError: there is no reason.
    """
    found = next((hold for hold in desk.store.holds() if hold.id == hold_id), None)
    if found is None or not caller.may(Action.RELEASE, found.stream_id):
        raise UnknownItem("there is no such hold")
    released = desk.store.release(hold_id, reason=reason)
    detail = {**_detail(released), "held_because": released.reason, "reason": reason}
    desk.audit(caller, Action.RELEASE, streams=[released.stream_id], detail=detail)
    for place in desk.settings.recordings:
        remove_marker(folder_url(place), hold_id)
    return released


def _detail(hold: Hold) -> dict[str, object]:
    return {"hold": hold.id, "start": rfc3339(hold.start), "end": rfc3339(hold.end), "reason": hold.reason}
