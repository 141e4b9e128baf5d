"""Which packets must be decoded so that the wanted frames come out, and no others.

Packets carry times and key flags, so the frame of second k is known before anything is decoded. To get it, the decoder
needs the packets from the last key frame at or before it, less those no other frame refers to. What stands between a
wanted frame and the next key frame is needed by nobody and never reaches the decoder. The frames that come out are the
very ones that decoding everything would give: this saves work, not accuracy. Where key frames alone will do, only they
are decoded. This module knows nothing of PyAV.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ingest.decoding.sampler import Sampler

__all__ = ["Plan", "Planned", "Unit"]

# Packets come in decoding order. H.264 and HEVC show a frame at most 16 places later than it is decoded, so this many
# packets after a candidate none can come that is shown before it.
_REORDER = 20
# What is held at most while looking for the next wanted frame.
_MOST_UNITS, _MOST_BYTES = 4096, 64 * 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unit(Generic[T]):
    """One packet.

    Attributes:
        pts: seconds; None when the container does not say.
        key: it decodes without any other.
        restart: decoding may begin here; what follows and is shown later refers to nothing before it.
        shown: its frame is shown (an edit list may hide it).
        size: bytes.
    """

    packet: T
    pts: float | None
    key: bool
    restart: bool
    shown: bool = True
    size: int = 0


@dataclass(frozen=True, slots=True)
class Planned(Generic[T]):
    """A packet to decode; when not `whole`, the decoder may skip it if no other frame refers to it."""

    packet: T
    whole: bool


class Plan(Generic[T]):
    """Iterate over it for the packets to decode, in order, so that every frame `sampler` takes comes out.

    Args:
        units: packets in decoding order.
        sampler: one of the plan's own, with `first` set; the one that judges decoded frames is another.
        mode: `keyframes`, `nonref` or `all`; it changes when the footage does not keep what its start promised.
        tolerance: seconds that a key frame may come after the frame it stands for.
    """

    def __init__(self, units: Iterable[Unit[T]], sampler: Sampler, *, mode: str, tolerance: float) -> None:
        self.mode, self.tolerance = mode, tolerance
        self._source, self._sampler = iter(units), sampler
        self._held: deque[Unit[T]] = deque()
        self._bytes = 0
        self._ended = self._blind = False
        self._ahead: list[float] = []  # wanted frames that are decoded already and shown later
        self._lead = float("-inf")  # after a jump to a key frame: what is shown before it lacks what it refers to

    def __iter__(self) -> Iterator[Planned[T]]:
        while self.mode != "all":
            if self.mode == "keyframes":
                yield from self._next_key()
            else:
                yield from self._next_exact()
            if self._blind:  # times are missing: only the decoder can tell, frame by frame
                self.mode = "all"
            elif self._ended and not self._held:
                return
        while self._held:
            yield Planned(self._pop().packet, whole=True)
        for unit in self._source:
            yield Planned(unit.packet, whole=True)

    def _next_key(self) -> Iterator[Planned[T]]:
        """The first wanted key frame, unless it is later than the tolerance: then the mode changes."""
        earliest = key_pts = float("inf")
        key: int | None = None
        for at, unit in enumerate(self._ahead_of()):
            assert unit.pts is not None  # for the type checker: `_ahead_of` ends at the first without
            if key is not None and at - key > _REORDER:
                break
            if not (unit.shown and self._sampler.wants(unit.pts)):
                continue
            earliest = min(earliest, unit.pts)  # what an open GOP shows before its key frame comes after it
            if key is None and unit.key:
                key, key_pts = at, unit.pts
            elif key is None and unit.pts > earliest + self.tolerance:
                break
        if key is not None and key_pts <= earliest + self.tolerance:
            self._sampler.take(key_pts)
            self._drop(key)
            self._lead = key_pts
            yield Planned(self._pop().packet, whole=True)
            return
        if self._blind:
            return
        if earliest == float("inf"):
            yield from self._nothing_wanted()
        elif self._ended and key is None:
            yield from self._next_exact()  # the last second may end before its key frame
        else:
            self.mode = "nonref"

    def _next_exact(self) -> Iterator[Planned[T]]:
        """Everything the next wanted frame needs, up to that frame."""
        self._ahead = [pts for pts in self._ahead if self._sampler.wants(pts)]
        first = best = None
        best_pts = float("inf")
        for at, unit in enumerate(self._ahead_of()):
            assert unit.pts is not None  # for the type checker: `_ahead_of` ends at the first without
            if unit.shown and self._sampler.wants(unit.pts):
                first = at if first is None else first
                if unit.pts < best_pts:
                    best, best_pts = at, unit.pts
            if (self._ahead and at >= _REORDER) or (first is not None and at - first >= _REORDER):
                break
        if self._blind:
            return
        if self._ahead and min(self._ahead) <= best_pts:
            self._sampler.take(min(self._ahead))
        elif best is None:
            yield from self._nothing_wanted()
        else:
            yield from self._release(best, best_pts)
            self._sampler.take(best_pts)

    def _release(self, last: int, wanted: float) -> Iterator[Planned[T]]:
        """Packets up to `last`, from the last key frame that is shown no later than `wanted`, if one is held."""
        start = 0
        for at in range(last, 0, -1):
            unit = self._held[at]
            if unit.restart and unit.pts is not None and unit.pts <= wanted:
                start = at
                break
        self._drop(start)
        if start:
            self._lead = self._held[0].pts or 0.0
        for at in range(last - start + 1):
            unit = self._pop()
            assert unit.pts is not None
            if unit.restart and (at > 0 or not start):
                self._lead = float("-inf")
            if unit.pts < self._lead:
                continue
            whole = unit.shown and self._sampler.wants(unit.pts)
            if whole and at < last - start:
                self._ahead.append(unit.pts)
            yield Planned(unit.packet, whole)

    def _nothing_wanted(self) -> Iterator[Planned[T]]:
        """What is held is full or the last, and nobody wants any of it: keep only what later frames may refer to."""
        if self._ended:
            self._drop(len(self._held))
            return
        start = next((at for at in range(len(self._held) - 1, 0, -1) if self._held[at].restart), 0)
        if start:
            self._drop(start)
            self._lead = self._held[0].pts or 0.0
            return
        for _ in range(len(self._held)):
            yield Planned(self._pop().packet, whole=False)

    def _ahead_of(self) -> Iterator[Unit[T]]:
        """What is held, then what is read: to the end, to the bounds, or to a packet without a time."""
        yield from tuple(self._held)
        while not self._ended and len(self._held) < _MOST_UNITS and self._bytes < _MOST_BYTES:
            unit = next(self._source, None)
            if unit is None:
                self._ended = True
                return
            self._held.append(unit)
            self._bytes += unit.size
            if unit.pts is None:
                self._blind = True
                return
            yield unit

    def _pop(self) -> Unit[T]:
        unit = self._held.popleft()
        self._bytes -= unit.size
        return unit

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._pop()
