"""Selection of the packets that must be decoded for the wanted frames, and of no others.

Packets carry presentation times and marks of sync points (packets at which decoding can begin), so the frame of second
k is known before anything is decoded. To decode it, the decoder needs the packets from the last sync point at or
before it, without those that no other frame refers to. Packets between a wanted frame and the next sync point are not
needed and never reach the decoder. The frames are the same as from decoding everything: a plan saves work, not
accuracy. Where sync points alone are dense enough, only they are decoded.

This module knows nothing of PyAV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ingest.decoding.sampler import Sampler

__all__ = ["PacketInfo", "PacketPlan", "PlannedPacket"]

# Packets come in decoding order. H.264 and HEVC show a frame at most 16 places later than it is decoded, so a packet
# that is more than this many places after a candidate is shown after it.
_REORDER = 20
# Bounds on the packets that are held while the next wanted frame is searched.
_MAX_PACKETS, _MAX_BYTES = 4096, 64 * 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PacketInfo(Generic[T]):
    """What the plan must know of one packet."""

    packet: T
    """The packet itself."""
    pts: float | None
    """Presentation time in seconds; None if the container has none."""
    sync_point: bool
    """Decoding can begin here: no later packet that is shown later refers to anything before it."""
    shown: bool = True
    """Its frame is shown; an edit list can hide it."""
    size: int = 0
    """Bytes."""


@dataclass(frozen=True, slots=True)
class PlannedPacket(Generic[T]):
    """A packet to give to the decoder."""

    packet: T
    """The packet itself."""
    required: bool
    """Its frame is wanted. If not, the decoder may skip the packet if no other frame refers to it."""


class PacketPlan(Generic[T]):
    """Iterates over the packets to decode, in order, so that every frame that `sampler` takes is decoded.

    Args:
        packets: packets in decoding order.
        sampler: used by the plan alone, with `first` set; decoded frames need a sampler of their own.
        mode: `keyframes`, `nonref` or `all`, see `ingest.decoding.decoder`.
        tolerance: in mode `keyframes`, seconds by which a sync point may be later than the frame it replaces.

    Attributes:
        mode: changes where the footage turns out to be unlike its start.
    """

    def __init__(self, packets: Iterable[PacketInfo[T]], sampler: Sampler, *, mode: str, tolerance: float) -> None:
        self.mode, self.tolerance = mode, tolerance
        self._source, self._sampler = iter(packets), sampler
        self._held: deque[PacketInfo[T]] = deque()
        self._held_bytes = 0
        self._ended = self._time_missing = False
        self._decoded: list[float] = []  # pts of wanted frames that are decoded already and shown later
        # After a jump to a sync point: frames shown before this time refer to packets that were not decoded.
        self._undecodable_before = float("-inf")

    @property
    def held(self) -> int:
        """Number of packets that are read and not yet decoded or dropped."""
        return len(self._held)

    def __iter__(self) -> Iterator[PlannedPacket[T]]:
        while self.mode != "all":
            if self.mode == "keyframes":
                yield from self._next_sync_point()
            else:
                yield from self._next_exact()
            if self._time_missing:  # the times of frames are known after decoding only
                self.mode = "all"
            elif self._ended and not self._held:
                return
        while self._held:
            yield PlannedPacket(self._pop().packet, required=True)
        for info in self._source:
            yield PlannedPacket(info.packet, required=True)

    def _next_sync_point(self) -> Iterator[PlannedPacket[T]]:
        """The first wanted sync point. If it is later than the tolerance, the mode changes instead."""
        earliest = sync_pts = float("inf")
        sync: int | None = None
        for at, info in enumerate(self._lookahead()):
            assert info.pts is not None  # for the type checker: `_lookahead` ends at a packet without pts
            if sync is not None and at - sync > _REORDER:
                break
            if not (info.shown and self._sampler.wants(info.pts)):
                continue
            earliest = min(earliest, info.pts)  # an open GOP has frames after its sync point that are shown before it
            if sync is None and info.sync_point:
                sync, sync_pts = at, info.pts
            elif sync is None and info.pts > earliest + self.tolerance:
                break
        if sync is not None and sync_pts <= earliest + self.tolerance:
            self._sampler.take(sync_pts)
            self._drop(sync)
            self._undecodable_before = sync_pts
            yield PlannedPacket(self._pop().packet, required=True)
            return
        if self._time_missing:
            return
        if earliest == float("inf"):
            yield from self._nothing_wanted()
        elif self._ended and sync is None:
            yield from self._next_exact()  # the last second may end before its sync point
        else:
            self.mode = "nonref"

    def _next_exact(self) -> Iterator[PlannedPacket[T]]:
        """Everything that the next wanted frame needs, up to that frame."""
        self._decoded = [pts for pts in self._decoded if self._sampler.wants(pts)]
        first = best = None
        best_pts = float("inf")
        for at, info in enumerate(self._lookahead()):
            assert info.pts is not None  # for the type checker: `_lookahead` ends at a packet without pts
            if info.shown and self._sampler.wants(info.pts):
                first = at if first is None else first
                if info.pts < best_pts:
                    best, best_pts = at, info.pts
            if (self._decoded and at >= _REORDER) or (first is not None and at - first >= _REORDER):
                break
        if self._time_missing:
            return
        if self._decoded and min(self._decoded) <= best_pts:
            self._sampler.take(min(self._decoded))
        elif best is None:
            yield from self._nothing_wanted()
        else:
            yield from self._release(best, best_pts)
            self._sampler.take(best_pts)

    def _release(self, last: int, wanted: float) -> Iterator[PlannedPacket[T]]:
        """Packets up to `last`, from the last sync point shown no later than `wanted`, if one is held."""
        start = 0
        for at in range(last, 0, -1):
            info = self._held[at]
            if info.sync_point and info.pts is not None and info.pts <= wanted:
                start = at
                break
        self._drop(start)
        if start:
            self._undecodable_before = self._held[0].pts or 0.0
        for at in range(last - start + 1):
            info = self._pop()
            assert info.pts is not None
            if info.sync_point and (at > 0 or not start):
                self._undecodable_before = float("-inf")
            if info.pts < self._undecodable_before:
                continue
            required = info.shown and self._sampler.wants(info.pts)
            if required and at < last - start:
                self._decoded.append(info.pts)
            yield PlannedPacket(info.packet, required)

    def _nothing_wanted(self) -> Iterator[PlannedPacket[T]]:
        """No held packet is wanted, and no more can be held or read: keep only what later frames may refer to."""
        if self._ended:
            self._drop(len(self._held))
            return
        start = next((at for at in range(len(self._held) - 1, 0, -1) if self._held[at].sync_point), 0)
        if start:
            self._drop(start)
            self._undecodable_before = self._held[0].pts or 0.0
            return
        for _ in range(len(self._held)):
            yield PlannedPacket(self._pop().packet, required=False)

    def _lookahead(self) -> Iterator[PacketInfo[T]]:
        """Held packets, then newly read ones: to the end, to the bounds, or to a packet without pts."""
        yield from tuple(self._held)
        while not self._ended and len(self._held) < _MAX_PACKETS and self._held_bytes < _MAX_BYTES:
            info = next(self._source, None)
            if info is None:
                self._ended = True
                return
            self._held.append(info)
            self._held_bytes += info.size
            if info.pts is None:
                self._time_missing = True
                return
            yield info

    def _pop(self) -> PacketInfo[T]:
        info = self._held.popleft()
        self._held_bytes -= info.size
        return info

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._pop()
