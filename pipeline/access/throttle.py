"""Limits of failed log-ins: by name and address together, by address, and by name.

An attempt counts as failed when it begins, and is taken back when it succeeds, so that attempts side by side cannot
exceed a limit. A name has a high limit of its own against guesses from many addresses; the low one is by name and
address, so that a stranger cannot lock a user out from the user's own address. IPv6 addresses count by their /64
network, which one subscriber has for itself.

Memory is bounded: of more than `_ENTRIES` keys, those that failed longest ago are forgotten.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from index.errors import TooManyAttempts

__all__ = ["LoginThrottle"]

_ENTRIES = 10_000


@dataclass(slots=True)
class _Window:
    began: float
    count: int


class _Counter:
    """Failures by key within a time, for a bounded number of keys."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self.seconds = limit, seconds
        self.windows: OrderedDict[str, _Window] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """Seconds until another attempt is allowed; 0 if it is now."""
        window = self.windows.get(key)
        if window is None or now - window.began >= self.seconds or window.count < self.limit:
            return 0.0
        return window.began + self.seconds - now

    def add(self, key: str, now: float) -> None:
        """Count a failure."""
        window = self.windows.pop(key, None)
        if window is None or now - window.began >= self.seconds:
            window = _Window(now, 0)
        window.count += 1
        self.windows[key] = window
        while len(self.windows) > _ENTRIES:
            self.windows.popitem(last=False)

    def remove(self, key: str, *, all_of_it: bool = False) -> None:
        """Take a failure back, or all of the key's."""
        window = self.windows.get(key)
        if window is not None:
            window.count = 0 if all_of_it else max(0, window.count - 1)
            if not window.count:
                del self.windows[key]


class LoginThrottle:
    """Counts failed log-ins. Threads may share it.

    Args:
        by_pair: failures of one name from one address.
        by_address: failures from one address, whatever the name.
        by_name: failures of one name, whatever the address.
        seconds: time in which these are allowed.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        *,
        by_pair: int = 5,
        by_address: int = 20,
        by_name: int = 100,
        seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pair, self._address, self._name = (_Counter(limit, seconds) for limit in (by_pair, by_address, by_name))
        self._clock, self._lock = clock, threading.Lock()

    def begin(self, name: str, address: str) -> None:
        """Count an attempt, which `succeeded` takes back. Raises TooManyAttempts."""
        network, now = _network(address), self._clock()
        with self._lock:
            keys = self._keys(name, network)
            wait = max(counter.wait(key, now) for counter, key in keys)
            if wait > 0:
                seconds = math.ceil(wait)
                raise TooManyAttempts(f"too many failed log-ins; try again in {seconds} s", retry_after=seconds)
            for counter, key in keys:
                counter.add(key, now)

    def succeeded(self, name: str, address: str) -> None:
        """Take an attempt back, and forget the failures of this name from this address."""
        self._take_back(name, address, forget=True)

    def withdraw(self, name: str, address: str) -> None:
        """Take an attempt back that was not checked."""
        self._take_back(name, address, forget=False)

    def _take_back(self, name: str, address: str, *, forget: bool) -> None:
        network = _network(address)
        with self._lock:
            for counter, key in self._keys(name, network):
                counter.remove(key, all_of_it=forget and counter is self._pair)

    def __len__(self) -> int:
        """Number of keys in memory."""
        return sum(len(counter.windows) for counter in (self._pair, self._address, self._name))

    def _keys(self, name: str, network: str) -> list[tuple[_Counter, str]]:
        short = name[:256]
        return [(self._pair, f"{network} {short}"), (self._address, network), (self._name, short)]


def _network(address: str) -> str:
    """The IPv4 address, or the /64 network of an IPv6 address; what is neither, as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
