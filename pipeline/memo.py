"""A cache of computed values: the least recently used go first when they are too many or too large. Thread-safe.

Keys name data, never a caller: who may see a value is decided before it is looked up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Memo"]

Value = TypeVar("Value")


class Memo(Generic[Value]):
    """Values by key.

    Args:
        entries: largest number of values.
        size: largest sum of the sizes of the values.
        size_of: size of a value; 0 if None.
    """

    def __init__(self, entries: int, size: int = 0, size_of: Callable[[Value], int] | None = None) -> None:
        self._entries, self._size, self._size_of = entries, size, size_of or (lambda _: 0)
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> Value | None:
        """The value of a key, None if it is not held."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not held. Two threads may make the same value at once."""
        found = self.find(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value; one that is larger than the cache is not kept."""
        size = self._size_of(value)
        if self._size and size > self._size:
            return
        with self._lock:
            if key in self._values:
                self._held -= self._size_of(self._values.pop(key))
            self._values[key] = value
            self._held += size
            while len(self._values) > self._entries or (self._size and self._held > self._size):
                self._held -= self._size_of(self._values.popitem(last=False)[1])

    def drop(self, condition: Callable[[Hashable], bool]) -> None:
        """Remove the values whose keys meet a condition."""
        with self._lock:
            for key in [key for key in self._values if condition(key)]:
                self._held -= self._size_of(self._values.pop(key))
